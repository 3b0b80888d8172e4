"""A log whose disk takes no more: what is there is whole, it is told once, and the caller goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.rundir.test_rank_log import step
from workbench.core.records import Event
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store


def test_a_full_disk_stops_logging_and_not_the_caller(tmp_path: Path) -> None:
    (tmp_path / "rank-00000").mkdir()
    (tmp_path / "rank-00000" / "steps.arrow").symlink_to("/dev/full")
    with RankLogWriter(tmp_path, 0, flush_s=60) as log:
        log.append(step(1))
        log.flush()
        assert log.failure is not None and log.failure.strerror == "No space left on device"
        log.append(step(2))
        assert log.dropped == 2


def test_a_stream_whose_first_batch_did_not_fit_is_empty_or_begins_with_its_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when a table is begun; its end mark would fit then, and an event in the same file."""
    real, refused = os.write, []

    def full_at_first(descriptor: int, data: memoryview) -> int:
        if descriptor not in refused:
            refused.append(descriptor)
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full_at_first)
    for run, record in ((tmp_path / "a", step(1)), (tmp_path / "b", Event(time=1, step=1, rank=0, kind="k", name="n"))):
        refused.clear()
        with RankLogWriter(run, 0, flush_s=60) as log:
            log.append(record)
        store = Store(run)
        store.refresh()
        assert store.rows("steps") == 0 and store.rows("events") == (run.name == "b")
        assert (run / "rank-00000" / "steps.arrow").exists() == (run.name == "a")


FULL = """
import resource, signal, sys
from tests.unit.rundir.test_rank_log import step
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store
told = []
log = RankLogWriter(sys.argv[1], 0, flush_s=60, on_failure=told.append)
if sys.argv[2] != "tmpfs":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
written = 0
while log.failure is None and written < 10_000:
    for _ in range(10):
        written += 1
        log.append(step(written))
    log.flush()
log.append(step(1))
log.close()
store = Store(sys.argv[1])
store.refresh()
steps, events = store.table("steps")["step"].tolist(), store.table("events")
print(log.failure.strerror, told == [log.failure], log.dropped == written + 1 - len(steps),
      len(steps) > 10 and steps == list(range(1, len(steps) + 1)), events["name"].tolist(), sep="|")
"""


def full_disk(where: Path, limit: str, *before: str) -> list[str]:
    """A child process logs until no more fits: why, whether it was told once, whether all is counted and whole."""
    child = [*before, sys.executable, "-c", FULL, str(where), limit]
    done = subprocess.run(child, capture_output=True, text=True, cwd=Path.cwd(), check=True)
    return done.stdout.strip().split("|")


def test_a_disk_that_fills_up_leaves_whole_batches_and_is_told_once(tmp_path: Path) -> None:
    """A real file system of 64 kB where one can be mounted (in a namespace of the child's own)."""
    mount = f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$@"'
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    can_mount = (
        shutil.which("unshare")
        and not subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode
    )
    if can_mount:
        assert full_disk(tmp_path, "tmpfs", *namespace)[:4] == ["No space left on device", "True", "True", "True"]
    else:
        assert full_disk(tmp_path, "file size")[1:4] == ["True", "True", "True"]


def test_a_file_at_its_limit_ends_the_log_with_an_event_where_it_still_fits(tmp_path: Path) -> None:
    assert full_disk(tmp_path, "file size") == ["File too large", "True", "True", "True", "['failed']"]
