"""``%dist_train`` as a user types it, on two real ranks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from tests.waiting import once, until
from workbench.cluster.session import Session
from workbench.errors import ConfigError, RanksBusyError, RunError, SchemaError
from workbench.run.api import Run, newest_live
from workbench.telemetry import progress

LLAMA = "--recipe stdlib-llama -n 2 --batch-size 4 --steps 6 --eval-every 0 --grad-every 3 --quiet"
CELL = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn(64, 8)
dataset = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
criterion = torch.nn.MSELoss()
"""
SLOW = (
    CELL.replace("criterion =", "import time\nmse =")
    + """
def loss_fn(model, batch):
    time.sleep(0.02)
    return mse(model(batch[0]), batch[1])
"""
)


def held(gate: Path) -> str:
    """A cell that takes no step before the file ``gate`` is there."""
    return (
        SLOW.replace("time.sleep(0.02)", f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)") + "import os\n"
    )


def train(shell: InteractiveShell, line: str, cell: str | None = None) -> Run:
    if cell is None:
        return shell.run_line_magic("dist_train", line)
    return shell.run_cell_magic("dist_train", line, cell)


@pytest.fixture(scope="module")
def llama(shell: InteractiveShell) -> Run:
    """A finished run, data parallel; it brings up the ranks by itself when none are up."""
    return train(shell, f"{LLAMA} --plugin ddp --name first").wait(timeout=300)


def test_a_run_returns_at_once_and_finishes(shell: InteractiveShell, two_ranks: Session, tmp_path: Path) -> None:
    run = train(shell, "-n 2 --steps 6 --quiet", held(tmp_path / "gate"))
    assert run.last_step == 0 and run.status in ("starting", "running")
    (tmp_path / "gate").touch()
    assert run.wait(timeout=300) is run
    assert run.status == "finished" and run.last_step == 6


