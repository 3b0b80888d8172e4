"""The options of a run as flags, declared once: ``%dist_train`` and ``workbench train`` take the same.

Names follow torchrun; ``--a-b`` and ``--a_b`` are both accepted (``normalised``). A flag that is not given is None, so
that a spec file or a recipe's default stands.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import algorithms
from workbench.core.config import MONITOR_LEVELS, ON_NONFINITE, PRECISIONS, TrainSpec
from workbench.core.frameworks import installed, usable
from workbench.core.network import PRESETS
from workbench.core.recipe import recipes
from workbench.core.rules.intervals import interval
from workbench.core.watches import WATCHES


def whole_number(text: str) -> int:
    """An argument's value as a whole number; argparse tells what it raises."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def decimal_number(text: str) -> float:
    """An argument's value as a number; argparse tells what it raises."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def share(text: str) -> float:
    """``"1%"`` or ``"0.01"`` -> 0.01."""
    number = decimal_number(text.removesuffix("%"))
    return number / 100 if text.endswith("%") else number


TRAINED, SPREAD, LEARNT, WATCHED = (
    "what to train", "parallelism", "optimization", "monitoring and checkpoints",
)  # fmt: skip
#: options that recipes choose themselves, each size its own way
OF_RECIPES = ("steps", "batch_size", "lr", "clip", "shuffle", "eval_every")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option: its spellings, the option of ``TrainSpec`` that it sets, its type, its help text and the group of the
    help that lists it. ``default``: the default in words, where it is not the value in ``TrainSpec``.

    ``kind`` None: a switch without a value, which sets the option to ``const``.
    """

    names: tuple[str, ...]
    option: str
    kind: Callable[[str], Any] | None
    help: str
    group: str
    metavar: str | None = None
    default: str | None = None
    const: bool = True

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments for ``add_argument`` (argparse's and IPython's alike)."""
        shared = {"dest": self.option, "default": None, "help": self.help + self._without()}
        if self.kind is None:
            return {**shared, "action": "store_const", "const": self.const}
        return {**shared, "type": self.kind, "metavar": self.metavar or self.option.upper()}

    def _without(self) -> str:
        """``" (default: 100, or the recipe's)"``."""
        value = self.default if self.default is not None else str(_DEFAULTS[self.option])
        if self.kind is None or not value:
            return ""
        or_else = ", or the recipe's" if self.option in OF_RECIPES else ""
        return f" (default: {value}{or_else})"


def _plugins_in_words() -> str:
    """``"colossal: ddp, zero1; torch: ddp"``."""
    return "; ".join(f"{each.name}: {', '.join(plugin.name for plugin in each.plugins)}" for each in usable())


_DEFAULTS = TrainSpec().options()
FLAGS = (
    Flag(names=("--recipe",), option="recipe", kind=str, group=TRAINED,
         help="a ready model with real data, such as stdlib-llama", default=""),
    Flag(names=("--size",), option="size", kind=str, group=TRAINED, help="size of the recipe's model",
         default="the smallest, tiny"),
    Flag(names=("--model",), option="model", kind=str, group=TRAINED, metavar="DIR|CONFIG",
         help="local Hugging Face directory, or config.json for random weights (causal-lm)", default=""),
    Flag(names=("--data",), option="data", kind=str, group=TRAINED, metavar="FILES",
         help="text, jsonl or parquet files, or patterns, separated by commas (causal-lm)", default=""),
    Flag(names=("--seq-len",), option="seq_len", kind=int, group=TRAINED, metavar="TOKENS",
         help="tokens of a packed sequence (causal-lm)", default="512, or what the model allows"),
    Flag(names=("--lora-rank",), option="lora_rank", kind=int, group=TRAINED, metavar="R",
         help="train LoRA adapters of this rank only; 0: all weights (causal-lm)"),
    Flag(names=("--resume",), option="resume", kind=str, group=TRAINED, metavar="RUN[@STEP]",
         help="continue from a checkpoint; dcp:DIR: begin with the weights, and the optimizer state, of a directory of "
         "torch.distributed.checkpoint", default=""),
    Flag(names=("--name",), option="name", kind=str, group=TRAINED, help="name of the run",
         default="the recipe's, or run"),
    Flag(names=("-n", "--nproc-per-node"), option="ranks", kind=int, group=SPREAD, metavar="N",
         help="number of ranks", default="those that are up, else one per GPU or core"),
    Flag(names=("--plan",), option="plan", kind=str, group=SPREAD, metavar="WORDS",
         help="the parallel plan in words, instead of the flags below: ddp2, zero2, 'tp2 pp2', 'fsdp2 tp2'; "
              "auto: the first choice of %%dist_plans",
         default=""),
    Flag(names=("--framework",), option="framework", kind=str, group=SPREAD,
         help=f"training framework: {', '.join(installed())}"),
    Flag(names=("--plugin",), option="plugin", kind=str, group=SPREAD,
         help=f"parallelism plugin of the framework; {_plugins_in_words()}",
         default="ddp; hybrid with --tp or --pp, context with --cp"),
    Flag(names=("--tp",), option="tp", kind=int, group=SPREAD, help="tensor parallel size"),
    Flag(names=("--pp",), option="pp", kind=int, group=SPREAD, help="pipeline parallel size (stages)"),
    Flag(names=("--cp",), option="cp", kind=int, group=SPREAD,
         help="context parallel size: ranks that share the positions of each sequence (torch context)"),
    Flag(names=("--micro-batches",), option="micro_batches", kind=int, group=SPREAD, metavar="M",
         help="micro-batches of a pipeline step", default="--pp"),
    Flag(names=("--schedule",), option="schedule", kind=str, group=SPREAD, metavar="S",
         help="order of a pipeline's micro-batches: 1f1b, interleaved, or with --framework torch gpipe, zero-bubble",
         default="1f1b"),
    Flag(names=("--replicate",), option="replicate", kind=int, group=SPREAD, metavar="GROUPS",
         help="groups of data-parallel ranks that each hold all shards of the model (fsdp)"),
    Flag(names=("--no-reshard",), option="no_reshard", kind=None, group=SPREAD,
         help="keep gathered parameters for the backward pass (fsdp)"),
    Flag(names=("--offload",), option="offload", kind=None, group=SPREAD,
         help="keep the optimizer's state in the host's memory (zero1 to zero3, gemini), and the weights too (fsdp)"),
    Flag(names=("--placement",), option="placement", kind=str, group=SPREAD, metavar="P",
         help="where chunks of weights are (gemini): static, or auto by a GPU's free memory"),
    Flag(names=("--sequence-parallel",), option="sequence_parallel", kind=str, group=SPREAD, metavar="MODE",
         help="share the positions of a sequence over the tensor-parallel ranks: split_gather, ring (colossal hybrid)",
         default="off"),
    Flag(names=("--sync-batchnorm",), option="sync_batchnorm", kind=None, group=SPREAD,
         help="synchronize BatchNorm: statistics of the global batch instead of each rank's share"),
    Flag(names=("--compile",), option="compile", kind=None, group=SPREAD,
         help="compile the model with torch.compile (all plugins but gemini); the first step waits for the compiler"),
    Flag(names=("--algorithm",), option="algorithm", kind=str, group=SPREAD, metavar="NAME[:NUMBER][+ef]",
         help=f"what ddp ranks send: {', '.join(algorithms.names())}; +ef: with error feedback",
         default="none"),
    Flag(names=("--network",), option="network", kind=str, group=SPREAD, metavar="RATE[,LATENCY]",
         help=f"emulate a network between ddp ranks: 100Mbit,20ms,straggler=rank1:2x, or {', '.join(PRESETS)}",
         default="the machine's own"),
    Flag(names=("--ds-config",), option="ds_config", kind=str, group=SPREAD, metavar="FILE",
         help="DeepSpeed's JSON configuration: it may state what flags state, and what the engine is given besides",
         default="none"),
    Flag(names=("--precision",), option="precision", kind=str, group=SPREAD,
         help=f"training precision: {', '.join(PRECISIONS)}"),
    Flag(names=("--steps",), option="steps", kind=int, group=LEARNT, help="optimizer steps"),
    Flag(names=("--epochs",), option="epochs", kind=int, group=LEARNT, metavar="E",
         help="passes over all samples; with --steps, what comes first ends the run", default=""),
    Flag(names=("--batch-size",), option="batch_size", kind=int, group=LEARNT, metavar="B",
         help="global batch: samples per step over all ranks"),
    Flag(names=("--lr",), option="lr", kind=float, group=LEARNT, help="learning rate",
         default="that of the cell's optimizer"),
    Flag(names=("--seed",), option="seed", kind=int, group=LEARNT, help="random seed of weights and data order"),
    Flag(names=("--accumulate",), option="accumulate", kind=int, group=LEARNT, metavar="A",
         help="gradient accumulation steps"),
    Flag(names=("--clip",), option="clip", kind=float, group=LEARNT, metavar="NORM",
         help="gradient clipping: largest global norm; 0: off", default="0"),
    Flag(names=("--shuffle",), option="shuffle", kind=None, group=LEARNT,
         help="shuffle the dataset, by --seed (recipes do)"),
    Flag(names=("--eval-every",), option="eval_every", kind=interval, group=WATCHED, metavar="STEPS|1ep",
         help="steps or epochs between evaluations; 0: off", default="50; 1ep with --epochs"),
    Flag(names=("--monitor",), option="level", kind=str, group=WATCHED, metavar="LEVEL",
         help=f"how much the monitor records: {', '.join(MONITOR_LEVELS)}"),
    Flag(names=("--monitor-budget",), option="budget", kind=share, group=WATCHED, metavar="SHARE",
         help="largest monitoring overhead, as a share of the step time", default="1%%"),
    Flag(names=("--grad-every",), option="grad_every", kind=int, group=WATCHED, metavar="STEPS",
         help="steps between gradient statistics; 0: never", default="chosen to stay within the budget"),
    Flag(names=("--grad-layers",), option="grad_layers", kind=str, group=WATCHED, metavar="REGEX",
         help="gradient statistics only of layers whose names match", default="all"),
    Flag(names=("--watch",), option="watch", kind=str, group=WATCHED, metavar="WHAT",
         help=f"what to record inside the model, separated by commas: {', '.join(WATCHES)}", default="nothing"),
    Flag(names=("--watch-every",), option="watch_every", kind=int, group=WATCHED, metavar="STEPS",
         help="steps between measurements inside the model", default="chosen to stay within the budget"),
    Flag(names=("--watch-layers",), option="watch_layers", kind=str, group=WATCHED, metavar="REGEX",
         help="watch only modules whose names match", default="all"),
    Flag(names=("--on-nonfinite",), option="on_nonfinite", kind=str, group=WATCHED, metavar="WHAT",
         help=f"on a NaN or infinite loss or gradient: {', '.join(ON_NONFINITE)}"),
    Flag(names=("--notify",), option="notify", kind=str, group=WATCHED, metavar="COMMAND",
         help="run once for each alert, with the alert as JSON on standard input; or a function, module:function",
         default=""),
    Flag(names=("--save-every",), option="save_every", kind=interval, group=WATCHED, metavar="STEPS|1ep",
         help="steps or epochs between checkpoints; 0: off"),
    Flag(names=("--save-best",), option="save_best", kind=str, group=WATCHED, metavar="VALUE",
         help="keep the checkpoint with the best validation metric: validation_loss, 'accuracy highest'",
         default=""),
    Flag(names=("--stop-when",), option="stop_when", kind=str, group=WATCHED, metavar="RULE",
         help="end early: 'validation_loss has not improved for 5 evaluations', 'accuracy > 0.95'",
         default=""),
    Flag(names=("--keep",), option="keep", kind=int, group=WATCHED, metavar="K",
         help="how many checkpoints to keep; 0: all"),
    Flag(names=("--no-final-checkpoint",), option="final_checkpoint", kind=None, group=WATCHED, const=False,
         help="write no checkpoint when the run ends or is stopped"),
    Flag(names=("--max-restarts",), option="max_restarts", kind=int, group=WATCHED, metavar="N",
         help="replace ranks that fail or die, N times at most, and go on from the newest checkpoint; 0: off"),
    Flag(names=("--snapshot-every",), option="snapshot_every", kind=int, group=WATCHED, metavar="STEPS",
         help="steps between copies of the state in memory, from which --max-restarts goes on; 0: off"),
)  # fmt: skip

_LONG_FLAG = re.compile(r"(?<!\S)--[A-Za-z][\w-]*")


def normalised(line: str) -> str:
    """A command line whose long flags are spelt with ``-``: ``--nproc_per_node 2`` -> ``--nproc-per-node 2``."""
    return _LONG_FLAG.sub(lambda match: match.group().replace("_", "-"), line)


def add_to(parser: argparse.ArgumentParser, options: Collection[str] | None = None) -> None:
    """Add every flag to an argparse parser, in their groups, or those of ``options`` only."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for flag in FLAGS:
        if options is None or flag.option in options:
            if flag.group not in groups:
                groups[flag.group] = parser.add_argument_group(flag.group)
            groups[flag.group].add_argument(*flag.names, **flag.keywords())


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a run among parsed arguments, those given only."""
    values = vars(arguments)
    return {flag.option: values[flag.option] for flag in FLAGS if values.get(flag.option) is not None}


def take_recipe(given: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Take the first of ``words``, which the parser left over, as the value of ``--recipe`` if it names a recipe and
    none was given. Returns the words that remain."""
    if words and words[0] in recipes() and vars(given).get("recipe", "") is None:
        given.recipe = words[0]
        return list(words[1:])
    return list(words)


