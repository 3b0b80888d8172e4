"""The starter project: what it holds, and that it overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from workbench.cli import main as cli
from workbench.core.config import TrainSpec, read_spec_options
from workbench.core.user_code.cell_source import check_cell


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


def test_the_package_of_a_framework(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """tests/programs/test_framework_starter.py installs one and trains with it."""
    folder = tmp_path / "mine"
    assert cli.main(["new", "framework", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"-m pip install -e {folder}" in said and "--framework mine" in said
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert written == ["mine/__init__.py", "mine/strategy.py", "pyproject.toml", "tests/test_conformance.py"]
    for file in written[:2]:
        text = (folder / file).read_text()
        compile(text, file, "exec")
        assert len(text.splitlines()) < 60


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["framework", "full"], "already exists"),
        (["framework", "two-words"], "'two-words' cannot be the name of a framework"),
        (["framework", "Mine"], "cannot be the name"),
        (["framework", "class"], "cannot be the name"),
        (["framework", "torch"], "a framework 'torch' is installed already"),
        (["framework", "zero1"], "'zero1' means something else in a plan"),
        (["framework", "tp2"], "'tp2' means something else in a plan"),
        (["framework", "topk"], "'topk' means something else in a plan"),
        (["framework", "json"], "a Python module 'json' is installed already"),
        (["framework"], "workbench new framework NAME: name it"),
        (["mine", "yours"], "one name makes a project"),
    ],
)
def test_what_no_framework_can_be_called_is_refused_before_anything_is_written(
    words: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    assert cli.main(["new", *words]) > 0
    assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["full"]
