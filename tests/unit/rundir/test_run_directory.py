"""Making and finding run directories when several are made within one second."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from workbench.core.config import TrainSpec
from workbench.rundir import directory as run_directory
from workbench.rundir.state import find


class Frozen(datetime):
    @classmethod
    def now(cls, tz: object = None) -> "Frozen":
        return cls(2026, 5, 1, 12, 0, 0)


@pytest.fixture(autouse=True)
def one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setattr(run_directory, "datetime", Frozen)


def test_each_of_many_that_ask_at_once_gets_its_own_directory() -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: run_directory.create(TrainSpec(name="same")), range(16)))
    assert len(set(paths)) == 16


def test_another_process_that_makes_the_directory_first_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "2026-05-01-120000-same").mkdir()
    monkeypatch.setattr(Path, "exists", lambda self: False)  # as it looked before the other one made it
    assert run_directory.create(TrainSpec(name="same")).name == "2026-05-01-120000-same-2"


def test_the_newest_of_one_second_is_the_one_made_last() -> None:
    for name in ("b", "a", "a", *["c"] * 11):
        newest = run_directory.create(TrainSpec(name=name))
    assert find() == newest and newest.name.endswith("c-11")
    assert find("c") == newest
    assert find("a").name == "2026-05-01-120000-a-2"
    assert find("b").name == "2026-05-01-120000-b"


def test_a_name_that_ends_in_a_number_is_its_own() -> None:
    own = run_directory.create(TrainSpec(name="lr-2"))
    assert find("lr-2") == own
    with pytest.raises(run_directory.RunDirectoryError):
        find("lr")


def test_a_project_that_was_never_trained_is_no_run(tmp_path: Path) -> None:
    from workbench.report import render
    from workbench.run import starter

    starter.write(tmp_path / "project" / "fresh")
    for look in (find, render):
        with pytest.raises(run_directory.RunDirectoryError, match=r"(?s)fresh.*workbench train"):
            look(tmp_path / "project" / "fresh")
