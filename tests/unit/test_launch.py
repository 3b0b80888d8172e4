"""Starting a run: what is refused before anything is made, and what is said of where the ranks run."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench import launch
from workbench.cluster import machine
from workbench.cluster.placement import Device
from workbench.errors import ClusterError, ConfigError
from workbench.session import Session

OPTIONS = {"recipe": "digits-vit", "ranks": 2}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_more_ranks_than_gpus_are_refused_before_anything_is_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_gpus", lambda: [Device(id="0", name="H100")])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match=r"2 ranks, but 1 GPU is to be used .* pass -n 1"):
        launch.train(OPTIONS)
    assert not home.exists()


def test_warnings_about_the_ranks_are_said_once_without_file_and_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = []
    session = SimpleNamespace(n=2, warnings=("2 ranks on 1 core: they take turns",), down=lambda: ended.append(1))
    monkeypatch.setattr(Session, "up", lambda n: session)

    def fail(*_: object) -> None:
        raise ClusterError("enough")

    monkeypatch.setattr(launch, "_start", fail)
    with pytest.raises(ClusterError, match="enough"):
        launch.train(OPTIONS)
    assert capsys.readouterr().err == "warning: 2 ranks on 1 core: they take turns\n"
    assert ended and list(home.iterdir()) == []
