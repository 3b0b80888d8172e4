"""Removing, archiving, restoring and pruning runs."""

from __future__ import annotations

import math
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_run import make_fake_run
from workbench.errors import ConfigError, RunDirectoryError, RunError
from workbench.history import retention
from workbench.history.row import RunRow, read_row
from workbench.run import starter
from workbench.rundir.owner import OWNER_FILE, Owner
from workbench.rundir.state import find

DAY = 86400.0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    return tmp_path / "runs"


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_run_is_found_by_directory_path_and_name(home: Path) -> None:
    old, new = (make_fake_run(home / f"2026-05-0{day}-120000-fake", steps=5) for day in (1, 2))
    assert find("fake") == new and find(old.name) == find(old) == old
    (old / "spec.toml").unlink()
    assert find(old.name) == old
    with pytest.raises(RunDirectoryError, match="did you mean 'fake'"):
        find("fak")
    with pytest.raises(RunDirectoryError, match="no run"):
        find(home.parent)


def test_a_run_that_trains_is_refused(home: Path) -> None:
    run = make_fake_run(home / "2026-05-01-120000-live", steps=10, state="running")
    Owner.this_process().write(run)
    for act in (retention.remove, retention.archive):
        with pytest.raises(RunError, match="is running at step 6: stop it first"):
            act(run)
    (run / "spec.toml").write_text("[")  # nor does a broken spec make it removable
    with pytest.raises(RunError, match="stop it first"):
        retention.remove(run)
    (run / OWNER_FILE).unlink()
    assert retention.remove(run) > 0 and not run.exists()


def test_a_broken_run_that_ended_goes_while_its_notebook_lives(home: Path) -> None:
    run = make_fake_run(home / "2026-05-01-120000-done", steps=10)
    Owner.this_process().write(run)
    (run / "spec.toml").write_text("[")
    assert retention.remove(run) > 0 and not run.exists()


def test_a_project_of_the_same_name_is_no_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starter.write(tmp_path / "fresh")
    monkeypatch.chdir(tmp_path)
    for name in ("fresh", "./fresh", tmp_path / "fresh"):
        with pytest.raises(RunDirectoryError, match="no run"):
            find(name)
    run = make_fake_run(home / "2026-05-01-120000-fresh", steps=5)
    assert find("fresh") == run and (tmp_path / "fresh" / "cell.py").exists()


def test_an_archive_gives_back_every_byte(home: Path, tmp_path: Path) -> None:
    run = make_fake_run(home / "2026-05-01-120000-fake", steps=30)
    (run / "cell.py").write_text("x = '\N{GRINNING FACE}'")
    before, row = contents(run), read_row(run)
    packed = retention.archive(run)
    assert packed.name == "2026-05-01-120000-fake.tar.zst" and not run.exists()
    assert packed.stat().st_mode & 0o777 == 0o600 and packed.stat().st_size < sum(map(len, before.values())) / 2
    assert list(home.iterdir()) == [packed]
    assert retention.restore(packed) == run and contents(run) == before and run.stat().st_mode & 0o777 == 0o700
    assert read_row(run).best_loss == row.best_loss
    with pytest.raises(RunDirectoryError, match="exists already"):
        retention.restore(packed)
    with pytest.raises(RunDirectoryError, match="exists already"):
        retention.archive(run)
    assert contents(run) == before


def test_an_archive_is_unpacked_by_tar(home: Path, tmp_path: Path) -> None:
    run = make_fake_run(home / "2026-05-01-120000-fake", steps=10)
    before = contents(run)
    with pa.input_stream(str(retention.archive(run)), compression="zstd") as stream:
        subprocess.run(["tar", "-xf", "-", "-C", tmp_path], input=stream.read(), check=True)
    assert contents(tmp_path / run.name) == before


def test_without_zstd_it_is_gzip(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_suffix", lambda: ".tar.gz")
    run = make_fake_run(home / "2026-05-01-120000-fake", steps=10)
    before = contents(run)
    packed = retention.archive(run)
    with tarfile.open(packed, "r:gz") as tar:
        tar.extractall(tmp_path, filter="data")
    assert contents(tmp_path / run.name) == before and contents(retention.restore(packed)) == before


def test_what_is_no_archive_of_a_run_leaves_nothing(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (tmp_path / "evil").write_text("x")
    for name, inside in (("a.tar.gz", "../evil"), ("b.tar.gz", "just-a-file")):
        with tarfile.open(home / name, "w:gz") as tar:
            tar.add(tmp_path / "evil", arcname=inside)
    (home / "c.tar.zst").write_bytes(b"no zstd")
    (home / "d.zip").write_bytes(b"")
    for name in ("a.tar.gz", "b.tar.gz", "c.tar.zst", "d.zip", "e.tar.gz"):
        with pytest.raises(RunDirectoryError):
            retention.restore(home / name)
    assert sorted(p.name for p in home.iterdir()) == ["a.tar.gz", "b.tar.gz", "c.tar.zst", "d.zip"]


def test_a_failed_archive_keeps_the_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_fake_run(home / "2026-05-01-120000-fake", steps=10)
    before = contents(run)

    def lose(*_: object) -> None:
        raise OSError("steps.arrow changed while it was packed; try again")

    monkeypatch.setattr(retention, "_compare", lose)
    with pytest.raises(RunDirectoryError, match="changed while it was packed"):
        retention.archive(run)
    assert contents(run) == before and list(home.iterdir()) == [run]


def row(number: int, age_days: float, state: str = "finished", tags: tuple[str, ...] = ()) -> RunRow:
    return RunRow(directory=f"run-{number}", name="run", when=-age_days * DAY, state=state, tags=tags)


def test_prune_by_count_age_and_both() -> None:
    rows = [row(i, age) for i, age in enumerate((50, 40, 20, 10, 1))]

    def gone(**policy: float) -> list[str]:
        return [each.directory[4:] for each in retention.prunable(rows, now=0.0, **policy)]  # type: ignore[arg-type]

    assert gone(keep=2) == ["0", "1", "2"] and gone(older_than_s=30 * DAY) == ["0", "1"]
    assert gone(keep=4, older_than_s=30 * DAY) == ["0"] and gone(keep=0) == list("01234") and gone(keep=9) == []
    with pytest.raises(ConfigError, match="nothing says which runs"):
        gone()


@given(
    st.lists(st.tuples(st.floats(0, 100), st.sampled_from(["finished", "lost", "running", "broken"]), st.booleans())),
    st.integers(0, 10) | st.none(),
    st.floats(0, 100),
)
def test_prune_never_takes_what_it_promised_to_keep(
    runs: list[tuple[float, str, bool]], keep: int | None, days: float
) -> None:
    rows = [row(i, age, state, ("keep",) if held else ()) for i, (age, state, held) in enumerate(runs)]
    gone = retention.prunable(rows, keep=keep, older_than_s=days * DAY, now=0.0)
    assert all(each.state != "running" and not each.tags and -each.when > days * DAY for each in gone)
    newest = sorted(rows, key=lambda each: (each.when, each.directory))[len(rows) - min(len(rows), keep or 0) :]
    assert not {each.directory for each in newest} & {each.directory for each in gone}


@pytest.mark.parametrize(("text", "expected"), [("30d", 30 * DAY), ("12h", 43200), ("1.5w", 10.5 * DAY), ("90s", 90)])
def test_ages(text: str, expected: float) -> None:
    assert math.isclose(retention.seconds(text), expected)


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1d2h"])
def test_ages_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an age"):
        retention.seconds(text)
