"""Loops of somebody else's, observed: scripts in processes of their own, under torchrun and alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import waiting
from tests.programs.observed_script import LR, STEPS
from workbench import Run

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("observed_script.py")
WAIT_S = 300.0


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """``started(mode, ranks)``: the process of the script."""
    processes: list[subprocess.Popen[str]] = []

    def start(mode: str, ranks: int = 2, *, script: Path = SCRIPT, before: tuple[str, ...] = ()) -> Any:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
            "PYTHONPATH": places,
            "WORKBENCH_HOME": str(tmp_path / "runs"),
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, *before, *torchrun, str(script), mode, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def until(true: Callable[[], object], process: Any) -> Any:
    def found() -> Any:
        assert process.poll() is None, process.stdout.read()
        return true()

    return waiting.until(found)


def live(tmp_path: Path, process: Any) -> Run:
    """The run of the script, once it is under way."""
    until(lambda: (tmp_path / "run-0").exists() and (tmp_path / "run-0").read_text(), process)
    run = Run(Path((tmp_path / "run-0").read_text()))
    until(lambda: run.last_step >= 3, process)
    return run


def events(run: Run, name: str) -> list[Any]:
    found = run.events()
    return list(found[found["name"] == name].itertuples())


@pytest.mark.parametrize("ranks", [1, 2])
def test_values_are_those_computed_by_hand(started: Any, tmp_path: Path, ranks: int) -> None:
    """With gradient accumulation, clipping and a schedule; every rank's own gradients, and the reduced ones."""
    process = started("values", ranks)
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    run = Run(Path((tmp_path / "run-0").read_text()))
    assert run.status == "finished" and run.plan.ranks == ranks
    expected = [json.loads((tmp_path / f"expected-{rank}.json").read_text()) for rank in range(ranks)]
    metrics = run.metrics()
    assert list(metrics["step"]) == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm", "lr"):
        assert list(metrics[name]) == pytest.approx([each[name] for each in expected[0]], rel=1e-4), name
    gradients = run.gradients()
    checked = 0
    for row in gradients.itertuples():
        if row.scope in ("local", "reduced"):
            at = expected[row.rank if row.scope == "local" else 0][row.step - 1]
            assert row.norm == pytest.approx(at[row.scope][row.layer], rel=1e-4), row
            checked += 1
    assert checked >= STEPS * 2 * (ranks + 1)
    (batch,) = events(run, "batch")
    assert batch.value == {"samples": 12 * ranks, "unit": "samples"}
    assert {"forward", "backward", "optimizer", "data"} <= set(run.phases()["phase"])


def test_a_live_script_is_steered(started: Any, tmp_path: Path) -> None:
    process = started("steered")
    run = live(tmp_path, process)
    run.set(lr=5e-3)
    until(lambda: events(run, "lr"), process)
    until(lambda: run.metrics()["lr"].iloc[-1] == 5e-3, process)
    run.pause()
    until(lambda: run.status == "paused", process)
    at = run.last_step
    run.checkpoint()
    until(lambda: len(events(run, "saved_by_script")) == 2, process)
    run.evaluate()
    refused = until(lambda: [e for e in events(run, "evaluate") if e.kind == "refused"], process)
    assert "the loop is the script's own" in str(refused[0].value)
    assert run.last_step == at
    run.set(lr="schedule")
    run.resume()
    until(lambda: run.last_step > at + 2, process)
    until(lambda: run.metrics()["lr"].iloc[-1] == LR, process)
    run.stop()
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    assert run.status == "stopped"
    assert said.count("is through after") == 2  # what follows the block runs
    (saved,) = {event.step for event in events(run, "saved_by_script")}
    assert (tmp_path / f"{saved}-0.pt").exists() and (tmp_path / f"{saved}-1.pt").exists()
    assert run.report(tmp_path / "report.html").exists()
    assert run.verdict() is not None


def test_a_rank_that_steps_no_more_hangs_nobody(started: Any, tmp_path: Path) -> None:
    process = started("apart")
    run = live(tmp_path, process)
    run.set(lr=5e-3)
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    assert len(run.metrics(per_rank=True).query("rank == 0")) == 60
    changed = [event for event in events(run, "lr") if event.kind == "control"]
    refused = [event for event in events(run, "lr") if event.kind == "refused"]
    assert not changed and "call run.step on every rank" in str(refused[0].value)
    assert "rank(s) 1" in str(events(run, "ranks_apart")[0].value)


def test_a_loop_that_raises_is_a_failed_run(started: Any, tmp_path: Path) -> None:
    process = started("fails", 1)
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1 and "planted" in said
    run = Run(Path((tmp_path / "run-0").read_text()))
    assert run.status == "failed"
    (failed,) = events(run, "failed")
    assert failed.value["ename"] == "ValueError" and "observed_script.py" in failed.value["traceback"]


def test_a_killed_script_is_a_lost_run(started: Any, tmp_path: Path) -> None:
    process = started("steered", 1)
    run = live(tmp_path, process)
    process.kill()
    process.wait()
    assert run.status == "lost"


@pytest.mark.parametrize(("trainer", "ranks"), [("trainer", 1), ("accelerate", 1), ("accelerate", 2)])
def test_trainers_show_what_they_log_themselves(started: Any, tmp_path: Path, trainer: str, ranks: int) -> None:
    process = started(trainer, ranks, script=SCRIPT.with_name("observed_trainers.py"))
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    run = Run(Path((tmp_path / "run-0").read_text()))
    assert run.status == "finished" and run.plan.ranks == ranks, run.events().to_string()
    expected = json.loads((tmp_path / "expected.json").read_text())
    metrics = run.metrics()
    assert list(metrics["loss"]) == pytest.approx([each["loss"] for each in expected], abs=2e-4)
    assert list(metrics["grad_norm"]) == pytest.approx([each["grad_norm"] for each in expected], rel=1e-3)
