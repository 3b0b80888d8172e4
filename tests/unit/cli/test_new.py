"""The starter project: what it holds, and that it overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from workbench.cli import main as cli
from workbench.core.cell_source import check_cell
from workbench.core.config import TrainSpec, read_spec_options


def test_a_project_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", str(tmp_path / "my-model")]) == 0
    assert f"workbench train {tmp_path}/my-model/spec.toml" in capsys.readouterr().out
    folder = tmp_path / "my-model"
    assert sorted(path.name for path in folder.iterdir()) == ["cell.py", "notebook.ipynb", "spec.toml"]
    spec = TrainSpec.from_options(read_spec_options(folder / "spec.toml"))
    assert spec.name == "my-model" and spec.plan.ranks == 2
    check_cell((folder / "cell.py").read_text())
    book = nbformat.read(folder / "notebook.ipynb", as_version=4)
    nbformat.validate(book)
    assert [cell.metadata.get("tags") for cell in book.cells].count(["parameters"]) == 1


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        assert cli.main(["new", str(tmp_path / name)]) == 1
        assert "not empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert cli.main(["new", str(tmp_path / "empty")]) == 0
    assert cli.main(["new", str(tmp_path / "two words")]) == 2 and not (tmp_path / "two words").exists()
