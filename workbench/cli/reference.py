"""The reference, made from the code: ``python -m workbench.cli.reference > docs/reference.md``.

Magics, command line, spec file, Python API, files of a run directory, tables and errors; a test holds the file equal to
what this prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import workbench
from workbench import errors
from workbench.cli.main import parser
from workbench.core import algorithms, run_files
from workbench.core.config import MonitorSpec, ParallelPlan, TrainSpec
from workbench.core.flags import FLAGS
from workbench.core.frameworks import usable
from workbench.core.plans.capability_table import capability_table
from workbench.core.records import SCHEMA_VERSION, TABLES, columns_of

_KINDS = {
    "f8": "double",
    "i8": "int64",
    "U": "string",
    "?": "bool",
    "L": "list of int64",
    "F": "list of float32",
}
_HEAD = """\
# Reference

Made from the code by `python -m workbench.cli.reference > docs/reference.md`; a test holds it equal. The other pages,
listed in the [README](../README.md#documentation), explain how to use what is listed here.
"""


def text() -> str:
    """The whole page."""
    parts = [
        _HEAD,
        *magics(),
        *command_line(),
        *spec_file(),
        *capabilities(),
        *split_models(),
        *communication(),
        *python_api(),
        *directory(),
        *tables(),
        *error_tree(),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


# ---------------------------------------------------------------------------------------------------- pieces of a page


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    lines = [heads, ["--"] * len(heads), *([cell(str(value)) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: str) -> str:
    """Text inside a table: one line, no column of its own."""
    return " ".join(value.replace("|", "\\|").split())


def prose(doc: str | None) -> str:
    """A docstring as Markdown."""
    return re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(doc or ""), flags=re.DOTALL).replace("::\n", ":\n")


def first_sentences(doc: str | None) -> str:
    """The first paragraph of a docstring in one line."""
    return cell(prose(doc).split("\n\n")[0])


def flag_rows(actions: Iterable[argparse.Action]) -> Iterator[tuple[str, str]]:
    """Flag or argument, and what it does."""
    for action in actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        value = " ".join(value) if isinstance(value, tuple) else value
        names = ", ".join(action.option_strings)
        shown = f"{names} {value}".strip() if names and action.nargs != 0 else names or value
        if not names and action.nargs in ("*", "+", "?"):
            shown = f"[{value}]" if action.nargs == "?" else f"{value} ..." if action.nargs == "+" else f"[{value} ...]"
        yield f"`{shown}`", (action.help or "").replace("%%", "%")


# ------------------------------------------------------------------------------------------------------------ chapters


def magics() -> Iterator[str]:
    """Every magic with each of its flags."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell(config=Config({"Workbench": {"warm": False}, "HistoryManager": {"enabled": False}}))
    workbench.load_ipython_extension(shell)
    found: dict[str, dict[str, Any]] = {}
    for kind in ("line", "cell"):
        for name, function in shell.magics_manager.magics[kind].items():
            if name.startswith("dist_") or name == "dist":
                found.setdefault(name, {})[kind] = function
    yield (
        "## Magics\n\nAfter `%load_ext workbench`. `%dist_train?` shows the same in a notebook. Long flags may be "
        "spelt with `-` or `_`."
    )
    for name in sorted(found):
        forms = [("%" if kind == "line" else "%%") + name for kind in found[name]]
        function = next(iter(found[name].values()))
        yield f"### `{'` and `'.join(forms)}`\n\n{_magic_prose(function)}"
        rows = list(flag_rows(function.parser._actions))
        if rows:
            yield table(("argument", "what"), rows)


def _magic_prose(function: Any) -> str:
    """The docstring as it was written: IPython puts the usage of the flags before it."""
    doc = inspect.cleandoc(function.__doc__ or "")
    head = re.match(r"::\n\n(?:  .*\n|\n)*", doc)
    body = doc[head.end() :] if head else doc
    titles = "|".join(re.escape(group.title) for group in function.parser._action_groups if group.title)
    body = re.split(rf"\n(?:{titles}):\n", body)[0]
    return prose(body)


def command_line() -> Iterator[str]:
    """Every subcommand with each of its flags."""
    from workbench.cli import main as cli

    yield f"## Command line\n\n{prose(cli.__doc__)}"
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, sub in commands.choices.items():
        yield from _command(f"workbench {name}", sub, level=3)


def _command(title: str, sub: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{title}`\n\n{prose((sub.description or '').replace('%%', '%'))}"
    rows = list(flag_rows(sub._actions))
    if rows:
        yield table(("argument", "what"), rows)
    for action in sub._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from _command(f"{title} {name}", inner, level + 1)


def spec_file() -> Iterator[str]:
    """Every key of a spec file."""
    yield (
        "## Spec file\n\nTOML. Flags of `%dist_train` and `workbench train` set the same keys and win over the file. "
        "`spec.toml` of a run directory has further tables (`[versions]`, `[machine]`), which record the "
        "environment and are ignored when the file is read."
    )
    known = {flag.option: flag for flag in FLAGS}
    for title, kind in (("Top of the file", TrainSpec), ("`[plan]`", ParallelPlan), ("`[monitor]`", MonitorSpec)):
        rows = []
        for field in dataclasses.fields(kind):
            if field.name in ("plan", "monitor"):
                continue
            flag = known.get(field.name)
            default = "" if field.default is None else f"`{toml_value(field.default)}`"
            spelt = f"`{', '.join(flag.names)}`" if flag else ""
            what = flag.help.replace("%%", "%") if flag else _said_of(field.name, kind)
            rows.append((f"`{field.name}`", str(field.type), default, spelt, what))
        yield f"### {title}\n\n{prose(kind.__doc__)}"
        yield table(("key", "type", "default", "flag", "what"), rows)


def capabilities() -> Iterator[str]:
    """What each plan of each framework can do."""
    found = capability_table()
    yield (
        "## What each plan can do\n\n`yes`: it works, `no`: it is refused before the run starts, `?`: not tried yet. "
        "Made from what the frameworks declare; `workbench frameworks` and `%dist_frameworks` show the same. Each "
        "`yes` of a precision, of accumulation, clipping and pipelines is a case of "
        "`tests/engine/test_conformance.py`, which compares it with one process."
    )
    yield table(("", *found.plans()), found.rows())
    yield "\n".join(f"- {reason}" for reason in found.reasons())


def split_models() -> Iterator[str]:
    """Models that tensor, pipeline and context parallelism split, of every framework that does."""
    yield (
        "## Models that tensor, pipeline and context parallelism split\n\nClasses of the transformers library. "
        "Losses and gradient norms were compared with one process, with padding on either side and without. Any other "
        "class, and a setting of these that is not trained as one process does, is refused before the first step."
    )
    for framework in usable():
        for plugin in framework.plugins:
            rows = [
                (
                    family.title,
                    ", ".join(
                        f"`{name}`" + (" (tp only)" if name in family.tp and name not in family.pp else "")
                        for name in family.tp or family.cp
                    ),
                )
                for family in plugin.models
            ]
            if rows:
                yield table(("family", f"classes, under {framework.title}'s `{plugin.name}`"), rows)


#: of the weight whose bytes are shown
_SHAPE = (1000, 1000)


def communication() -> Iterator[str]:
    """The algorithms that ``--algorithm`` names."""
    whole = 4 * math.prod(_SHAPE)
    yield (
        "## Communication algorithms\n\nValues of `--algorithm` (see "
        f"[communication](communication.md)). Bytes are what a rank sends in a step of a weight of {_SHAPE[0]:,} x "
        f"{_SHAPE[1]:,}, with the number that is shown, against {whole:,} of an all-reduce in fp32; where ranks step "
        "by themselves, on average. Error feedback keeps 4 bytes of memory for each element. Settings stand behind the "
        "number, as in `diloco:50:lr=1`."
    )
    rows = []
    for name in algorithms.names():
        chosen = algorithms.chosen(name)
        found = chosen.algorithm
        sent = f"{chosen.message_bytes([_SHAPE]):,.0f}"
        settings = ", ".join(f"`{key}={value:g}`" for key, value in chosen.settings.items())
        how = (sent, found.collective, settings, found.feedback.value)
        rows.append((f"`{chosen.text}`", found.summary, *how, found.paper))
    heads = ("algorithm", "what is sent", "bytes", "collective", "settings", "error feedback", "source, and its claim")
    yield table(heads, rows)


def toml_value(value: Any) -> str:
    """A default as it would stand in a spec file."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _said_of(name: str, kind: type) -> str:
    """The sentence of a class's docstring that names an option which has no flag."""
    sentences = re.split(r"(?<=[.:])\s+(?=[A-Z`])", " ".join(prose(kind.__doc__).split()))
    return next((sentence for sentence in sentences if f"`{name}`" in sentence), "")


