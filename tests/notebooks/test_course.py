"""The course notebooks on gradients and on steering, with few steps: faults are found, commands are obeyed."""

from __future__ import annotations

import re

import nbformat
import pytest
from bs4 import BeautifulSoup


def test_four_faults_are_found_by_looking(execute, few_figures: None) -> None:
    """What the notebook says of each figure is true of what the figure shows. The slow rank sleeps long enough to stand
    out from what else a busy machine does."""
    from workbench.report.notebook.exporter import render_notebook

    runs, executed = execute("02_gradients.ipynb", steps=30, delay_s=0.015)
    assert set(runs) == {"bad-init", "poisoned", "noise", "slow-rank"}
    first = runs["bad-init"].gradients().query("scope == 'reduced' and step == 1").drop_duplicates("layer")
    norm = first.set_index("layer")["norm"]
    assert 50 < norm["6"] / norm["4"] < 200 and norm[["0", "2", "4"]].max() < norm[["6", "8", "10"]].min() / 10

    local = runs["poisoned"].gradients().query("scope == 'local'")
    norms = local.assign(square=local["norm"] ** 2).groupby(["rank", "step"])["square"].sum() ** 0.5
    assert (norms[1] > norms[0]).all() and 2 < (norms[1] / norms[0]).max() < 4.5
    cosine = local.groupby("rank")["cosine"].median()
    assert cosine[1] > 0.85 and cosine[0] < 0.6

    noise, loss = runs["noise"].noise_scale(window=30)["noise_scale"], runs["noise"].metrics()["loss"]
    assert noise.iloc[-1] > 1.5 * noise.iloc[29] and loss.iloc[-30:].mean() < 0.7 * loss.iloc[:30].mean()

    slow = runs["slow-rank"].verdict()
    assert slow.straggler is not None and (slow.straggler.rank, slow.straggler.phase) == (1, "data")
    each = runs["slow-rank"].phases().groupby(["step", "rank", "phase"])["duration_ms"].sum()
    spent = each.unstack("phase").groupby("rank").median()
    assert spent.loc[1, "data"] > 32 * 15, "its data set sleeps for each sample"
    assert spent.loc[0, "data"] < spent.loc[1, "data"] and spent.loc[0, "communication"] > spent.loc[1, "communication"]

    cells = {cell.id: cell for cell in nbformat.read(executed, 4).cells}
    for cell in ("gradients-08", "gradients-11", "gradients-14", "gradients-18"):
        assert any("image/png" in output.get("data", {}) for output in cells[cell].outputs), "there is a figure"
    assert render_notebook(executed).stat().st_size > 100_000


def test_a_training_is_paused_rolled_back_and_branched(execute, few_figures: None) -> None:
    from workbench.report.notebook.exporter import render_notebook

    runs, executed = execute("03_steering.ipynb", steps=450)
    assert set(runs) == {"steered", "bolder", "careful"}
    assert (runs["steered"].status, runs["bolder"].status, runs["careful"].status) == (
        "stopped", "finished", "finished",
    )  # fmt: skip
    (shown,) = [cell for cell in nbformat.read(executed, 4).cells if ".loc[60::4]" in cell.source]
    rows = BeautifulSoup(shown.outputs[0]["data"]["text/html"], "html.parser").tbody.find_all("tr")
    table = [[float(cell.text) for cell in row.find_all("td")] for row in rows]
    good = [loss for loss, lr, _ in table if lr < 0.1]
    assert table[-1][0] > 2 * max(good), "the text says that the loss has jumped"
    events = runs["steered"].events().query("kind == 'control'")
    asked = [["lr", "pause", "rollback", "lr", "resume", "branch"]] * 2
    assert [events[events["rank"] == rank]["name"].tolist() for rank in (0, 1)] == asked
    rolled_back = events[events["name"] == "rollback"]
    assert rolled_back["value"].tolist() == [60, 60]
    assert runs["bolder"].spec.lr == pytest.approx(6e-3)
    assert render_notebook(executed).stat().st_size > 100_000


def test_an_alert_names_the_fault_that_the_loss_does_not_show(execute, few_figures: None) -> None:
    runs, executed = execute("07_warned_before_the_loss.ipynb", steps=24, at=12)
    alerts = runs["eight-bits"].alerts()
    (dead,) = alerts[alerts["name"] == "dead_layer"].to_dict("records")
    assert dead["step"] == 15 and dead["where"] == "backward" and "self_attn" in dead["layer"]
    loss = runs["eight-bits"].metrics()["loss"]
    assert loss.iloc[-5:].mean() < loss.iloc[:12].mean(), "the fault does not stop the loss from falling"
    book = nbformat.read(executed, 4)
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    assert "step 15: dead layer" in printed and "step 15: dead layer" in runs["eight-bits"].output()


