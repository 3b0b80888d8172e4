"""The course notebook on scripts of one's own: observed under torchrun, steered, and watched without a line of code."""

from __future__ import annotations

import nbformat


def test_a_script_is_watched_and_steered_from_the_notebook(execute, few_figures: None) -> None:
    runs, executed = execute("06_watch_a_script.ipynb", steps=300)
    assert set(runs) == {"watched", "first-look"} and {run.status for run in runs.values()} == {"finished"}
    watched = runs["watched"]
    losses = watched.metrics().set_index("step")
    assert watched.plan.ranks == 2 and watched.last_step == 300
    assert losses["loss"].iloc[-20:].mean() < losses["loss"].iloc[:20].mean() / 2
    asked = watched.events().query("kind == 'control' and rank == 0")["name"].tolist()
    assert asked == ["pause", "lr", "resume"]
    assert sorted(set(losses["lr"]), reverse=True) == [0.2, 0.1]
    first = runs["first-look"]
    assert first.last_step == 40 and first.metrics()["loss"].iloc[-1] < first.metrics()["loss"].iloc[0] / 10
    cells = nbformat.read(executed, 4).cells
    (printed,) = [cell for cell in cells if cell.source.startswith("!{sys.executable} -m workbench")]
    assert "loss " in str(printed.outputs)
