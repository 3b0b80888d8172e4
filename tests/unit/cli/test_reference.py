"""The reference against the code: it is what the command prints, and it leaves nothing out."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import workbench
from tests.fake_run import make_fake_run
from workbench import errors
from workbench.cli import reference
from workbench.cli.commands import COMMANDS
from workbench.core import run_files
from workbench.core.config import MonitorSpec, ParallelPlan, TrainSpec
from workbench.core.flags import FLAGS
from workbench.core.records import TABLES, columns_of
from workbench.history import labels

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def test_it_is_what_the_command_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli.reference"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == PAGE, "run: python -m workbench.cli.reference > docs/reference.md"


def test_every_flag_of_a_run_is_in_it() -> None:
    chapter = PAGE.partition("### `%dist_train`")[2].partition("\n### ")[0]
    assert [flag.names for flag in FLAGS if f"| `{', '.join(flag.names)}" not in chapter] == []


def test_every_key_of_a_spec_has_a_row_with_words() -> None:
    chapter = PAGE.partition("## Spec file")[2].partition("\n## ")[0]
    for kind in (TrainSpec, ParallelPlan, MonitorSpec):
        for field in dataclasses.fields(kind):
            if field.name in ("plan", "monitor"):
                continue
            row = next(line for line in chapter.splitlines() if line.startswith(f"| `{field.name}` |"))
            assert row.rstrip(" |").rpartition(" | ")[2].strip(), row


def test_every_command_column_error_and_public_name_is_in_it() -> None:
    assert all(f"### `workbench {command.NAME}`" in PAGE for command in COMMANDS)
    for table in TABLES:
        chapter = PAGE.partition(f"### `{table}`")[2].partition("\n### ")[0]
        assert all(f"| `{name}` |" in chapter for name in columns_of(table)), table
    assert all(f"`workbench.{name}" in PAGE for name in workbench.__all__)
    kinds = [name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, Exception)]
    assert all(f"| `{name}` |" in PAGE for name in kinds) and len(kinds) > 5


def test_files_that_runs_make_are_in_it(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "2026-05-01-120000-run", steps=10, state="failed")
    labels.tag(run, ["x"])
    from workbench.export import export

    export(run, "csv")
    found = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    assert [path for path in found if not run_files.known(path)] == []
    assert not run_files.known("surprise.bin")


def test_cells_of_tables_stay_in_their_column() -> None:
    assert reference.cell("a | b\nc") == "a \\| b c"
    assert reference.table(("x",), [["1|2"]]) == "| x |\n| -- |\n| 1\\|2 |"
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block[:200]
