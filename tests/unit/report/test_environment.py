"""The environment of a run in its report: packages, the command, the git repository."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.fake_run import make_fake_run
from tests.unit.report.test_sections import HOSTILE, text_page
from tests.waiting import WAIT_S
from workbench.report import run_data
from workbench.rundir import environment


def test_the_environment_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(environment, "_GIT_S", WAIT_S)

    def git(*words: str) -> str:
        about = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "init.defaultBranch=trunk"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *about, *words], capture_output=True, text=True, check=True
        ).stdout

    git("init")
    (tmp_path / "model.py").write_text("depth = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    git("remote", "add", "origin", "https://ann:secret@example.invalid/model.git")
    assert environment.git(tmp_path)["diff"] == ""
    (tmp_path / "model.py").write_text("depth = 2\n")
    (tmp_path / "new.py").write_text("")
    found = environment.git(tmp_path)
    assert found["commit"] == git("rev-parse", "HEAD").strip() and found["branch"] == "trunk"
    assert "-depth = 1" in found["diff"] and "+depth = 2" in found["diff"] and found["untracked"] == ["new.py"]
    assert found["remote"] == "https://example.invalid/model.git"
    assert environment.git(tmp_path.parent / "none") == {}


def test_packages_are_those_that_are_installed() -> None:
    from importlib import metadata

    found = environment.packages()
    assert all(found[name] == metadata.version(name) for name in ("numpy", "bokeh", "dist-workbench", "jupyter-client"))


def test_a_report_shows_the_environment(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=5)
    about = {
        "command": ["workbench", HOSTILE],
        "packages": {"numpy": "1"},
        "git": {"commit": "abc", "diff": HOSTILE, "untracked": 7},
    }
    (run / environment.ENVIRONMENT_FILE).write_text(json.dumps(about))
    (run / run_data.VERIFICATION_FILE).write_text(json.dumps({"same": True, HOSTILE: {"largest": 1e-6}}))
    page = text_page(run)
    text = page.find(id="environment").get_text()
    assert "abc" in text and "numpy==1" in text and text.count(HOSTILE) == 2
    assert f"{HOSTILE}.largest" in page.find(id="verification").get_text()


@pytest.mark.parametrize("broken", ["[1", "[]", '{"git": 3, "packages": [], "command": 1}'])
def test_a_damaged_environment_file_does_not_affect_the_rest(tmp_path: Path, broken: str) -> None:
    run = make_fake_run(tmp_path / "run", steps=5)
    (run / environment.ENVIRONMENT_FILE).write_text(broken)
    assert "fake" in text_page(run).title.text