def name_numbers(parser: argparse.ArgumentParser) -> None:
    """Let the errors of ``parser`` call what is no number so, in place of Python's names of types."""
    parser.register("type", int, whole_number)
    parser.register("type", float, decimal_number)


#: metavar of arguments that change settings
ASSIGNMENT = "NAME=VALUE"
#: flags of other tools whose spelling is not close to ours
_ELSEWHERE = {
    "--learning-rate": "--lr",
    "--max-steps": "--steps",
    "--num-train-epochs": "--epochs",
    "--max-epochs": "--epochs",
    "--num-processes": "--nproc-per-node",
    "--world-size": "--nproc-per-node",
    "--gpus": "--nproc-per-node",
    "--ranks": "--nproc-per-node",
    "--dtype": "--precision",
    "--mixed-precision": "--precision",
    "--gradient-accumulation-steps": "--accumulate",
    "--max-grad-norm": "--clip",
    "--tensor-parallel-size": "--tp",
    "--pipeline-parallel-size": "--pp",
    "--context-parallel-size": "--cp",
}


def not_understood(words: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Suggests a correction for the first unrecognised argument."""
    word, known = words[0], parser._option_string_actions
    name, _, value = word.partition("=")
    if name.startswith("-"):
        close = difflib.get_close_matches(name, [each for each in known if each.startswith("--")], n=1, cutoff=0.6)
        meant = _ELSEWHERE.get(name, "") if _ELSEWHERE.get(name) in known else "".join(close)
        if not meant and any(action.metavar == ASSIGNMENT for action in parser._actions):
            meant = f"{name.lstrip('-').replace('-', '_')}={value or 'VALUE'}"
    elif word.isdecimal():
        meant = f"-n {word}" if "-n" in known else ""
    elif word.endswith(".toml"):
        meant = f"--config {word}" if "--config" in known else ""
    elif "--data" in known and Path(word).is_file():
        return f"{word!r} is not understood: separate files by commas, or quote a pattern (--data 'notes/*.txt')"
    else:
        close = difflib.get_close_matches(word, recipes(), n=1, cutoff=0.6)
        meant = f"--recipe {close[0]}" if "--recipe" in known and close else ""
    return f"{word!r} is not understood" + (f": did you mean {meant}?" if meant else "")
