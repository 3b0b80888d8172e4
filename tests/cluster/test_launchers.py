"""ipyparallel's clusters on our launchers take and answer what they do on ipyparallel's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipyparallel
import pytest
from ipyparallel.error import EngineError
from traitlets.config import Config

from tests.cluster.conftest import LIGHT, keep_threads
from workbench.errors import ConfigError


@contextlib.contextmanager
def cluster(
    folder: Path, *, preload: str = LIGHT, launchers: dict[str, Any] | None = None, **options: Any
) -> Iterator[Any]:
    config = Config()
    config.WorkbenchEngineSetLauncher.preload = preload
    config.merge(Config(launchers or {}))
    made = ipyparallel.Cluster(
        engines="workbench", controller="workbench", n=2, profile_dir=str(folder), config=config, **options
    )
    try:
        yield made
    finally:
        made.stop_cluster_sync()
        keep_threads()


def test_arguments_reach_controller_and_engines_and_output_is_there(tmp_path: Path) -> None:
    engine_args = ["--timeout=33", "-c", "answer = 42"]
    launchers = {"WorkbenchEngineSetLauncher": {"engine_args": engine_args, "environment": {"OWN": "mine"}}}
    with cluster(tmp_path, controller_args=["--ping=250"], launchers=launchers) as started:
        client = started.start_and_connect_sync()
        view = client[:]
        assert view.pull("answer", block=True) == [42, 42]
        assert view.apply_sync(lambda: __import__("os").environ["OWN"]) == ["mine", "mine"]
        view.execute("from ipyparallel.engine.app import IPEngine; timeout = IPEngine.instance().timeout", block=True)
        assert view.pull("timeout", block=True) == [33, 33]
        view.execute("import os; os.write(2, b'raw words\\n')", block=True)
        output = started.engine_set.get_output()
        assert output.count("raw words") == 2 and "Output for engine 1" in output
        engines = started.engine_set
        client.close()
        started.stop_cluster_sync()
        assert engines.get_output(remove=True) == output


@pytest.mark.parametrize(
    ("launchers", "options", "said"),
    [
        ({"WorkbenchEngineSetLauncher": {"engine_args": ["--IPEngine.id=7"]}}, {}, "sets --IPEngine.id itself"),
        ({"WorkbenchEngineSetLauncher": {"engine_cmd": ["python"]}}, {}, "engine_cmd cannot be set"),
        ({}, {"controller_args": ["--profile-dir=/x"]}, "sets --profile-dir itself"),
        ({"WorkbenchControllerLauncher": {"controller_cmd": ["mine"]}}, {}, "controller_cmd cannot be set"),
    ],
)
def test_what_they_do_not_take_is_refused_by_name(
    launchers: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with cluster(tmp_path, launchers=launchers, **options) as started, pytest.raises(ConfigError, match=said):
        started.start_cluster_sync()


def test_engines_that_crash_at_the_start_end_the_wait_at_once(tmp_path: Path) -> None:
    launchers = {"WorkbenchEngineSetLauncher": {"engine_args": ["-c", "import os; os._exit(5)"]}}
    with cluster(tmp_path, launchers=launchers) as started, pytest.raises(EngineError, match=r"Engine set stopped.*5"):
        started.start_and_connect_sync()
