"""Starting a run: what is refused before anything is made, and what is said of where the ranks run."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.cluster.hosts import machine
from workbench.cluster.hosts.placement import Device
from workbench.cluster.session import Session
from workbench.errors import ClusterError, ConfigError, RunDirectoryError
from workbench.run import launch

OPTIONS = {"recipe": "digits-vit", "ranks": 2}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_more_ranks_than_gpus_are_refused_before_anything_is_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_gpus", lambda: [Device(id="0", name="H100")])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match=r"2 ranks, but 1 GPU is available .* pass -n 1"):
        launch.train(OPTIONS)
    assert not home.exists()


@pytest.mark.parametrize(("number", "word"), [(errno.EACCES, "Permission denied"), (errno.ENOSPC, "No space left")])
def test_a_home_that_cannot_be_written_or_is_full_is_named_before_any_rank_is_started(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int, word: str
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Session, "start", lambda placement: pytest.fail("ranks were started"))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunDirectoryError, match=rf"cannot make a run directory in {home}.*{word}.*WORKBENCH_HOME"):
        launch.train(OPTIONS)
    assert not home.exists()


def test_a_disk_that_is_full_is_named_before_any_rank_is_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "start", lambda placement: pytest.fail("ranks were started"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(RunDirectoryError, match=rf"the disk of {home} is full \(1 MiB free\)"):
        launch.train(OPTIONS)
    assert list(home.iterdir()) == []


def test_warnings_about_the_ranks_are_said_once_without_file_and_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = []
    session = SimpleNamespace(n=2, warnings=("2 ranks on 1 core: they take turns",), down=lambda: ended.append(1))
    monkeypatch.setattr(Session, "start", lambda placement, framework: session)

    def fail(*_: object) -> None:
        raise ClusterError("enough")

    monkeypatch.setattr(launch.TrainingJob, "start", fail)
    with pytest.raises(ClusterError, match="enough"):
        launch.train(OPTIONS)
    assert capsys.readouterr().err == "warning: 2 ranks on 1 core: they take turns\n"
    assert ended and list(home.iterdir()) == []
