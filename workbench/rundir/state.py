"""What state a run is in, who owns it, and which run a name means: each decided here and nowhere else.

A run ends by what its ranks log (``state_of``). Where they could not log it, the owner decides: a run that has not
ended and whose owner is gone is ``lost``. The owner is the process that started the run. On this host its process is
looked for; of another host, which shares the disk, only the run's heartbeat can be seen: the owner counts as alive
until the lease of ``LEASE_S`` has lapsed.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Protocol

from workbench.core.columns import Columns
from workbench.core.config import SPEC_FILE, read_spec_options
from workbench.core.records import END_STATES, RESTARTING, EventKind
from workbench.errors import ConfigError, RunDirectoryError, SchemaError, suggest
from workbench.rundir.directory import home, is_run, run_directories, run_name, runs_with_spec
from workbench.rundir.log import HEARTBEAT_FILE
from workbench.rundir.owner import OWNER_FILE, Owner

LOST = "lost"
#: states after which nothing more happens
ENDED = (*END_STATES, LOST)
#: seconds after the last heartbeat for which an owner that cannot be looked for counts as alive
LEASE_S = 120.0


def state_of(events: Columns, ranks: int) -> str:
    """The state that the logs of a run of ``ranks`` ranks tell, from the table ``events``.

    ``starting``, ``running``, ``paused``, ``restarting``, ``finished``, ``stopped`` or ``failed``; ``lost`` when the
    session that owned the ranks ended them.
    """
    died = (events["kind"] == EventKind.RANK) & (events["name"] == "died")
    is_state = events["kind"] == EventKind.STATE
    latest: dict[int, str] = {}
    for rank, name in zip(events["rank"][is_state], events["name"][is_state], strict=True):
        latest[int(rank)] = name
    names = set(latest.values())
    over = [name for name in latest.values() if name in ENDED]
    in_order = (
        (LOST, LOST in names),
        ("failed", "failed" in names),
        ("stopped", len(over) == ranks and "stopped" in names),
        ("finished", len(over) == ranks),
        ("failed", bool(died.any())),
        (RESTARTING, RESTARTING in names),
        ("paused", names == {"paused"}),
        ("running", bool(names - {"starting"})),
    )
    return next((state for state, holds in in_order if holds), "starting")


def ended(state: str) -> bool:
    """Whether a run in this state does nothing more."""
    return state in ENDED


def present_state(logged: str, run: Path) -> str:
    """The state of now, from the state that the logs tell: ``lost`` where the run has not ended and its owner has."""
    return logged if ended(logged) or owner_is_alive(run) else LOST


def is_owned_here(run: Path) -> bool:
    """Whether this process started the run, so that its ranks end with this process."""
    owner = owner_if_known(run)
    return owner is not None and owner.is_this_process


def owner_if_known(run: Path) -> Owner | None:
    """The owner of a run; None where it has none, or its file is damaged."""
    try:
        return Owner.read(run)
    except ValueError:
        return None


def owner_is_alive(run: Path) -> bool:
    """Whether the process that started the run still lives.

    An owner of another host, or one whose file is damaged, cannot be looked for: it is alive while its lease holds.
    """
    try:
        owner = Owner.read(run)
    except ValueError:
        return lease_holds(run)
    if owner is None:
        return False
    return owner.process() is not None if owner.can_be_looked_for else lease_holds(run)


def lease_holds(run: Path) -> bool:
    """Whether the run's last sign of life is younger than ``LEASE_S``, by the clock of the disk that it is on."""
    last = last_sign_of_life(run)
    return last is not None and disk_time(run) - last < LEASE_S


def last_sign_of_life(run: Path) -> float | None:
    """When the run's heartbeat was written last; of runs without one, its newest log. None: it has neither."""
    files = [run / HEARTBEAT_FILE, *run.glob("rank-*/*.arrow"), *run.glob("session/*.arrow"), run / OWNER_FILE]
    times = []
    for file in files:
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue  # it has none, or it was removed meanwhile
    return max(times, default=None)


def disk_time(run: Path) -> float:
    """The present time by the clock of the disk that holds ``run``, which may be another host's; else by ours."""
    probe = run.parent / f".clock-{os.getpid()}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:  # a disk that cannot be written
        return time.time()
    return now


class HasPath(Protocol):
    """What knows the directory of its run, as ``workbench.Run`` does."""

    @property
    def path(self) -> Path:
        """The run directory."""


def directory_of(run: HasPath | str | Path) -> Path:
    """The directory of a run that is given as a ``Run``, by name or by path: see ``find``."""
    return find(run) if isinstance(run, (str, Path)) else run.path


def find(name: str | Path | None = None) -> Path:
    """The directory of a run, whole or damaged. ``name`` None: the newest run that has a spec.

    A ``Path``, or a text with a separator in it, is a path. Any other text is looked for in the runs' home, as the name
    of a directory, then as the name of a run (the newest of that name), and last as a path. Raises
    ``RunDirectoryError`` when there is no such run; a folder that merely holds a spec is none.
    """
    if name is None:
        newest = runs_with_spec()[-1:]
        if not newest:
            raise RunDirectoryError(f"there is no run in {home()}: start one with %dist_train, or set WORKBENCH_HOME")
        return newest[0]
    runs = run_directories()
    text = str(name)
    direct = Path(name).expanduser().absolute()
    is_path = isinstance(name, Path) or os.sep in text
    if is_path and (is_run(direct) or direct in runs):
        return direct
    by_directory = (run for run in reversed(runs) if run.name == text)
    by_name = (run for run in reversed(runs) if _is_called(run, text))
    found = next(by_directory, None) or next(by_name, None)
    if found is not None:
        return found
    if is_run(direct):
        return direct
    if (direct / SPEC_FILE).is_file():
        raise RunDirectoryError(f"{direct} has a spec but no run: start one with workbench train {direct / SPEC_FILE}")
    names = list(dict.fromkeys(run_name(run) for run in reversed(runs)))
    raise RunDirectoryError(f"no run {text!r} in {home()}: {suggest(text, names, others=[run.name for run in runs])}")


def _is_called(run: Path, name: str) -> bool:
    """Whether a run has that name. Of runs of one name and one second, all but the first have a number after it."""
    found = run_name(run)
    if found == name:
        return True
    if not re.fullmatch(re.escape(name) + r"-\d+", found):
        return False
    try:
        return read_spec_options(run / SPEC_FILE).get("name") == name
    except (ConfigError, SchemaError):
        return False
