"""List, label, archive and remove the runs of $WORKBENCH_HOME (default: ./runs). Without an action, list them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.history import list_options

if TYPE_CHECKING:
    from workbench.history.row import RunRow

NAME = "runs"
HELP = "list, label, archive and remove runs"
RUN = "a run directory, or the name of a run (the newest with that name)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the list, and a subparser for each action."""
    _list_flags(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for name, help_text in (
        ("list", "list runs, newest last (the default)"),
        ("show", "everything about one run"),
        ("rm", "remove runs permanently"),
        ("tag", "add or remove tags"),
        ("note", "write, show or remove a note"),
        ("archive", "pack runs into one file each, and remove their directories"),
        ("restore", "unpack archived runs"),
        ("prune", "remove old runs by a policy; those tagged 'keep' stay"),
    ):
        sub = actions.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        _ARGUMENTS[name](sub)


def _list_flags(parser: argparse.ArgumentParser) -> None:
    # suppressed defaults: `runs list` must not put back what `runs --last 3 list` has set
    for flag, keywords in list_options.OPTIONS:
        parser.add_argument(flag, default=argparse.SUPPRESS, **keywords)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="a JSON list, for scripts")


def _show_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs=1, metavar="RUN", help=RUN)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON, for scripts")


def _rm_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help=RUN)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _tag_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs=1, metavar="RUN", help=RUN)
    parser.add_argument("tags", nargs="*", metavar="TAG", help="tags to add")
    parser.add_argument("--remove", action="append", default=[], metavar="TAG", help="a tag to remove; may be repeated")


def _note_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs=1, metavar="RUN", help=RUN)
    parser.add_argument("text", nargs="*", metavar="TEXT", help="the note; an empty text ('') removes it")


def _archive_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help=RUN)


def _restore_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="archives that `runs archive` made")


def _prune_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=int, metavar="N", help="keep the newest N, whatever their age")
    parser.add_argument("--older-than", metavar="AGE", help="only runs that started longer ago: 30d, 12h, 2w")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    """Do the action; returns the exit code."""
    return _ACTIONS[arguments.action or "list"](arguments)


def _list(arguments: argparse.Namespace) -> int:
    from workbench.history import listing
    from workbench.history.index import RunIndex

    given = vars(arguments)
    index = RunIndex()
    rows = list_options.selected(index.rows(), given)
    if given.get("json"):
        print(json.dumps([_plain(row) for row in rows], indent=1))
    elif not rows:
        print(f"no runs in {index.home}{' that match' if list_options.has_filter(given) else ''}")
    else:
        _print_table(rows)
        total = listing.size(sum(row.disk_bytes for row in rows))
        print(f"{len(rows)} run{'s' if len(rows) != 1 else ''}, {total}")
    return 0


def _plain(row: RunRow) -> dict[str, Any]:
    """A row as strict JSON: a time that is not known is null."""
    data = row.to_json()
    return {**data, "when": data["when"] if data["when"] == data["when"] else None}


def _print_table(rows: Sequence[RunRow]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from workbench.history import listing

    lines = [listing.cells(row) for row in rows]
    table = Table(box=None, pad_edge=False)
    shown = [i for i in range(len(listing.COLUMNS)) if any(line[i] for line in lines)]
    for i in shown:
        name, head = list(listing.COLUMNS.items())[i]
        table.add_column(head, justify="right" if name in listing.NUMBERS else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(line[i]) for i in shown))
    console = Console()
    # a pipe has no width to keep to
    (console if console.is_terminal else Console(width=2000)).print(table)


