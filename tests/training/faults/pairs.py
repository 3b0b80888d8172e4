"""The pairs of a fault and what ranks do when it comes. To add a pair is to add a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What goes wrong: in rank 1, in the machine, or in what holds the ranks together."""

    EXCEPTION = "exception"
    INTERRUPT = "Ctrl-C"
    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    LOOP = "endless loop in Python"
    NATIVE_LOOP = "endless loop in C"
    NAN = "NaN"
    MEMORY = "out of memory"
    DISK = "full disk"
    MISMATCH = "collectives that differ"
    CONTROLLER = "controller killed"
    SERVER = "rank server killed"
    KERNEL = "kernel killed"


class During(StrEnum):
    """What the ranks do. In a collective, one rank waits for the other."""

    IDLE = "idle"
    CELL = "cell"
    COLLECTIVE = "collective"
    STEP = "training step"
    CHECKPOINT = "checkpoint"
    PAUSED = "paused"


#: what a cell runs on, rather than a training
IN_CELLS = (During.IDLE, During.CELL, During.COLLECTIVE)
#: what ends all ranks
ENDS_ALL = (Fault.CONTROLLER, Fault.SERVER)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A fault, what the ranks do when it comes, and what is promised then.

    ``told``: a regular expression of what the prompt comes back with ("": with nothing). ``lost``: the ranks that are
    started anew; the others keep their variables. ``status``: of the run, where one trains. ``presses``: how often
    Ctrl-C is pressed until the prompt is back, where no rank is ended because it does not stop in time.
    """

    fault: Fault
    during: During
    told: str = ""
    lost: tuple[int, ...] = ()
    status: str = ""
    presses: int = 0

    @property
    def name(self) -> str:
        """For the list of tests."""
        return f"{self.fault}, {self.during}"

    @property
    def promise(self) -> str:
        """The state after it, in words."""
        if self.fault == Fault.KERNEL:
            return "its ranks end with it" + (f"; the run is {self.status}" if self.status else "")
        kept = {
            (): "both ranks keep their variables",
            (1,): "rank 1 is started anew, rank 0 keeps its variables",
            (0, 1): "all ranks are started anew",
        }[self.lost]
        return (
            f"the run has {self.status}; {kept}"
            if self.status == "failed"
            else (f"the run is {self.status}; {kept}" if self.status else kept)
        )


def needed_presses(pair: Pair) -> int:
    """How often a person presses Ctrl-C until the prompt is back: ranks of a cell that do not stop are ended."""
    return min(pair.presses, 1) if pair.during in IN_CELLS else pair.presses


def _during(fault: Fault, *rows: tuple[During, str, tuple[int, ...], str, int]) -> Iterator[Pair]:
    for during, told, lost, status, presses in rows:
        yield Pair(fault=fault, during=during, told=told, lost=lost, status=status, presses=presses)


_D = During
_BOTH, _ONE = (0, 1), (1,)
_KILLED = "rank 1.* killed by signal 9"
_ENDED = "rank 1( waited for it and was ended|: ended by an interrupt)"

PAIRS: tuple[Pair, ...] = (
    *_during(
        Fault.EXCEPTION,
        (_D.CELL, "rank 1: ValueError: planted", (), "", 0),
        (_D.COLLECTIVE, "rank 1: ValueError: planted", (), "", 0),
        (_D.STEP, "rank 1: ValueError: planted", (), "failed", 0),
        (_D.CHECKPOINT, "rank 1: ValueError: planted", (), "failed", 0),
    ),
    *_during(
        Fault.INTERRUPT,
        (_D.IDLE, "", (), "", 0),
        (_D.CELL, "Ctrl-C", (), "", 1),
        (_D.COLLECTIVE, "Ctrl-C", (), "", 1),
        (_D.STEP, "", (), "stopped", 1),
        (_D.CHECKPOINT, "", (), "stopped", 1),
        (_D.PAUSED, "", (), "stopped", 1),
    ),
    *_during(
        Fault.KILL,
        (_D.IDLE, _KILLED, _ONE, "", 0),
        (_D.CELL, _KILLED, _ONE, "", 0),
        (_D.COLLECTIVE, _KILLED, _ONE, "", 0),
        (_D.STEP, _KILLED, _ONE, "failed", 0),
        (_D.CHECKPOINT, _KILLED, _ONE, "failed", 0),
        (_D.PAUSED, _KILLED, _ONE, "failed", 0),
    ),
    *_during(
        Fault.STOP,
        (_D.IDLE, "rank 1 is stopped by a signal", (), "", 0),
        (_D.CELL, "Ctrl-C", _ONE, "", 2),
        (_D.COLLECTIVE, "Ctrl-C", _ONE, "", 2),
        (_D.STEP, _ENDED, _ONE, "failed", 2),
        (_D.CHECKPOINT, _ENDED, _ONE, "failed", 2),
        (_D.PAUSED, "", (), "stopped", 0),
    ),
    *_during(
        Fault.LOOP,
        (_D.CELL, "Ctrl-C", (), "", 1),
        (_D.COLLECTIVE, "Ctrl-C", (), "", 1),
        (_D.STEP, "KeyboardInterrupt", (), "failed", 2),
        (_D.CHECKPOINT, "KeyboardInterrupt", (), "failed", 2),
    ),
    *_during(
        Fault.NATIVE_LOOP,
        (_D.CELL, "Ctrl-C", _ONE, "", 2),
        (_D.COLLECTIVE, "Ctrl-C", _ONE, "", 2),
        (_D.STEP, _ENDED, _ONE, "failed", 2),
        (_D.CHECKPOINT, _ENDED, _ONE, "failed", 2),
    ),
    *_during(
        Fault.NAN,
        (_D.STEP, "", (), "stopped", 0),
        (_D.PAUSED, "", (), "stopped", 0),
    ),
    *_during(
        Fault.MEMORY,
        (_D.CELL, "rank 1.*out of memory", _ONE, "", 0),
        (_D.COLLECTIVE, "rank 1.*out of memory", _ONE, "", 0),
        (_D.STEP, "rank 1.*out of memory", _ONE, "failed", 0),
        (_D.CHECKPOINT, "rank 1.*out of memory", _ONE, "failed", 0),
    ),
    *_during(
        Fault.DISK,
        (_D.STEP, "No space left", (), "failed", 0),
        (_D.CHECKPOINT, "No space left", (), "failed", 0),
    ),
    *_during(
        Fault.MISMATCH,
        (_D.COLLECTIVE, "CollectiveMismatchError: .*all_reduce of [34] float32", (), "", 0),
        (_D.STEP, "CollectiveMismatchError: .*all_reduce of [34] float32", (), "failed", 0),
    ),
    *_during(
        Fault.CONTROLLER,
        (_D.IDLE, "the controller ended", _BOTH, "", 0),
        (_D.CELL, "the controller ended", _BOTH, "", 0),
        (_D.COLLECTIVE, "the controller ended", _BOTH, "", 0),
        (_D.STEP, "the controller ended", _BOTH, "failed", 0),
    ),
    *_during(
        Fault.SERVER,
        (_D.IDLE, "the rank server ended", _BOTH, "", 0),
        (_D.CELL, "the rank server ended", _BOTH, "", 0),
        (_D.COLLECTIVE, "the rank server ended", _BOTH, "", 0),
        (_D.STEP, "the rank server ended", _BOTH, "failed", 0),
    ),
    *_during(
        Fault.KERNEL,
        *((during, "", _BOTH, "", 0) for during in IN_CELLS),
        *((during, "", _BOTH, "lost", 0) for during in (_D.STEP, _D.CHECKPOINT, _D.PAUSED)),
    ),
)
