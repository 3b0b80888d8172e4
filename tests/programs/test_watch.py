"""Scripts that know nothing of workbench, under ``workbench watch``: what is recorded, and that they run as ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs.watched_script import STEPS
from tests.waiting import until
from workbench import Run
from workbench.cli.commands.watch import STARTUP
from workbench.rundir.directory import runs_with_spec

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("watched_script.py")
WAIT_S = 300.0


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``watched(*command)``: the process of ``workbench watch -- command``."""
    processes: list[subprocess.Popen[str]] = []
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))

    def start(*command: str, **more: str) -> subprocess.Popen[str]:
        places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        ours = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        process = subprocess.Popen(
            [sys.executable, "-m", "workbench.cli.main", "watch", "--", *command],
            env={**ours, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str], code: int) -> str:
    said, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == code, told
    return said


def the_run() -> Run:
    (path,) = runs_with_spec()
    return Run(path)


def warnings(run: Run) -> dict[str, Any]:
    return {event.name: event.value for event in run.events().itertuples() if event.kind == "warning"}


def until_recorded() -> Run:
    until(runs_with_spec)
    return the_run()


def test_a_plain_script_shows_its_losses_and_keeps_its_exit_code(watched: Any, tmp_path: Path) -> None:
    said = ended(watched(sys.executable, str(SCRIPT), str(tmp_path), "exit"), 7)
    assert said == "rank 0 is through\n"
    run = the_run()
    assert run.name == "watched_script" and run.status == "failed"
    metrics = run.metrics()
    assert list(metrics["step"]) == list(range(2, STEPS + 1))
    assert list(metrics["loss"]) == pytest.approx(json.loads((tmp_path / "losses-0.json").read_text())[1:])
    assert {"forward", "backward", "optimizer", "data"} <= set(run.phases()["phase"])
    assert not run.devices().empty and not run.gradients().empty
    assert run.output(0) == said
    assert run.report(tmp_path / "report.html").exists()


def test_two_ranks_of_torchrun_are_one_run(watched: Any, tmp_path: Path) -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended(watched(*launcher, str(SCRIPT), str(tmp_path)), 0)
    run = the_run()
    assert run.status == "finished" and run.plan.ranks == 2
    losses = [json.loads((tmp_path / f"losses-{rank}.json").read_text())[1:] for rank in range(2)]
    means = [sum(pair) / 2 for pair in zip(*losses, strict=True)]
    assert list(run.metrics()["loss"]) == pytest.approx(means)
    assert {"local", "reduced"} <= set(run.gradients()["scope"])
    assert set(run.devices()["rank"]) == {0, 1}
    assert [run.output(rank) for rank in range(2)] == [f"rank {rank} is through\n" for rank in range(2)]


def test_a_script_that_raises_is_a_failed_run(watched: Any, tmp_path: Path) -> None:
    ended(watched(sys.executable, str(SCRIPT), str(tmp_path), "raise"), 1)
    run = the_run()
    assert run.status == "failed"
    (failed,) = run.events().query("name == 'failed'").itertuples()
    assert failed.value["ename"] == "ValueError" and "watched_script.py" in failed.value["traceback"]
    assert "ValueError: planted" in run.output(0)


def test_a_script_without_torch_shows_devices_and_output(watched: Any) -> None:
    assert ended(watched(sys.executable, "-c", "print('no tensors')"), 0) == "no tensors\n"
    run = the_run()
    assert run.status == "finished" and run.output(0) == "no tensors\n"
    assert "did not import torch" in warnings(run)["no_steps"]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, "lost"), (signal.SIGINT, "failed")])
def test_signals_are_the_scripts(watched: Any, sent: signal.Signals, status: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    script = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)"
    process = watched(sys.executable, "-c", script)
    until(begun.exists)
    run = until_recorded()
    assert not run.ended()
    process.send_signal(sent)
    ended(process, -sent)
    assert run.status == status


def test_what_fails_of_ours_is_told_once_and_the_script_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(STARTUP), str(ROOT)]),
        "WORKBENCH_WATCH": str(tmp_path / "file" / "run"),
    }
    found = subprocess.run(
        [sys.executable, "-c", "import sys; print('through'); sys.exit(5)"],
        env={**environment, "RANK": "0", "WORLD_SIZE": "1"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert found.returncode == 5 and found.stdout == "through\n"
    assert found.stderr.count("The script continues") == 1


def test_a_sitecustomize_of_the_environment_is_run_too(watched: Any, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('theirs')")
    process = watched(sys.executable, "-c", "print('script')", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert "theirs\nscript\n" in ended(process, 0)