def _show(arguments: argparse.Namespace) -> int:
    from workbench.history import listing
    from workbench.history.row import present_state, read_row
    from workbench.rundir.state import find

    path = find(arguments.runs[0])
    row = read_row(path)
    data = {**_plain(row), "state": present_state(row, path), "path": str(path)}
    if vars(arguments).get("json"):
        print(json.dumps(data, indent=1))
        return 0
    data |= {"when": listing.moment(row.when), "disk_bytes": listing.size(row.disk_bytes), "tags": ", ".join(row.tags)}
    names = {"disk_bytes": "disk", "tps": "throughput/device"}
    for key, value in data.items():
        if value not in ("", None):
            shown = listing.number(value) if isinstance(value, float) else value
            print(f"{names.get(key, key.replace('_', ' ')):>16}  {shown}")
    for file in sorted(path.iterdir()):
        size = sum(f.stat().st_size for f in file.rglob("*") if f.is_file()) if file.is_dir() else file.stat().st_size
        print(f"{'':>16}  {file.name}{'/' if file.is_dir() else ''} ({listing.size(size)})")
    return 0


def _agreed(question: str, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f"{question} There is no terminal to ask: pass --yes", file=sys.stderr)
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _rm(arguments: argparse.Namespace) -> int:
    from workbench.history import listing
    from workbench.history import retention as keeping
    from workbench.rundir.state import find

    # check all before the first is removed
    found = {path: keeping.check_ended(path) for path in map(find, arguments.runs)}
    for path, row in found.items():
        print(f"{path} ({row.state}, {row.steps} steps, {listing.size(row.disk_bytes)})")
    if not _agreed(f"Remove {'it' if len(found) == 1 else f'these {len(found)} runs'} permanently?", arguments.yes):
        return 1
    freed = sum(keeping.remove(path) for path in found)
    print(f"removed {len(found)} run{'s' if len(found) != 1 else ''}, {listing.size(freed)} freed")
    return 0


def _tag(arguments: argparse.Namespace) -> int:
    from workbench.history import labels
    from workbench.rundir.state import find

    path = find(arguments.runs[0])
    now = labels.tag(path, arguments.tags, arguments.remove)
    print(f"{path.name}: {', '.join(now.tags) or 'no tags'}")
    return 0


def _note(arguments: argparse.Namespace) -> int:
    from workbench.history import labels
    from workbench.rundir.state import find

    path = find(arguments.runs[0])
    now = labels.note(path, " ".join(arguments.text)) if arguments.text else labels.read(path)
    print(f"{path.name}: {now.note or 'no note'}")
    return 0


def _archive(arguments: argparse.Namespace) -> int:
    from workbench.history import listing
    from workbench.history import retention as keeping
    from workbench.rundir.state import find

    for path in list(map(find, arguments.runs)):
        before = keeping.check_ended(path).disk_bytes
        packed = keeping.archive(path)
        print(f"{packed} ({listing.size(before)} -> {listing.size(packed.stat().st_size)})")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from workbench.history import retention as keeping

    for file in arguments.files:
        print(keeping.restore(file))
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    from workbench.history import listing
    from workbench.history import retention as keeping
    from workbench.history.index import RunIndex

    age = keeping.seconds(arguments.older_than) if arguments.older_than else None
    index = RunIndex()
    going = keeping.prunable(index.rows(), keep=arguments.keep, older_than_s=age)
    if not going:
        print("nothing to prune")
        return 0
    _print_table(going)
    total = listing.size(sum(row.disk_bytes for row in going))
    if arguments.dry_run:
        print(f"would remove {len(going)} runs, {total}")
        return 0
    if not _agreed(f"Remove these {len(going)} runs ({total}) permanently?", arguments.yes):
        return 1
    for row in going:
        keeping.remove(index.home / row.directory)
    print(f"removed {len(going)} runs, {total} freed")
    return 0


_ARGUMENTS = {
    "list": _list_flags,
    "show": _show_flags,
    "rm": _rm_flags,
    "tag": _tag_flags,
    "note": _note_flags,
    "archive": _archive_flags,
    "restore": _restore_flags,
    "prune": _prune_flags,
}
_ACTIONS = {
    "list": _list,
    "show": _show,
    "rm": _rm,
    "tag": _tag,
    "note": _note,
    "archive": _archive,
    "restore": _restore,
    "prune": _prune,
}
