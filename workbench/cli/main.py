# PYTHON_ARGCOMPLETE_OK
"""``workbench COMMAND``: one module of ``workbench.cli.commands`` per subcommand.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 the run was stopped before its end, 130 Ctrl-C. Nothing here imports
torch.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NoReturn

from workbench.cli.commands import COMMANDS
from workbench.core.flags import name_numbers, normalised, not_understood
from workbench.errors import ConfigError, WorkbenchError

FAILED, ASKED_WRONGLY, INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """The parser of the command line and, as they take its class, of all subcommands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        name_numbers(self)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(prog="workbench", description="A workbench for distributed training.")
    top.add_argument("--version", action="version", version=metadata.version("dist-workbench"))
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(command.NAME, help=command.HELP, description=command.__doc__)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, parser=sub)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code. A ``WorkbenchError`` is printed as one line, without a traceback."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    given = list(sys.argv[1:] if words is None else words)
    own = given.index("--") if "--" in given else len(given)  # what follows is somebody else's
    spelt = [*map(_spelt, given[:own]), *given[own:]]
    arguments, unknown = parser().parse_known_args(spelt)
    if unknown:
        arguments.parser.error(not_understood(unknown, arguments.parser))
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        code: int = arguments.run(arguments)
        return code
    except WorkbenchError as error:
        trace = getattr(error, "traceback", "")
        print(*filter(None, [trace.rstrip(), f"workbench {arguments.command}: {error}"]), sep="\n", file=sys.stderr)
        return ASKED_WRONGLY if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        print(f"workbench {arguments.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _complete() -> None:
    """Answer the shell, which asks what can stand next, and end the process."""
    import argcomplete

    whole = parser()
    _add_completers(whole)
    argcomplete.autocomplete(whole)


def _add_completers(of: argparse.ArgumentParser) -> None:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _add_completers(sub)
        elif action.nargs != 0 and action.choices is None:
            completer = _completer(action, of.prog.rpartition(" ")[2])
            if completer is not None:
                action.completer = completer  # type: ignore[attr-defined]


def _completer(action: argparse.Action, command: str) -> Callable[..., list[str]] | None:
    """What completes an argument; None leaves it to the shell, which completes names of files."""
    from workbench.run.completion import values

    if not values(action, command):
        return None

    def complete(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
        given = {name: str(value) for name, value in vars(parsed_args).items() if value is not None}
        return values(action, command, given)

    return complete


def _spelt(word: str) -> str:
    """``--batch_size=4`` -> ``--batch-size=4``; a value stays as it is."""
    flag, equals, value = word.partition("=")
    return f"{normalised(flag)}{equals}{value}" if word.startswith("--") else word


def _as_interrupt(*_: object) -> NoReturn:
    """SIGTERM cleans up as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
