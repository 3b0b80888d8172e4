"""The pages (README, CONTRIBUTING, docs/) against the code: links, names, messages, columns, and what CI runs."""

import argparse
import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workbench
from tests.unit.imports import ROOT, parsed, sources
from workbench.cli.commands import COMMANDS
from workbench.cli.main import parser
from workbench.cli.reference import table
from workbench.core import run_files
from workbench.core.config import TrainSpec, read_spec_options
from workbench.core.plans.capability_table import capability_table
from workbench.core.records import TABLES, columns_of

PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
PAGES["CONTRIBUTING.md"] = ROOT / "CONTRIBUTING.md"
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
TEST_COMMAND = "python -m pip install uv && python -m uv run pytest"
#: the start of a path that a page may name, and the files at the top
FOLDERS = ("workbench/", "widgets/", "magics/", "tests/", "docs/", "notebooks/", ".ci/")
#: pages that name other tools' magics
OF_OTHERS = ("docs/coming-from.md",)

each_page = pytest.mark.parametrize("page", PAGES)


def fences(page: str) -> list[tuple[str, str]]:
    """Language and text of every code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", TEXTS[page], re.M | re.S)


def prose(page: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```\n", "", TEXTS[page], flags=re.M | re.S)


def spans(page: str) -> list[str]:
    """What stands between backticks in a page's prose."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page, as rows of cells, without their headers."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", prose(page), re.M):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        assert {len(row) for row in rows} == {len(rows[0])}, block[:200]
        found.append([[cell.strip() for cell in row] for row in rows[2:]])
    return found


# --------------------------------------------------------------------------------------------------------------- links


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@each_page
def test_links_lead_to_files_and_headings(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        file = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        name = str(file.relative_to(ROOT))
        if not file.exists() or (anchor and anchor not in anchors(name)):
            broken.append(target)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS["README.md"])}
    assert set(PAGES) - {"README.md"} <= linked


def test_the_readme_fits_a_few_screens() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 130


def test_the_readme_says_what_works_with_each_framework() -> None:
    found = capability_table()
    heads = ("", *(f"`{name}`" for name in found.frameworks()))
    assert table(heads, found.by_framework()) in TEXTS["README.md"]


# --------------------------------------------------------------------------------------------------------------- names


@functools.cache
def known_magics() -> dict[str, Any]:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    import magics

    shell = InteractiveShell(config=Config({"Workbench": {"warm": False}, "HistoryManager": {"enabled": False}}))
    magics.load(shell)
    registered = shell.magics_manager.magics
    return {
        name: function
        for kind in ("line", "cell")
        for name, function in registered[kind].items()
        if name == "dist" or name.startswith("dist_")
    }


@functools.cache
def known_flags() -> set[str]:
    """Every flag of a magic or a subcommand."""
    pending: list[argparse.ArgumentParser] = [parser(), *(each.parser for each in known_magics().values())]
    flags: set[str] = set()
    while pending:
        for action in pending.pop()._actions:
            flags.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                pending += action.choices.values()
    return flags


@each_page
def test_every_magic_named_exists(page: str) -> None:
    named = set(re.findall(r"%%?(dist(?:_\w+)?)\b(?!_)", TEXTS[page]))
    theirs = {"dist_init", "dist_shutdown"} if page in OF_OTHERS else set()
    assert named - theirs - set(known_magics()) == set()


@each_page
def test_every_flag_named_exists(page: str) -> None:
    unknown = []
    for span in [*spans(page), *(line for kind, text in fences(page) for line in text.splitlines())]:
        if span.startswith("tensorboard "):
            continue
        program, module = re.search(r"(\w+)\.py\b", span), re.search(r"python -m (tests[.\w]+)", span)
        script = ROOT / "tests" / "benchmarks" / f"{program[1]}.py" if program else None
        script = ROOT / f"{module[1].replace('.', '/')}.py" if module else script
        source = script.read_text(encoding="utf-8") if script and script.exists() else ""
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
            if flag not in known_flags() and f'"{flag}"' not in source:
                unknown.append(f"{flag} in {span}")
    assert unknown == []


@each_page
def test_every_command_named_exists(page: str) -> None:
    known = {command.NAME for command in COMMANDS}
    named = {match[1] for span in spans(page) if (match := re.match(r"workbench ([a-z]+)", span))}
    assert named <= known
    actions = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    runs = actions.choices["runs"]._actions
    known_actions = next(set(action.choices) for action in runs if isinstance(action, argparse._SubParsersAction))
    named_actions = {match[1] for span in spans(page) if (match := re.match(r"workbench runs ([a-z]+)", span))}
    assert named_actions <= known_actions


@each_page
def test_every_public_name_exists(page: str) -> None:
    texts = [*spans(page), *(text for kind, text in fences(page) if kind == "python")]
    verbs = {name for text in texts for name in re.findall(r"\b(?:run|Run)\.(\w+)\(", text)}
    assert {name for name in verbs if not hasattr(workbench.Run, name)} == set()
    names = {name for text in texts for name in re.findall(r"^workbench\.(\w+)", text)}
    modules = {path.stem for path in (ROOT / "workbench").iterdir()}
    assert {name for name in names if name not in modules and not hasattr(workbench, name)} == set()


@each_page
def test_every_file_and_function_named_exists(page: str) -> None:
    missing = []
    for span in spans(page):
        for word in shlex.split(span.replace("'", "")):
            if not word.startswith(FOLDERS):
                continue
            path, _, function = word.partition(":")
            found = list(ROOT.glob(path))
            if not found or (function and function not in functions_of(found[0])):
                missing.append(word)
    assert missing == []