def test_a_plan_is_verified_and_a_planted_error_is_named(execute, few_figures: None) -> None:
    """The error scales what flows back into the second layer: its MLP, and all that is before it in part."""
    runs, executed = execute("08_is_it_right.ipynb", steps=3)
    assert set(runs) == {"right", "wrong"}
    assert runs["right"].verification().same
    found = runs["wrong"].verification()
    assert found.verdict == "differs" and found.first_step == 1 and not found.ranked("loss")
    halved = [f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    assert any(all(name in cause for name in halved) and "is 0.5 times" in cause for cause in found.causes), str(found)
    cells = {cell.id: cell for cell in nbformat.read(executed, 4).cells}
    for cell in ("verify-04", "verify-06"):
        assert any("<svg" in output.get("data", {}).get("text/html", "") for output in cells[cell].outputs)
    printed = "".join(output.get("text", "") for output in cells["verify-08"].outputs)
    assert printed.startswith("1\n") and "0.5 times the reference" in printed


def test_nine_plans_train_one_model(execute, few_figures: None) -> None:
    runs, executed = execute("09_one_model_nine_plans.ipynb", steps=3)
    assert len(runs) == 9 and {run.status for run in runs.values()} == {"finished"}
    losses = {name: run.metrics()["loss"].tolist() for name, run in runs.items()}
    for name, found in losses.items():
        assert found == pytest.approx(losses["ddp2"], abs=1e-3), name
    cells = {cell.id: cell for cell in nbformat.read(executed, 4).cells}
    pictures = [output.get("data", {}).get("text/html", "") for output in cells["plans-06"].outputs]
    assert len(pictures) == 4 and all("<svg" in picture for picture in pictures)
    assert "estimated step" in "".join(str(output.get("data", "")) for output in cells["plans-10"].outputs)


def test_three_hangs_are_found_by_asking_why(execute, few_figures: None) -> None:
    runs, executed = execute("10_when_it_hangs.ipynb", steps=40)
    assert {name: run.status for name, run in runs.items()} == {"late": "finished", "orphaned": "failed"}
    assert runs["late"].last_step == 40
    cells = {cell.id: cell for cell in nbformat.read(executed, 4).cells}

    def told(cell: str) -> str:
        return "".join(str(output.get("data", {}).get("text/plain", "")) for output in cells[cell].outputs)

    assert "rank 1 has not entered all_reduce no. " in told("hangs-06") and "it has finished its cell" in told(
        "hangs-06"
    )
    assert "cell finished (1,) (0,)" in cells["hangs-08"].outputs[0]["text"]
    assert re.search(
        r"rank 1 has not entered .*: it is in data loading, line \d+ of the cell in __getitem__", told("hangs-11")
    )
    assert "failed at step" in told("hangs-17") and "on rank 1: killed by signal 9 (SIGKILL)" in told("hangs-17")


def test_algorithms_of_communication_are_compared(execute, few_figures: None) -> None:
    runs, executed = execute("11_does_compression_help.ipynb", steps=40)
    assert {run.status for run in runs.values()} == {"finished"} and len(runs) == 9, "ddp twice, under one name"
    last = {
        name: runs[f"small-{name}-1024"].metrics()["loss"].iloc[-8:].mean()
        for name in ("ddp", "topk-0.01", "topk-0.01-ef")
    }
    assert last["topk-0.01"] > 1.2 * last["topk-0.01-ef"], "under SGD, what was not sent is lost without error feedback"
    cells = {cell.id: cell for cell in nbformat.read(executed, 4).cells}

    def told(cell: str) -> str:
        return "".join(str(output.get("data", {}).get("text/plain", "")) for output in cells[cell].outputs)

    assert "times fewer bytes a step than ddp" in told("lab-04") and "There is one seed" in told("lab-04")
    assert all(name in told("lab-08") for name in ("ddp", "topk:0.01", "topk:0.01+ef"))
    assert "every-2nd+ef sent" in told("lab-11")
    assert "bytes" in told("lab-13")


def test_a_run_goes_on_with_the_samples_that_are_left(execute, few_figures: None) -> None:
    runs, executed = execute("12_a_stream_of_tokens.ipynb", steps=20)
    assert set(runs) == {"stream", "further"}
    assert (runs["stream"].status, runs["further"].status) == ("finished", "stopped")
    losses = [run.metrics().set_index("step")["loss"] for run in runs.values()]
    assert sorted((loss.index[0], len(loss) >= 20) for loss in losses) == [(1, True), (21, True)]
    (turned,) = runs["further"].events().query("name == 'mix.words' and rank == 0").to_dict("records")
    assert (turned["value"], turned["old_value"]) == (3, 1)
    text = executed.read_text()
    assert "duplicates left out" in text and "sequences of 64; vocabulary of 257" in text


def test_parts_of_ones_own_do_what_they_say(execute, few_figures: None, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    runs, executed = execute("13_parts_of_your_own.ipynb", steps=3)
    assert {name: run.status for name, run in runs.items()} == {"counted": "finished", "layout": "finished"}
    cells = {cell.id: cell for cell in nbformat.read(executed, 4).cells}

    def printed(cell: str) -> str:
        return "".join(output.get("text", "") for output in cells[cell].outputs)

    assert f"{4 * 4160} bytes of gradients before step 5" in printed("extending-07")
    assert "4160 bytes are the weights" in printed("extending-07")
    found = re.findall(r"^(eager|fused): (\S+) from float64, (\S+) ms", printed("extending-15"), re.M)
    assert [name for name, _, _ in found] == ["eager", "fused"], printed("extending-15")
    assert all(0 <= float(difference) < 5e-6 and float(time) > 0 for _, difference, time in found)
