"""A grid of parameters over a notebook: the grid, the kernels side by side, and the comparison that they leave."""

import json
import os
from pathlib import Path

import nbformat
import pytest

from tests.programs.test_execution import ROOT
from workbench.cli.commands.sweep import grid_of, places_of, value_of
from workbench.cli.main import main
from workbench.errors import ConfigError

RUN = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.fake_run import make_fake_run
make_fake_run(os.environ["WORKBENCH_HOME"] + "/2026-05-01-120000-quickstart", steps=steps)
print(len(os.sched_getaffinity(0)))
assert open("beside.txt").read() == "found"
if fail: raise ValueError("as asked")
"""


def test_a_grid_is_every_combination() -> None:
    grid = grid_of([["lr", "1e-3", "3e-3"], ["plugin", "ddp", "zero1"]])
    assert grid == [{"lr": lr, "plugin": plugin} for lr in (0.001, 0.003) for plugin in ("ddp", "zero1")]
    assert [value_of(text) for text in ("1", "1.5", "True", "None", "zero1", "[1]")] == [
        1,
        1.5,
        True,
        None,
        "zero1",
        "[1]",
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([["lr"]], "no values"),
        ([["1x", "2"]], "a Python name"),
        ([["a", "1"], ["a", "2"]], "given twice"),
        ([["a", *map(str, range(20))], ["b", *map(str, range(20))]], "400 combinations"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(parameters: list[list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid_of(parameters)


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    monkeypatch.setattr("workbench.cluster.hosts.machine.visible_device_ids", list)
    assert [place.cores for place in places_of(2)] == [{0, 2, 4}, {1, 3}]
    assert places_of(1)[0].cores is None and {place.cores for place in places_of(6)} == {None}
    monkeypatch.setattr("workbench.cluster.hosts.machine.visible_device_ids", lambda: ["4", "5", "7"])
    assert [place.gpus for place in places_of(2)] == ["4,7", "5"]
    with pytest.raises(ConfigError, match="--parallel 3"):
        places_of(4)


def test_a_sweep_side_by_side_leaves_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [nbformat.v4.new_code_cell("steps = 5; fail = False", metadata={"tags": ["parameters"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(RUN)]), tmp_path / "nb.ipynb")
    words = ["sweep", str(tmp_path / "nb.ipynb"), "-p", "steps", "10", "20", "-p", "fail", "False", "True"]
    (tmp_path / "beside.txt").write_text("found")
    out = tmp_path / "out"
    assert main([*words, "--parallel", "2", "--out", str(out)]) == 1  # two of them fail, as asked
    table = json.loads((out / "sweep.json").read_text())
    assert [(row["parameters"]["steps"], bool(row["problem"]), row["steps"]) for row in table] == [
        (10, False, 10), (10, True, 10), (20, False, 20), (20, True, 20),
    ]  # fmt: skip
    assert "ValueError: as asked" in table[1]["problem"]
    page = (out / "report.html").read_text()
    assert "Sweep of nb: steps, fail" in page and page.count("steps=20, fail=False") >= 2
    kept = [nbformat.read(row["notebook"], 4) for row in table]
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert all(abs(int(book.cells[2].outputs[0].text) - share) <= 1 for book in kept)
    assert "report.html" in capsys.readouterr().out


def test_what_cannot_be_swept_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(tmp_path / "none.ipynb"), "-p", "a", "1"]) == 1
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "nb.ipynb")
    assert main(["sweep", str(tmp_path / "nb.ipynb"), "-p", "a", "1"]) == 1
    assert main(["sweep", str(tmp_path / "nb.ipynb"), "-p", "a", "1", "--parallel", "2"]) == 2
    cell = nbformat.v4.new_code_cell("steps, (lr, n) = 5, (1e-3, 2)", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "nb.ipynb")
    capsys.readouterr()
    assert main(["sweep", str(tmp_path / "nb.ipynb"), "-p", "rate", "1", "-p", "lr", "1"]) == 1
    assert "does not set rate, so the notebook would not use it: it sets lr, n, steps" in capsys.readouterr().err
