"""What can be seen of each rank from outside: its row, its collective, its process, its stacks, torch's record."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench.cluster.base.calls import call_in_ranks
from workbench.cluster.base.protocol import CallInRanks
from workbench.core.live import rank_row
from workbench.core.live.collective_row import Description, LiveCollective, RowReader
from workbench.core.live.collective_row import row_path as collective_path
from workbench.core.live.rank_row import RankRow
from workbench.core.live.stack_text import Frame, Stack, parse, with_code
from workbench.diagnosis import flight, stacks
from workbench.diagnosis.process import Activity, ProcessCounters, read_counters, state_of

_ANSWER = f"{rank_row.__name__}:{rank_row.answer.__name__}"
#: seconds between two readings of a process's counters, and in which a rank answers
_BETWEEN_S, _ANSWER_S = 0.25, 0.75
_ANSWER_LOOKS = 50
#: a process may be stopped and continued in turn: seconds between looks at its state, and so many at least
_LOOK_S, _LOOKS = 0.01, 10


@dataclass(frozen=True, kw_only=True)
class RankView:
    """One rank at ``time`` (``time.monotonic``).

    ``death``: why its process ended, or "". ``row``: None where it has none. ``activity``: None for a process that
    ended. ``collective``: the one that it is in, or was in last; ``entered``: the number of the last collective that it
    entered, by key of the group. ``calls``: torch's record; ``answers``: whether a thread of the rank could run Python.
    ``recorded``: the collectives that some rank waits in, by key of the group and number, as this rank entered them.
    ``stacks``: of its threads, the main thread first.
    """

    rank: int
    time: float
    death: str = ""
    row: RankRow | None = None
    activity: Activity | None = None
    collective: LiveCollective | None = None
    entered: Mapping[int, int] = field(default_factory=dict)
    recorded: Mapping[tuple[int, int], Description] = field(default_factory=dict)
    calls: tuple[flight.Call, ...] = ()
    answers: bool = False
    stacks: tuple[Stack, ...] = ()

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The calls of its main thread, the innermost first; () when they are not known."""
        return stacks.main_frames(self.stacks)

    @property
    def phase(self) -> str:
        """Its phase: see ``RankRow``; "" when it is not known."""
        return self.row.phase if self.row is not None else ""


def look(directory: Path, ranks: Iterable[int], deaths: Mapping[int, str]) -> list[RankView]:
    """Looks at ranks, which takes about a second, whatever they do, and changes nothing in them.

    ``directory``: that of their rank server. ``deaths``: ranks that are known to have ended -> why.
    """
    rows = {rank: row for rank in ranks if rank not in deaths and (row := read(directory, rank)) is not None}
    before = {rank: counters for rank, row in rows.items() if (counters := _counters(row)) is not None}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=directory, prefix="why-", ignore_cleanup_errors=True) as asked:
        told = {rank: Path(asked) / str(rank) for rank in before}
        for rank, path in told.items():
            request = CallInRanks(ranks=[rank], function=_ANSWER, arguments={"path": str(path)})
            call_in_ranks(directory, request)  # a rank without such a thread does not answer, as seen below
        answers = _answers(told, began)
        found = {
            rank: parse(_stacks_beside(told[rank]), rows[rank].main_thread)
            for rank, answer in answers.items()
            if answer is not None
        }
        # native code holds the lock of the interpreter, or the process is stopped: else the signal would read the calls
        # of threads that go on meanwhile, which can end the process
        found |= stacks.ask(directory, {rank: rows[rank] for rank in before if rank not in found})
    states = _states({rank: rows[rank].pid for rank in before}, began + _BETWEEN_S)
    views = []
    for rank in ranks:
        row, counters = rows.get(rank), None
        if row is not None and rank in before:
            counters = _counters(row)
        answer = answers.get(rank)
        views.append(
            RankView(
                rank=rank,
                time=time.monotonic(),
                death=deaths.get(rank, "" if counters is not None else "its process has ended"),
                row=row,
                activity=None if counters is None else Activity.between(before[rank], counters, states[rank]),
                calls=() if answer is None else tuple(flight.parse(answer)),
                answers=answer is not None,
                stacks=tuple(with_code(found.get(rank, ()), answer or "{}")),
            )
        )
    return _with_collectives(views, directory)


def _states(pids: Mapping[int, int], until: float) -> dict[int, list[str]]:
    """Looks at the state of processes again and again; the letters by rank."""
    found: dict[int, list[str]] = {rank: [] for rank in pids}
    end = max(until, time.monotonic() + _LOOKS * _LOOK_S)
    while time.monotonic() < end:
        for rank, pid in pids.items():
            found[rank].append(state_of(pid))
        time.sleep(_LOOK_S)
    return found


def _with_collectives(views: list[RankView], directory: Path) -> list[RankView]:
    readers: dict[int, RowReader] = {}
    for view in views:
        with contextlib.suppress(OSError):  # it has recorded none
            readers[view.rank] = RowReader(collective_path(directory, view.rank))
    current = {rank: live for rank, reader in readers.items() if (live := reader.live()) is not None}
    awaited = {(live.key, live.number) for live in current.values() if live.waiting and live.number}
    return [
        replace(
            view,
            collective=current.get(view.rank),
            entered=readers[view.rank].newest(),
            recorded={
                place: readers[view.rank].describe(*place)
                for place in awaited
                if readers[view.rank].signature(*place) is not None
            },
        )
        if view.rank in readers
        else view
        for view in views
    ]


def read(directory: Path, rank: int) -> RankRow | None:
    """Returns the row of a rank; None when it has none."""
    try:
        return rank_row.read_row(directory, rank)
    except OSError:
        return None


def _counters(row: RankRow) -> ProcessCounters | None:
    """Reads the counters of the process that wrote ``row``; None when it has ended."""
    try:
        counters = read_counters(row.pid)
        lives = rank_row.process_start(row.pid) == row.process_start and counters.state not in "ZX"
        return counters if lives else None
    except OSError:
        return None


def _stacks_beside(path: Path) -> str:
    """Returns the stacks that a rank wrote beside its answer; "" where there are none any more."""
    try:
        return rank_row.answered_stacks(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _answers(told: Mapping[int, Path], began: float) -> dict[int, str | None]:
    """Returns the text that each rank writes into its file; None for those that write none."""
    found: dict[int, str | None] = dict.fromkeys(told)
    for _ in stacks.looks(_ANSWER_LOOKS, began + _ANSWER_S):
        for rank in [rank for rank, text in found.items() if text is None]:
            with contextlib.suppress(FileNotFoundError):  # it has not answered yet
                found[rank] = told[rank].read_text(encoding="utf-8", errors="replace")
        if None not in found.values():
            break
        time.sleep(_LOOK_S)
    return found
