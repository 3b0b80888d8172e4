"""Pack texts into a token data set larger than memory, check one, look at its sequences."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.tokens import packing

NAME = "data"
HELP = "pack texts into a token data set, check one, look at it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A subparser for each action."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_text in (
        ("pack", "pack text, json lines and parquet files; a packing that was ended goes on"),
        ("check", "read all files of a packed data set and compare their checksums"),
        ("look", "print sequences of a packed data set as text"),
    ):
        sub = actions.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        _ARGUMENTS[name](sub)


def _pack_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=".txt, .jsonl (.zst, .gz) or .parquet; or a pattern")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="a local Hugging Face directory, or: bytes")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the data set is written")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--shard-mb", type=int, default=64, metavar="N", help="MB of input that become one shard (default: 64)"
    )
    parser.add_argument(
        "--drop-duplicates", action="store_true", help="leave out a text that is equal to an earlier one"
    )


def _check_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="a packed data set")


def _look_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="a packed data set")
    parser.add_argument("--length", type=int, default=128, metavar="N", help="tokens of a sequence (default: 128)")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="how many sequences (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="which ones: the first of the shuffled order of this seed")


def run(arguments: argparse.Namespace) -> int:
    """Do the action; returns the exit code."""
    return {"pack": _pack, "check": _check, "look": _look}[arguments.action](arguments)


def _pack(arguments: argparse.Namespace) -> int:
    from workbench.cli.machine.progress import shown_progress
    from workbench.tokens import packing

    options = packing.Options(
        files=tuple(arguments.files),
        tokenizer=arguments.tokenizer,
        out=arguments.out,
        processes=arguments.processes,
        shard_mb=arguments.shard_mb,
        drop_duplicates=arguments.drop_duplicates,
    )
    with shown_progress("reading the tokenizer") as tell:
        index = packing.pack(options, lambda now: tell(_words(now), now.done, now.units))
    duplicates = f", {index.duplicates:,} duplicates left out" if arguments.drop_duplicates else ""
    print(
        f"{arguments.out}: {index.tokens:,} tokens of {index.texts:,} texts in {len(index.shards)} "
        f"shard{'s' if len(index.shards) > 1 else ''} ({index.dtype}){duplicates}"
    )
    return 0


def _words(progress: packing.Progress) -> str:
    kept = f" ({progress.kept} were packed before)" if progress.kept else ""
    return {"comparing": "looking for duplicates", "packing": f"packing units{kept}"}[progress.stage]


def _check(arguments: argparse.Namespace) -> int:
    from workbench.cli.machine.progress import shown_progress
    from workbench.tokens.shards import check_sums, read_index

    index = read_index(arguments.directory)
    with shown_progress("checking") as tell:
        wrong = check_sums(arguments.directory, index, lambda done: tell("checking shards", done, len(index.shards)))
    for why in wrong.values():
        print(why)
    sound = len(index.shards) - len(wrong)
    print(f"{arguments.directory}: {sound} of {len(index.shards)} shards are as they were written")
    return int(bool(wrong))


def _look(arguments: argparse.Namespace) -> int:
    from workbench.tokens.dataset import TokenDataset
    from workbench.tokens.packing import load_tokenizer
    from workbench.tokens.shards import TOKENIZER

    dataset = TokenDataset(arguments.directory, arguments.length)
    tokenizer = load_tokenizer(str(arguments.directory / TOKENIZER))
    index = dataset.index
    print(f"{index.tokens:,} tokens of {index.texts:,} texts, {index.tokens / max(1, index.texts):,.0f} per text")
    print(f"{len(dataset):,} sequences of {arguments.length}; vocabulary of {index.vocabulary:,}")
    for number in dataset.sample_order(arguments.seed, 0, shuffle=True)[: max(0, arguments.samples)]:
        print(f"\nsequence {number:,}:\n{tokenizer.decode(dataset[number]['input_ids'])}")
    return 0


_ARGUMENTS = {"pack": _pack_flags, "check": _check_flags, "look": _look_flags}
