"""The README's tables against the code, and its two lines against what CI runs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from workbench.cli.commands import COMMANDS
from workbench.core.records import TABLES, columns_of

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEST_COMMAND = "python -m pip install uv && python -m uv run pytest"


def table_after(heading: str) -> list[str]:
    """First cells of the first table after a heading, its header left out."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [row.split("|")[1].strip() for row in rows[2:]]


def test_every_magic_has_a_row_and_every_row_a_magic() -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    import magics

    shell = InteractiveShell(config=Config({"Workbench": {"warm": False}, "HistoryManager": {"enabled": False}}))
    magics.load(shell)
    known = {name for kind in ("line", "cell") for name in shell.magics_manager.magics[kind] if name.startswith("dist")}
    rows = {name for cell in table_after("Magics") for name in re.findall(r"%(dist\w*)", cell)}
    assert rows == known


def test_every_subcommand_has_a_row() -> None:
    rows = {match[1] for cell in table_after("Command line") if (match := re.match(r"`workbench (\w+)", cell))}
    assert rows == {command.NAME for command in COMMANDS}


def test_every_column_of_a_run_directory_is_named() -> None:
    section = README.partition("Files of a run directory")[2]
    missing = [f"{table}.{name}" for table in TABLES for name in columns_of(table) if f"`{name}`" not in section]
    assert not section or missing == []


def test_every_message_is_one_that_the_code_says() -> None:
    """Its fixed words stand in one text of the code, with a value wherever the README has "…", a number or 'x'."""
    said = list(texts_of_the_code())
    messages = [text for cell in table_after("When something goes wrong") for text in re.findall(r"`([^`]+)`", cell)]
    messages = [text for text in messages if not text.startswith("workbench ")]
    assert len(messages) > 10
    patterns = {text: pattern_of(text) for text in messages}
    assert [text for text, pattern in patterns.items() if not any(map(pattern.search, said))] == []


def texts_of_the_code() -> Iterator[str]:
    """Every text in the sources; a value that is put in is a zero byte."""
    for folder in ("workbench", "magics", "widgets"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def pattern_of(message: str) -> re.Pattern[str]:
    """A message of the README as a pattern over such texts."""
    parts = re.split(r"(\s?…\s?|'x'|\d+)", message)
    return re.compile("".join(".*" if "…" in p else "\0" if p == "'x'" or p.isdigit() else re.escape(p) for p in parts))


def test_ci_runs_the_readmes_test_command() -> None:
    assert TEST_COMMAND in README
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith(TEST_COMMAND)


def test_the_pictures_and_files_it_points_to_are_there() -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert [target for target in targets if not (ROOT / target.partition("#")[0]).exists()] == []
