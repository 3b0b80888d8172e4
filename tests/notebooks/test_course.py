"""The course notebooks on gradients and on steering, with few steps: faults are found, commands are obeyed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest

from workbench.commands import notebooks
from workbench.report.notebook import render_notebook
from workbench.run import Run


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Execute a course notebook; returns its runs by name and the executed file."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))

    def run(name: str, **values: object) -> tuple[dict[str, Run], Path]:
        executed = tmp_path / name
        papermill.execute_notebook(
            str(notebooks.folder() / name),
            str(executed),
            values,
            kernel_name="python3",
            cwd=str(tmp_path),
            progress_bar=False,
        )
        cells = nbformat.read(executed, 4).cells
        assert not any(o.get("name") == "stderr" for cell in cells for o in cell.get("outputs", []))
        return {run.name: run for run in map(Run, (tmp_path / "runs").iterdir())}, executed

    return run


def test_four_faults_are_found_by_looking(execute) -> None:
    runs, executed = execute("02_gradients.ipynb", steps=30)
    assert set(runs) == {"bad-init", "poisoned", "noise", "slow-rank"}
    first = runs["bad-init"].gradients().query("scope == 'reduced' and rank == 0 and step == 1").set_index("layer")
    assert first.loc["6", "norm"] > 20 * first.loc["4", "norm"]
    local = runs["poisoned"].gradients().query("scope == 'local'").groupby("rank")[["norm", "cosine"]].median()
    assert local.loc[1, "norm"] > 1.5 * local.loc[0, "norm"] and local.loc[1, "cosine"] > local.loc[0, "cosine"]
    assert runs["noise"].noise_scale()["noise_scale"].iloc[-1] > 0
    slow = runs["slow-rank"].verdict()
    assert slow.straggler is not None and (slow.straggler.rank, slow.straggler.phase) == (1, "data")
    assert render_notebook(executed).stat().st_size > 100_000


def test_a_training_is_paused_rolled_back_and_branched(execute) -> None:
    runs, executed = execute("03_steering.ipynb", steps=450)
    assert set(runs) == {"steered", "bolder", "careful"}
    assert (runs["steered"].status, runs["bolder"].status, runs["careful"].status) == (
        "stopped", "finished", "finished",
    )  # fmt: skip
    (shown,) = [cell for cell in nbformat.read(executed, 4).cells if ".tail(24)" in cell.source]
    (table,) = pd.read_html(io.StringIO(shown.outputs[0]["data"]["text/html"]), index_col=0)
    good = table[table["lr"] < 0.1]["loss"]
    assert len(good) and table["loss"].iloc[-1] > 2 * good.max(), "the text says that the loss has jumped"
    events = runs["steered"].events().query("kind == 'control'")
    asked = [["lr", "pause", "rollback", "lr", "resume", "branch"]] * 2
    assert [events[events["rank"] == rank]["name"].tolist() for rank in (0, 1)] == asked
    rolled_back = events[events["name"] == "rollback"]
    assert rolled_back["value"].tolist() == [60, 60]
    assert runs["bolder"].spec.lr == pytest.approx(6e-3)
    assert render_notebook(executed).stat().st_size > 100_000