def python_api() -> Iterator[str]:
    """Public names of the package, with what classes offer."""
    yield "## Python\n\nEvery magic has a twin here. `import workbench` loads neither torch nor Colossal-AI."
    for name in workbench.__all__:
        found = getattr(workbench, name)
        if not inspect.isclass(found):
            yield f"### `workbench.{name}{_signature(found)}`\n\n{prose(found.__doc__)}"
            continue
        yield f"### `workbench.{name}`\n\n{prose(found.__doc__)}"
        rows = list(_members(found))
        if rows and not dataclasses.is_dataclass(found):
            yield table(("member", "what"), rows)


def _members(kind: type) -> Iterator[tuple[str, str]]:
    for name, member in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield f"`.{name}`", first_sentences(member.__doc__)
        elif isinstance(member, (classmethod, staticmethod)):
            yield f"`{kind.__name__}.{name}{_signature(member.__func__)}`", first_sentences(member.__func__.__doc__)
        elif inspect.isfunction(member):
            yield f"`.{name}{_signature(member)}`", first_sentences(member.__doc__)


def _signature(function: Any) -> str:
    """Parameters without their types, which the text says."""
    bare = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in ("self", "cls"):
            bare.append(parameter.replace(annotation=inspect.Parameter.empty))
    return re.sub(r"\s*=\s*", "=", str(inspect.Signature(bare)))


