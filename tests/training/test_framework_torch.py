"""Framework torch where Colossal-AI cannot be imported, and in a session whose ranks were warm for Colossal-AI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.training.bare_torch import CELL, LOADED
from workbench import Session, train

ROOT = Path(__file__).resolve().parents[2]


def test_torch_trains_and_everything_is_shown_while_colossalai_is_broken(tmp_path: Path) -> None:
    broken = tmp_path / "path" / "colossalai"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('this colossalai is broken')\n")
    path = os.pathsep.join([str(broken.parent), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "WORKBENCH_HOME": str(tmp_path / "runs")}
    words = [sys.executable, "-m", "tests.training.bare_torch"]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["DONE"], done.stderr + done.stdout


def test_ranks_that_are_warm_for_another_framework_are_started_anew(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    session = Session.up(2, framework="colossal", devices="cpu")
    try:
        server = session.server_pid
        run = train({"framework": "torch", "steps": 3, "batch_size": 4, "name": "second"}, cell=CELL)
        run.wait()
        session = Session.current() or session
        assert run.status == "finished"
        assert "restarting the ranks for framework torch" in capsys.readouterr().out
        assert (session.kind.framework, session.server_pid) == ("torch", server)
        session.execute(LOADED)
        assert session.pull("loaded") == {0: [], 1: []}
        assert train({"steps": 3, "batch_size": 4, "name": "third"}, cell=CELL).wait().status == "finished"
        assert Session.current().kind.framework == "colossal", "and back, from the process that stayed warm"
    finally:
        (Session.current() or session).down()