def functions_of(path: Path) -> set[str]:
    """Names of the functions and methods that a file defines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@each_page
def test_every_benchmark_named_exists(page: str) -> None:
    scripts = {name for span in spans(page) for name in re.findall(r"^(\w+\.py)\b", span)}
    scripts -= {"cell.py", *(Path(each.pattern).name for each in run_files.FILES)}
    assert [name for name in scripts if not (ROOT / "tests" / "benchmarks" / name).exists()] == []


# ---------------------------------------------------------------------------------------------------------- code blocks


@each_page
def test_code_blocks_parse(page: str, tmp_path: Path) -> None:
    from IPython.core.inputtransformer2 import TransformerManager

    for language, text in fences(page):
        if language == "python":
            ast.parse(TransformerManager().transform_cell(text.partition("\n")[2] if text.startswith("%%") else text))
        elif language == "toml":
            file = tmp_path / "spec.toml"
            file.write_text(text, encoding="utf-8")
            TrainSpec.from_options(read_spec_options(file))
        elif language == "sh":
            assert all(shlex.split(line, comments=True) for line in text.splitlines())


@each_page
def test_lines_that_run_workbench_are_understood(page: str) -> None:
    for _, text in fences(page):
        for line in text.splitlines():
            words = shlex.split(line, comments=True) if "uv run workbench" in line else []
            if words:
                asked = parser().parse_args(words[words.index("workbench") + 1 :])
                assert callable(asked.run), line


# --------------------------------------------------------------------------------------------------- tables of one page


def test_every_magic_has_a_row_and_every_row_a_magic() -> None:
    rows = {name for row in tables("docs/magics.md")[0] for name in re.findall(r"%(dist\w*)", row[0])}
    assert rows == set(known_magics())


def test_every_subcommand_has_a_row() -> None:
    rows = {name for row in tables("docs/command-line.md")[0] for name in re.findall(r"^`workbench (\w+)", row[0])}
    assert rows == {command.NAME for command in COMMANDS}


def test_columns_of_the_log_equal_the_code() -> None:
    rows = {row[0]: re.findall(r"`(\w+)`", row[1]) for row in tables("docs/run-directory.md")[1]}
    assert rows == {table: list(columns_of(table)) for table in TABLES}


def test_every_kind_of_file_has_a_row() -> None:
    rows = [path.rstrip("/") for row in tables("docs/run-directory.md")[0] for path in re.findall(r"`(.+?)`", row[0])]
    assert [path for path in rows if not run_files.known(path) and not run_files.known(f"{path}/x")] == []
    tops = {path.split("/")[0] for path in rows}
    wanted = {each.pattern.split("/")[0].replace("?????", "00000") for each in run_files.FILES}
    assert wanted - tops == {"nonfinite"}, "nonfinite/ is of older versions; every other file has a row"


def test_every_plugin_has_a_row() -> None:
    from workbench.core.frameworks import framework, installed

    section = (ROOT / "docs" / "magics.md").read_text(encoding="utf-8").partition("## Plans")[2]
    above, _, below = section.partition("\n\n|")
    cells = re.findall(r"^\| ([^|]+) \|", below.partition("\n\n")[0], re.M)
    rows = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert rows == {plugin.name for name in installed() for plugin in framework(name).plugins}
    assert set(installed()) <= set(re.findall(r"`(\w+)`", above))


def test_every_room_has_a_row() -> None:
    rows = [row[0].strip("`").rstrip("/") for row in tables("docs/architecture.md")[0]]
    packages = {f"workbench/{path.parent.name}" for path in (ROOT / "workbench").glob("*/__init__.py")}
    assert set(rows) == packages | {"widgets", "magics"} and len(rows) == len(set(rows))
    rows = [row[0].strip("`").rstrip("/") for row in tables("docs/architecture.md")[1]]
    assert sorted(rows) == sorted(path.parent.name for path in (ROOT / "workbench/engine").glob("*/__init__.py"))


def test_every_figure_of_performance_has_its_command() -> None:
    starts = [row[0] for row in tables("docs/performance.md")[0]]
    assert [s for s in starts if not re.match(r"`\w+\.py|the same|for comparison", s)] == []


def test_the_glossary_is_in_order() -> None:
    words = [row[0] for row in tables("docs/glossary.md")[0]]
    assert words == sorted(set(words), key=str.lower)


# ------------------------------------------------------------------------------------------------------------- messages


def test_every_message_is_one_that_the_code_says() -> None:
    """Its fixed words stand in one text of the code, with a value wherever the page has "…", a number or 'x'."""
    said = set(texts_of_the_code())
    messages = [text for row in tables("docs/troubleshooting.md")[0] for text in re.findall(r"`([^`]+)`", row[0])]
    messages = [text for text in messages if not text.startswith("workbench ")]
    assert len(messages) > 10
    patterns = {text: pattern_of(text) for text in messages}
    assert [text for text, pattern in patterns.items() if not any(map(pattern.search, said))] == []


def texts_of_the_code() -> Iterator[str]:
    """Every text in the sources; a value that is put in is a zero byte."""
    for path in sources().values():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def pattern_of(message: str) -> re.Pattern[str]:
    """A message of the page as a pattern over such texts."""
    parts = re.split(r"(\s?…\s?|'x'|\d+)", message)
    return re.compile("".join(".*" if "…" in p else "\0" if p == "'x'" or p.isdigit() else re.escape(p) for p in parts))


def test_ci_runs_the_readmes_test_command() -> None:
    assert TEST_COMMAND in TEXTS["README.md"]
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith(TEST_COMMAND)
