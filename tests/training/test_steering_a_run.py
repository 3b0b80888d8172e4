"""Steering a run of two real ranks as a person does: from the notebook, from ``Run`` and from a terminal."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.training.test_dist_train import CELL, SLOW, train
from tests.waiting import until
from workbench.cluster.session import Session
from workbench.errors import ConfigError, RunError
from workbench.run.api import Run

KNOB = SLOW.replace("criterion", "unused").replace(
    "def loss_fn", "scale = knob('scale', 1.0, low=0, high=10)\ndef loss_fn"
).replace("return mse(", "return scale * mse(")  # fmt: skip


def commands(run: Run, rank: int = 0) -> list[tuple[str, object, object]]:
    events = run.events()
    events = events[(events["rank"] == rank) & (events["kind"] == "control")]
    return list(zip(events["name"], events["value"], events["old_value"], strict=True))


def test_pause_set_step_and_resume(shell: InteractiveShell, two_ranks: Session) -> None:
    run = train(shell, "-n 2 --steps 5000 --quiet --eval-every 0", KNOB)
    until(lambda: run.last_step >= 2)
    shell.run_line_magic("dist_pause", "")
    until(lambda: run.status == "paused")
    assert {status.state for status in two_ranks.status()} == {"training"}
    held = run.last_step
    shell.run_line_magic("dist_set", "lr=x0.5 scale=2")
    run.step(3)
    until(lambda: run.last_step == held + 3 and run.status == "paused")
    rows = run.metrics().set_index("step")["lr"]
    assert rows[held] == pytest.approx(0.1) and rows[held + 1] == pytest.approx(0.05)
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli.main", "control", str(run.path), "set", "clip=0.5", "--wait"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, f"clip = 0.5 after step {held + 3}, was 0.0")
    run.evaluate()
    run.sample()
    until(lambda: len(run.events().query("kind == 'refused'")) == 4)
    reasons = {value["reason"].partition(":")[0] for value in run.events().query("kind == 'refused'")["value"]}
    assert reasons == {"there is no validation data", "nothing generates samples"}
    run.resume()
    until(lambda: run.status == "running" and run.last_step > held + 3)
    run.stop()
    run.wait(timeout=300)
    assert commands(run)[0][0] == "declared"
    assert commands(run)[1:] == [
        ("pause", "paused", "running"),
        ("lr", 0.05, 0.1),
        ("scale", 2.0, 1.0),
        ("step", 3, "paused"),
        ("clip", 0.5, 0.0),
        ("resume", "running", "paused"),
        ("stop", "step", None),
    ]
    assert commands(run, 1) == commands(run, 0)
    assert run.settings() == {
        "lr": 0.05, "clip": 0.5, "weight_decay": 0.0, "accumulate": 1, "log_every": 1, "grad_every": "auto",
        "grad_layers": "", "watch": "", "watch_every": "auto", "watch_layers": "", "scale": 2.0, "frozen": [],
    }  # fmt: skip
    with pytest.raises(RunError, match=r"has ended \(stopped"):
        run.pause()


def test_going_on_in_a_run_of_its_own(shell: InteractiveShell, two_ranks: Session) -> None:
    whole = train(shell, "-n 2 --steps 12 --batch-size 16 --quiet --shuffle", CELL).wait(timeout=300)
    line = "-n 2 --steps 12 --batch-size 16 --quiet --shuffle --save-every 4 --keep 2 --name saved"
    saved = train(shell, line, CELL).wait(timeout=300)
    assert saved.checkpoints() == [8, 12]
    again = train(shell, f"--resume {saved.path}@8 --quiet").wait(timeout=300)
    assert again.metrics()["step"].tolist() == [9, 10, 11, 12]
    np.testing.assert_array_equal(again.metrics()["loss"], whole.metrics()["loss"][8:])
    assert (again.path / "cell.py").read_text() == (saved.path / "cell.py").read_text()
    slower = train(shell, f"--resume {saved.path}@8 --quiet --lr 0.01 --plugin zero1").wait(timeout=300)
    assert set(slower.metrics()["lr"]) == {0.01}
    np.testing.assert_allclose(slower.metrics()["loss"][:1], whole.metrics()["loss"][8:9], atol=1e-6)
    with pytest.raises(ConfigError, match="no step is left to train"):
        train(shell, "--resume saved --quiet")


def test_a_branch_goes_on_from_here_and_the_old_run_is_kept(shell: InteractiveShell, two_ranks: Session) -> None:
    run = train(shell, "-n 2 --steps 5000 --quiet --eval-every 0 --name trunk", SLOW)
    until(lambda: run.last_step >= 3)
    run.pause()
    until(lambda: run.status == "paused")
    end = run.last_step + 5
    branch = shell.run_line_magic("dist_branch", f"lr=0.02 steps={end}")
    assert run.status == "stopped" and branch.name == "trunk-branch"
    branch.wait(timeout=300)
    parted = run.checkpoints()[0]
    assert branch.metrics()["step"].tolist() == list(range(parted + 1, end + 1)) and set(branch.metrics()["lr"]) == {
        0.02
    }
    assert run.metrics()["step"].tolist() == list(range(1, parted + 1))
    second = run.branch(steps=parted + 2, name="twig").wait(timeout=300)
    assert second.metrics()["step"].tolist() == [parted + 1, parted + 2] and second.name == "twig"


def test_a_switch_of_the_plan_goes_on_with_the_same_loss(shell: InteractiveShell, two_ranks: Session) -> None:
    """Over two switches the losses are those of one run under the first plan."""
    line = "-n 2 --batch-size 16 --quiet --eval-every 0"
    runs = [train(shell, f"{line} --steps 5000 --name wide", SLOW)]
    for change, name in (("plan=zero2", "wide-zero2"), ("plan='torch ddp'", "wide-zero2-torch-ddp")):
        until(lambda: runs[-1].last_step >= 2)
        runs.append(shell.run_line_magic("dist_set", change))
        assert runs[-1].name == name
    until(lambda: runs[-1].last_step > branch_point(runs[-1]) + 2)
    runs[-1].stop()
    runs[-1].wait(timeout=300)
    losses = pd.concat([run.metrics().set_index("step")["loss"] for run in runs])
    whole = train(shell, f"{line} --steps {len(losses)}", CELL).wait(timeout=300)
    np.testing.assert_allclose(losses, whole.metrics().set_index("step")["loss"], atol=1e-5)
    assert [run.plan.describe() for run in runs[1:]] == ["zero2 dp2", "torch ddp2"]
    with pytest.raises(ConfigError, match="plan cannot be set together with others"):
        shell.run_line_magic("dist_set", "plan=ddp lr=1")


def test_a_branch_lays_its_rate_over_the_cells_own_schedule(shell: InteractiveShell, two_ranks: Session) -> None:
    decaying = SLOW + "lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)\n"
    run = train(shell, "-n 2 --steps 5000 --quiet --eval-every 0 --name decaying", decaying)
    until(lambda: run.last_step >= 3)
    branch = run.branch(lr=0.02)
    until(lambda: branch.last_step > branch_point(branch) + 2)
    branch.set(lr="schedule")
    until(lambda: commands(branch))
    ((back, value, old),) = commands(branch)
    assert (back, old) == ("lr", 0.02)
    assert branch.events().query("name == 'resumed_with' and rank == 0")["value"].tolist() == [{"lr": 0.02}]
    turned = branch.events().query("name == 'lr' and who != '' and rank == 0")["step"].iloc[0]
    until(lambda: branch.last_step > turned + 2)
    branch.stop()
    rates = branch.wait(timeout=300).metrics().set_index("step")["lr"]
    first = branch_point(branch) + 1
    assert rates.index[0] == first and set(rates.loc[:turned]) == {0.02}
    steps = np.arange(turned, rates.index[-1])
    np.testing.assert_allclose(rates.loc[turned + 1 :], 0.1 * 0.99**steps, rtol=1e-6)
    assert value == pytest.approx(0.1 * 0.99**turned)


def branch_point(branch: Run) -> int:
    return int(branch.spec.resume.rpartition("@")[2])


def test_rolling_back_while_it_trains(shell: InteractiveShell, two_ranks: Session) -> None:
    run = train(shell, "-n 2 --steps 5000 --quiet --eval-every 0 --grad-every 1", SLOW)
    until(lambda: run.last_step >= 2)
    run.checkpoint()
    until(run.checkpoints)
    (saved,) = run.checkpoints()
    until(lambda: run.metrics()["step"].max() > saved + 3)
    before, gradients = run.metrics().set_index("step")["loss"], run.gradients()
    run.rollback()
    run.step(2)
    until(lambda: run.status == "paused")
    events = run.events().query("name == 'step' and rank == 0")
    last = events["step"].iloc[0] + 2  # the second command may come some steps after the first
    assert run.last_step == last >= saved + 2
    after = run.metrics().set_index("step")["loss"]
    assert list(after.index) == list(range(1, last + 1))
    np.testing.assert_array_equal(after[[saved + 1, saved + 2]], before[[saved + 1, saved + 2]])
    run.stop()
    assert run.wait(timeout=300).status == "stopped"
    again = run.gradients()
    assert again["step"].max() == last
    for step in (saved + 1, saved + 2):
        kept, new = (table[table["step"] == step].reset_index(drop=True) for table in (gradients, again))
        pd.testing.assert_frame_equal(new, kept)  # of the steps trained again, once, as they were
    assert run.phases()["step"].max() == last and run.collectives()["step"].max() <= last
    assert not run.phases().duplicated(["step", "rank", "phase", "micro_batch", "start_ms"]).any()
