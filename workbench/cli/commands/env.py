"""Make, list and remove environments for the ranks of frameworks that this environment does not have.

``workbench env create deepspeed`` makes an environment that sees the packages of this one, and installs DeepSpeed
there. Ranks of that framework then start there: the notebook stays as it is.
"""

from __future__ import annotations

import argparse

NAME = "env"
HELP = "make, list and remove environments for the ranks of other frameworks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench env``."""
    parser.add_argument("action", choices=("create", "list", "remove"), help="what to do")
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="name of a framework, such as deepspeed")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from workbench.cli.machine import environments
    from workbench.core.numbers import format_table
    from workbench.errors import ConfigError

    if arguments.action == "list":
        made = list(environments.complete())
        rows = [(name, version, str(path)) for name, version, path in made]
        print(format_table(rows, ("framework", "version", "directory")) if rows else "no environment was made yet")
        missing = [name for name in environments.names() if name not in {each for each, _, _ in made}]
        if missing:
            print(f"workbench env create {missing[0]}" + "".join(f", {name}" for name in missing[1:]) + " makes one")
        return 0
    if not arguments.name:
        raise ConfigError(f"name a framework: {', '.join(environments.names())}", field="NAME")
    if arguments.action == "create":
        environments.create(arguments.name, print)
        return 0
    if not environments.remove(arguments.name):
        print(f"there is no environment of {arguments.name}")
        return 1
    print(f"the environment of {arguments.name} was removed")
    return 0