def test_what_a_run_tells(llama: Run) -> None:
    metrics = llama.metrics()
    assert metrics["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(metrics[["loss", "lr", "grad_norm", "tps", "step_time_ms"]]).all().all()
    per_rank = llama.metrics(per_rank=True)
    assert per_rank.groupby("step")["rank"].apply(list).tolist() == [[-1, 0, 1]] * 6
    mean = per_rank[per_rank["rank"] >= 0].groupby("step")["loss"].mean()
    np.testing.assert_allclose(metrics["loss"], mean)
    assert set(llama.devices()["rank"]) == {0, 1} and (llama.devices()["rss_bytes"] > 0).all()
    events = llama.events()
    states = events[events["kind"] == "state"].groupby("rank")["name"].apply(list)
    assert states.tolist() == [["starting", "running", "finished"]] * 2


def test_gradients_of_every_layer_and_the_global_norm_agree(llama: Run) -> None:
    gradients = llama.gradients()
    assert sorted(set(gradients.dropna(subset="max_abs")["step"])) == [1, 3, 6], "full sets"
    assert {"model.embed_tokens", "model.layers.0.self_attn.q_proj", "lm_head"} <= set(gradients["layer"])
    reduced = gradients[gradients["scope"] == "reduced"].drop_duplicates(["step", "layer"])
    norms = (reduced.groupby("step")["norm"].apply(lambda norm: (norm**2).sum())) ** 0.5
    assert norms.index.tolist() == [1, 2, 3, 4, 5, 6], "norms"
    metrics = llama.metrics().set_index("step")
    np.testing.assert_allclose(norms, metrics.loc[norms.index, "grad_norm"], rtol=1e-5)


@pytest.mark.parametrize("plan", ["--plugin zero1", "--plugin zero2", "--tp 2", "--pp 2"])
def test_another_plan_in_the_same_session_trains_the_same(shell: InteractiveShell, llama: Run, plan: str) -> None:
    run = train(shell, f"{LLAMA} {plan}").wait(timeout=300)
    np.testing.assert_allclose(run.metrics()["loss"], llama.metrics()["loss"], atol=1e-5)
    np.testing.assert_allclose(run.metrics()["grad_norm"], llama.metrics()["grad_norm"], rtol=1e-4)
    assert set(run.gradients()["layer"]) == set(llama.gradients()["layer"])


def plain_losses(steps: int, batch_size: int) -> list[float]:
    names: dict = {}
    exec(CELL, names)
    losses = []
    for step in range(steps):
        rows = [(step * batch_size + i) % 64 for i in range(batch_size)]
        x, y = (torch.stack(column) for column in zip(*(names["dataset"][row] for row in rows), strict=True))
        loss = names["criterion"](names["model"](x), y)
        names["optimizer"].zero_grad()
        loss.backward()
        names["optimizer"].step()
        losses.append(loss.item())
    return losses


def test_a_run_trains_with_the_edited_module_and_says_so(
    shell: InteractiveShell, two_ranks: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks follow the notebook's working directory, where the module lies, and reload it."""
    monkeypatch.chdir(tmp_path)
    cell = f"from own_loss import scale\n{CELL}\n"
    cell += "loss_fn = lambda model, batch: scale(criterion(model(batch[0]), batch[1]))"
    told = []
    for factor in (1, 3):
        Path("own_loss.py").write_text(f"def scale(loss):\n    return {factor} * loss\n")
        run = train(shell, "-n 2 --steps 1 --batch-size 16 --quiet", cell).wait(timeout=300)
        events = run.events()
        reloads = events[events["name"] == "reloaded_modules"]
        told.append(dict(zip(reloads["rank"], reloads["value"], strict=True)))
        np.testing.assert_allclose(run.metrics()["loss"], [factor * plain_losses(1, 16)[0]], rtol=1e-5)
    assert told == [{}, {0: "own_loss", 1: "own_loss"}]


def test_a_cell_trains_as_a_plain_loop_does(shell: InteractiveShell, two_ranks: Session) -> None:
    run = train(shell, "-n 2 --steps 20 --batch-size 16 --quiet --name cell", CELL).wait(timeout=300)
    np.testing.assert_allclose(run.metrics()["loss"], plain_losses(20, 16), atol=1e-5)
    assert set(run.gradients()["layer"]) == {"0", "2"}


def test_lr_given_as_a_flag_wins_over_the_cells(shell: InteractiveShell, two_ranks: Session) -> None:
    run = train(shell, "-n 2 --steps 2 --lr 0.25 --quiet", CELL).wait(timeout=300)
    assert run.metrics()["lr"].tolist() == [0.25, 0.25]


def test_lr_beside_a_scheduler_of_the_cell_is_refused(shell: InteractiveShell, two_ranks: Session) -> None:
    cell = CELL + "lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)\n"
    with pytest.raises(RunError, match="contradict each other") as caught:
        train(shell, "-n 2 --steps 2 --lr 0.25 --quiet", cell).wait(timeout=300)
    assert not caught.value.traceback  # the message says what to change; where we found out helps nobody


def test_a_name_left_by_an_earlier_cell_is_no_part_of_this_one(shell: InteractiveShell, two_ranks: Session) -> None:
    two_ranks.execute("dataloader = 'stale'; lr_scheduler = 'stale'; helper = 16").raise_on_error()
    cell = CELL.replace("(8, 16)", "(8, helper)")
    run = train(shell, "-n 2 --steps 20 --batch-size 16 --quiet", cell).wait(timeout=300)
    np.testing.assert_allclose(run.metrics()["loss"], plain_losses(20, 16), atol=1e-5)


def test_stop_ends_all_ranks_at_the_same_step(shell: InteractiveShell, two_ranks: Session) -> None:
    run = train(shell, "-n 2 --steps 5000 --quiet", SLOW)
    until(lambda: run.last_step >= 3)
    run.stop()
    run.wait(timeout=300)
    assert run.status == "stopped" and run.last_step < 5000
    rows = run.metrics(per_rank=True)
    assert rows[rows["rank"] >= 0].groupby("rank")["step"].max().nunique() == 1
    with pytest.raises(RunError, match="so stop has no effect"):
        run.stop()


def test_ctrl_c_while_waiting_stops_the_run_cleanly(shell: InteractiveShell, two_ranks: Session) -> None:
    def trains() -> bool:
        run = newest_live()
        return run is not None and run.last_step >= 2

    once(trains, lambda: os.kill(os.getpid(), signal.SIGINT))
    run = train(shell, "-n 2 --steps 5000 --quiet --wait", SLOW)
    assert run.status == "stopped" and 1 < run.last_step < 5000


def test_a_second_run_while_one_trains_is_refused_and_harms_nothing(
    shell: InteractiveShell, two_ranks: Session, tmp_path: Path
) -> None:
    first = train(shell, "-n 2 --steps 60 --quiet --name busy", held(tmp_path / "gate"))
    with pytest.raises(RanksBusyError, match="'busy' is training"):
        train(shell, "-n 2 --steps 5 --quiet", CELL)
    with pytest.raises(RanksBusyError, match="busy"):
        two_ranks.execute("1 + 1")
    (tmp_path / "gate").touch()
    assert first.wait(timeout=300).status == "finished"


def test_a_cell_that_fails_on_one_rank_names_it_with_the_line(shell: InteractiveShell, two_ranks: Session) -> None:
    cell = CELL + "import os\nif os.environ['RANK'] == '1':\n    raise KeyError('only here')\n"
    run = train(shell, "-n 2 --steps 5 --quiet", cell)
    with pytest.raises(RunError, match="on rank 1: KeyError") as caught:
        run.wait(timeout=300)
    first, *rest = caught.value.traceback.splitlines()[1:]
    assert first.endswith('cell.py", line 10, in <module>') and run.name in first  # nothing of ours comes before it
    assert "raise KeyError('only here')" in rest[0]
    assert train(shell, "-n 2 --steps 2 --quiet", CELL).wait(timeout=300).status == "finished"


def test_a_loss_that_raises_in_the_middle_on_one_rank_ends_both(shell: InteractiveShell, two_ranks: Session) -> None:
    cell = SLOW.replace("time.sleep(0.02)", "assert not (os.environ['RANK'] == '1' and spec_steps()), 'planted'")
    cell = "import os\nseen = []\ndef spec_steps():\n    seen.append(1)\n    return len(seen) > 3\n" + cell
    run = train(shell, "-n 2 --steps 50 --quiet", cell)
    with pytest.raises(RunError, match="on rank 1: AssertionError: planted"):
        run.wait(timeout=300)
    assert train(shell, "-n 2 --steps 2 --quiet", CELL).wait(timeout=300).status == "finished"


def test_nothing_starts_when_the_request_is_wrong(shell: InteractiveShell, two_ranks: Session, runs: Path) -> None:
    before = sorted(runs.iterdir())
    for line, cell, words in (
        ("-n 2 --quiet", CELL.replace("model =", "modell ="), "does not define model"),
        ("--recipe stdlib-llama -n 2 --tp 2 --plugin ddp --quiet", None, "needs --plugin hybrid"),
        ("--recipe stdlib-llama -n 2 --batch-size 3 --quiet", None, "use 4"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(shell, line, cell)
    with pytest.raises(ConfigError, match="line 1 of the cell is not valid Python"):
        train(shell, "-n 2 --quiet", "model = (")
    assert sorted(runs.iterdir()) == before
    assert {status.state for status in two_ranks.status()} == {"idle"}


def test_a_run_of_more_ranks_than_are_up_adds_them(
    shell: InteractiveShell, two_ranks: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    two_ranks.execute("kept = rank").raise_on_error()
    run = train(shell, "-n 3 --steps 2 --batch-size 6 --quiet", CELL).wait(timeout=300)
    assert (run.plan.ranks, two_ranks.n) == (3, 3) and two_ranks.pull("kept", [0, 1]) == {0: 0, 1: 1}
    said = capsys.readouterr().out
    assert "2 ranks are up and the run needs 3: starting the others" in said and "rank 2 was added" in said


def test_a_spec_file(shell: InteractiveShell, two_ranks: Session, tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text('recipe = "stdlib-llama"\nsteps = 3\nbatch_size = 4\neval_every = 0\n[plan]\nranks = 2\n')
    run = train(shell, f"--config {file} --steps 2 --quiet").wait(timeout=300)
    assert (run.spec.steps, run.spec.batch_size, run.spec.plan.ranks) == (2, 4, 2)
    again = train(shell, f"--config {run.path / 'spec.toml'} --quiet").wait(timeout=300)
    np.testing.assert_array_equal(again.metrics()["loss"], run.metrics()["loss"])
    file.write_text("spec_version = 99")
    with pytest.raises(SchemaError, match="update dist-workbench"):
        train(shell, f"--config {file}")


def test_the_spec_of_a_run_whose_model_was_a_cell_trains_again_on_another_plan(
    shell: InteractiveShell, two_ranks: Session
) -> None:
    first = train(shell, "-n 2 --steps 4 --batch-size 16 --quiet --name own", CELL).wait(timeout=300)
    again = train(shell, f"--config {first.path / 'spec.toml'} --plugin zero1 --quiet").wait(timeout=300)
    assert (again.name, again.plan.plugin) == ("own", "zero1")
    np.testing.assert_allclose(again.metrics()["loss"], first.metrics()["loss"], atol=1e-5)


def test_a_dataloaders_batch_is_the_global_batch_and_told_as_it_is(shell: InteractiveShell, two_ranks: Session) -> None:
    cell = CELL + "dataloader = torch.utils.data.DataLoader(dataset, batch_size=16)\n"
    run = train(shell, "-n 2 --steps 20 --batch-size 7 --quiet", cell).wait(timeout=300)
    np.testing.assert_allclose(run.metrics()["loss"], plain_losses(20, 16), atol=1e-5)
    assert run.spec.batch_size == 0
    (told,) = run.events().query("kind == 'data'")["value"]
    assert told == {"samples": 16, "unit": "samples"}
    assert "samples/s per rank" in progress.line(run.name, run.status, progress.snapshot(run.store))
    assert "16 samples per step" in run.report().read_text(encoding="utf-8")
    uneven = train(shell, "-n 2 --steps 2 --quiet", cell.replace("batch_size=16", "batch_size=15"))
    np.testing.assert_allclose(uneven.wait(timeout=300).metrics()["loss"], plain_losses(2, 15), atol=1e-5)


def test_what_the_cell_prints_is_kept(shell: InteractiveShell, two_ranks: Session) -> None:
    run = train(shell, "-n 2 --steps 2 --quiet", CELL + "print('built', model[0].in_features)\n").wait(timeout=300)
    assert run.output(0) == run.output(1) == "built 8\n"


def test_a_run_whose_session_a_person_ends_is_lost_and_says_how_to_go_on(
    shell: InteractiveShell, two_ranks: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(shell, "-n 2 --steps 5000 --quiet --save-every 2 --name ended", SLOW)
    until(run.checkpoints)
    shell.run_line_magic("dist_down", "")
    with pytest.raises(RunError, match=r"was lost at step \d+: .*%dist_train --resume ended@\d+ continues it"):
        run.wait(timeout=300)
    assert run.status == "lost"


def test_fewer_ranks_than_are_up_say_that_variables_are_lost(
    shell: InteractiveShell, two_ranks: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("dist_up", "-n 2")
    assert "lost" not in capsys.readouterr().err
    shell.run_line_magic("dist_up", "-n 1")
    told = capsys.readouterr().err
    assert "ranks 0-1 were restarted: the variables of cells that ran there are lost" in told


def test_a_rank_killed_in_the_middle_is_named_and_the_session_can_go_on(
    shell: InteractiveShell, two_ranks: Session
) -> None:
    run = train(shell, "-n 2 --steps 5000 --quiet", SLOW)
    until(lambda: run.last_step >= 3)
    os.kill(next(status.pid for status in two_ranks.status() if status.rank == 1), signal.SIGKILL)
    with pytest.raises(RunError, match=r"on rank 1: .*9"):
        run.wait(timeout=300)
    shell.run_line_magic("dist_up", "-n 2")
    assert train(shell, "-n 2 --steps 2 --quiet", CELL).wait(timeout=300).status == "finished"


def test_a_run_is_repeated_from_its_spec_on_ranks_that_know_nothing_of_its_cells(
    shell: InteractiveShell, two_ranks: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_scale.py").write_text("def scaled(loss):\n    return 3 * loss\n")
    shell.user_ns["hidden_width"] = 16
    shell.run_line_magic("dist_push", "hidden_width")
    shell.run_cell_magic(
        "dist", "", "import torch\ndef make():\n    return torch.nn.Tanh()\nextra = torch.nn.Linear(1, 1)"
    )
    cell = "from own_scale import scaled\n" + CELL.replace("(8, 16)", "(8, hidden_width)")
    cell += "print(type(make()), extra.weight.shape)\n"
    cell += "loss_fn = lambda model, batch: scaled(criterion(model(batch[0]), batch[1]))"
    run = train(shell, "-n 2 --steps 2 --batch-size 16 --quiet --no-final-checkpoint", cell).wait(timeout=300)
    told = run.events().query("name == 'names_not_kept'")["value"].tolist()
    assert len(told) == 1 and "no copy of extra" in told[0]
    assert (run.path / "modules" / "own_scale.py").read_text() == Path("own_scale.py").read_text()
    repeatable = cell.replace(", extra.weight.shape", "")
    first = train(shell, "-n 2 --steps 2 --batch-size 16 --quiet --no-final-checkpoint", repeatable).wait(timeout=300)
    assert first.events().query("name == 'names_not_kept'").empty
    two_ranks.down()
    Path("own_scale.py").unlink()
    Session.up(2)
    again = train(shell, f"--config {first.path / 'spec.toml'} --quiet").wait(timeout=300)
    np.testing.assert_array_equal(again.metrics()["loss"], first.metrics()["loss"])
    np.testing.assert_allclose(again.metrics()["loss"][0], 3 * plain_losses(1, 16)[0], rtol=1e-5)
    assert {path.name for path in again.path.iterdir()} >= {"names.json", "modules", "cell.py"}
