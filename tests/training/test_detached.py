"""A detached run outlives the process that started it, and is steered, branched and ended from another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.cluster.conftest import descendants, still_there
from tests.waiting import until
from workbench.cli import main as cli
from workbench.errors import ClusterError, ConfigError, RunDirectoryError, RunError
from workbench.run import detached, launch
from workbench.run.api import Run
from workbench.rundir import directory
from workbench.rundir.owner import Owner

#: a notebook that hands on what its ranks hold, starts a run and is killed
KERNEL = """
import os, signal, sys
from tests.shell import notebook_shell
with notebook_shell() as shell:
    shell.push({"width": 3})
    shell.run_line_magic("dist_up", "-n 2")
    shell.run_cell_magic("dist", "", "import torch\\ndef net():\\n    return torch.nn.Linear(3, 1)")
    shell.run_line_magic("dist_push", "width")
    run = shell.run_cell_magic("dist_train", sys.argv[1], sys.argv[2])
    print(run.path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
CELL = """
torch.manual_seed(0)
model = net()
assert width == 3
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
dataset = torch.utils.data.TensorDataset(torch.randn(32, width), torch.randn(32, 1))
criterion = torch.nn.functional.mse_loss
"""
FLAGS = "-n 2 --framework torch --steps 1000000 --batch-size 4 --monitor off --eval-every 0 --detach --quiet"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for temporary files that no other test uses; its path is short, as sockets lie there."""
    with tempfile.TemporaryDirectory(prefix="wb-") as path:
        yield Path(path)


def test_a_detached_run_outlives_its_kernel(runs: Path, shell: InteractiveShell, temporary: Path) -> None:
    words = [sys.executable, "-c", KERNEL, f"{FLAGS} --name away", CELL]
    kernel = subprocess.run(
        words, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=300, check=False
    )
    assert kernel.returncode == -signal.SIGKILL, kernel.stderr
    run = shell.run_line_magic("dist_attach", "")
    assert run.name == "away" and str(run.path) == kernel.stdout.split()[-1]
    owner = Owner.read(run.path)
    assert owner is not None and owner.detached and owner.pid != os.getpid()
    processes = [psutil.Process(owner.pid), *descendants(owner.pid)]
    try:
        until(lambda: run.last_step > 5)
        shell.run_line_magic("dist_set", f"lr=0.01 --run {run.path}")
        until(lambda: run.settings()["lr"] == 0.01)
        branch = run.branch(steps=10**6, name="further")  # the process that owns the ranks starts it
        until(lambda: branch.last_step > run.last_step)
        assert detached.is_detached(branch.path) and detached.attach().path == branch.path
        assert f"in process {owner.pid} of its own" in detached.told(branch)
        detached.end(branch)
        assert branch.status == "lost" and not still_there(processes)
        assert not list(temporary.glob("workbench-*")), "the private directory of its rank server is gone too"
        detached.end(branch)  # twice: it is over already
        with pytest.raises(RunDirectoryError, match="no detached run trains"):
            detached.attach()
    finally:
        for each in processes:
            if each.is_running():
                each.kill()


def test_a_detached_run_ends_with_its_process(runs: Path, shell: InteractiveShell) -> None:
    before = set(runs.iterdir())
    assert cli.main(["train", "digits-vit", "-n", "1", "--framework", "torch", "--steps", "3", "--detach"]) == 0
    (path,) = set(runs.iterdir()) - before
    run = Run(path)
    owner = Owner.read(run.path)
    assert owner is not None
    assert cli.main(["attach", str(run.path)]) == 0
    assert run.status == "finished" and run.last_step == 3
    until(lambda: owner.process() is None)


def test_a_detached_run_that_cannot_start_leaves_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = set(runs.iterdir())
    (tmp_path / "psutil.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"exit code 1: (.|\n)*a broken installation"):
        launch.train({"recipe": "digits-vit", "ranks": 1}, detach=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(ClusterError, match="no-python"):
        launch.train({"recipe": "digits-vit", "ranks": 1}, detach=True)
    assert set(runs.iterdir()) == before


def test_who_may_attach_and_what_can_be_ended(
    shell: InteractiveShell, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--detach and --wait contradict each other"):
        shell.run_line_magic("dist_train", "digits-vit --detach --wait")
    path = tmp_path / "theirs"
    path.mkdir()
    (path / directory.SPEC_FILE).write_text('name = "theirs"\nrecipe = "digits-vit"\n')
    Owner.this_process().write(path)
    run = Run(path)
    assert "its ranks end with this process" in detached.told(run)
    with pytest.raises(RunError, match="is not detached"):
        detached.end(run)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(RunDirectoryError, match="belongs to user"):
        detached.attach(path)