def directory() -> Iterator[str]:
    """Files of a run directory."""
    yield f"## Files of a run directory\n\n{prose(run_files.__doc__)}"
    yield table(("file", "what"), ((f"`{each.pattern}`", each.what) for each in run_files.FILES))


def tables() -> Iterator[str]:
    """Every table of a rank's log, column by column."""
    yield (
        f"## Tables\n\nSchema version {SCHEMA_VERSION}, in each stream's metadata. A file `rank-*/<table>.arrow` is an "
        "Arrow IPC stream: `pyarrow.ipc.open_stream(path).read_all()`, or `polars.read_ipc_stream(path)`. Times are "
        "seconds since the epoch; steps count from 1, step 0 is before the first."
    )
    for name, kind in TABLES.items():
        yield f"### `{name}`\n\n{prose(kind.__doc__)}"
        rows = [
            (f"`{field.name}`", _KINDS[columns_of(name)[field.name]], _default(field))
            for field in dataclasses.fields(kind)
        ]
        yield table(("column", "type", "in logs that lack it"), rows)


def _default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


def error_tree() -> Iterator[str]:
    """Every exception with its base."""
    yield "## Errors\n\nAll are in `workbench.errors`. Each says what happened, with the values, and what to do next."
    rows = [
        (f"`{name}`", f"`{'`, `'.join(base.__name__ for base in found.__bases__)}`", first_sentences(found.__doc__))
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, errors.WorkbenchError)
    ]
    yield table(("error", "is a", "when"), rows)


if __name__ == "__main__":
    print(text(), end="")
