"""TensorFlow's ranks, in an environment of their own: a run up to its report, ranks that end, and what is refused."""

from __future__ import annotations

import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.environments import interpreter
from tests.training.test_dist_train import train
from tests.waiting import WAIT_S, until
from workbench.cluster.session import Session
from workbench.core.config import SPEC_FILE
from workbench.errors import ConfigError, RunError
from workbench.run import job as run_job

LINE = "--framework tensorflow --quiet --batch-size 8"
CELL = """
import os, time, keras, numpy as np, tensorflow as tf
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)])
optimizer = keras.optimizers.SGD(0.1)
x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((x, x.sum(1, keepdims=True)))
calls = 0
def loss_fn(model, batch):
    MORE
    return tf.reduce_mean((model(batch[0]) - batch[1]) ** 2)
"""
SLOW = CELL.replace("MORE", "time.sleep(0.02)")
RAISES = CELL.replace(
    "MORE",
    """global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls > 20:
        raise AssertionError("planted")""",
)


@pytest.fixture(scope="module", autouse=True)
def no_ranks_stay(shell: InteractiveShell) -> Iterator[None]:
    interpreter("tensorflow")
    yield
    current = Session.current()
    if current is not None:
        current.down()


@pytest.fixture
def ranks() -> Session:
    """Two ranks of TensorFlow, alive and idle."""
    return Session.up(2, framework="tensorflow")


def test_a_run_is_steered_and_reported_and_some_of_the_ranks_train(
    shell: InteractiveShell, ranks: Session, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    waits = f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    inside = "--watch activations,weights --watch-every 4"
    run = train(shell, f"-n 2 {LINE} --steps 8 --accumulate 2 {inside}", CELL.replace("MORE", waits))
    until(lambda: run.status == "running")
    run.set(lr=0.05)
    gate.touch()
    assert run.wait(timeout=WAIT_S).status == "finished"
    found = run.metrics()
    assert found["lr"].iloc[-1] == pytest.approx(0.05)
    assert found["loss"].iloc[-1] < found["loss"].iloc[0]
    assert set(run.gradients()["layer"]) == {"dense", "dense_1"}
    assert set(run.activations()["layer"]) == {"", "dense", "dense_1"} and len(run.spectra()) > 0
    assert tomllib.loads((run.path / SPEC_FILE).read_text())["versions"]["tensorflow-cpu"].startswith("2.21")
    shell.run_line_magic("dist_report", run.name)
    assert "tensorflow" in (run.path / "report.html").read_text()
    alone = train(shell, f"-n 1 {LINE} --steps 8", CELL.replace("MORE", "pass")).wait(timeout=WAIT_S)
    assert alone.metrics()["loss"].iloc[0] == pytest.approx(found["loss"].iloc[0], rel=1e-5)
    assert Session.current() is ranks
    with pytest.raises(ConfigError, match=r"run\.state_dict\(\) has its weights by name"):
        run.load_model()
    assert run.state_dict()["dense.kernel"].shape == (8, 16)
    with pytest.raises(ConfigError, match="plans of tensorflow are not predicted"):
        shell.run_cell_magic("dist_plans", "-n 2 --framework tensorflow", CELL)


def test_a_rank_that_raises_is_told_and_the_other_leaves_tensorflow(
    ranks: Session, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_job, "GRACE_S", WAIT_S)
    run = train(shell, f"-n 2 {LINE} --steps 50", RAISES)
    with pytest.raises(RunError, match="rank 1: AssertionError: planted"):
        run.wait(timeout=WAIT_S)
    assert not ranks.dead
    after = train(shell, f"-n 2 {LINE} --steps 2", CELL.replace("MORE", "pass"))
    assert after.wait(timeout=WAIT_S).status == "finished"


def test_a_rank_that_is_killed_is_told_and_all_are_started_anew(ranks: Session, shell: InteractiveShell) -> None:
    run = train(shell, f"-n 2 {LINE} --steps 5000", SLOW)
    until(lambda: run.last_step >= 2)
    before = ranks.pids
    ranks.signal(signal.SIGKILL, [1])
    with pytest.raises(RunError, match="rank 1"):
        run.wait(timeout=WAIT_S)
    until(lambda: ranks.dead)
    renewed = Session.up(2)
    assert renewed is not ranks and not set(before.values()) & set(renewed.pids.values())
    after = train(shell, f"-n 2 {LINE} --steps 2", CELL.replace("MORE", "pass"))
    assert after.wait(timeout=WAIT_S).status == "finished"


@pytest.mark.parametrize(
    ("line", "cell", "reason"),
    [
        (
            "digits-vit --steps 2",
            None,
            "recipe digits-vit has a model of PyTorch, which --framework tensorflow does not",
        ),
        ("--pp 2", CELL, "--pp 2 is not available with tensorflow ddp"),
        ("--sync-batchnorm", CELL, "--sync-batchnorm is not available with tensorflow ddp"),
        ("", f"{CELL}\ntrain_step = 1", "define loss_fn"),
    ],
    ids=["recipe", "pipeline", "batch normalisation", "train_step"],
)
def test_what_it_cannot_do_is_refused_before_a_run(
    shell: InteractiveShell, line: str, cell: str | None, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        train(shell, f"{line} -n 2 {LINE}", cell)
