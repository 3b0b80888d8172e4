"""Why a rank does not come: what it does instead, from what can be seen of it. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from workbench.core.live.rank_row import CELL, DEBUGGER, IDLE, PAUSED
from workbench.core.live.stack_text import Frame, users_frame
from workbench.core.numbers import decimal_bytes
from workbench.diagnosis.view import RankView


class Cause(StrEnum):
    """What keeps ranks from going on."""

    NOTHING = "nothing"
    USER_CODE = "user code"
    DATA_LOADER = "data loader"
    JIT_BUILD = "JIT build"
    DEBUGGER = "debugger"
    STOPPED = "stopped"
    SWAPPING = "out of memory"
    STARVED = "no processor time"
    DISK = "disk"
    NATIVE_CODE = "native code"
    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"
    FINISHED = "cell finished"
    MISMATCH = "mismatched collectives"
    DEADLOCK = "deadlock between groups"
    DEAD_PEER = "dead peer"
    ERROR = "error"
    TRANSFER = "transfer"


class Reason(NamedTuple):
    """Why a rank does not come. ``words``: what it does ("is in data loading, line 17 of the cell"); ``advice``: what
    to do next."""

    cause: Cause
    words: str
    advice: str = ""


_DEBUGGERS = (
    "/pdb.py",
    "/bdb.py",
    "/debugpy/",
    "/pydevd",
    "/IPython/core/debugger.py",
    "/IPython/terminal/debugger.py",
)
_BUILDS = (
    "/torch/utils/cpp_extension.py",
    "/torch/_inductor/",
    "/torch/_dynamo/",
    "/triton/",
)
_DATA = ("/torch/utils/data/", "/workbench/engine/data/")
#: pages that a rank reads from a disk per second when its memory does not fit, and the share without a core
_SWAPS, _STARVES = 50.0, 0.5
#: the share of looks at which a process is stopped that somebody stops and continues in turn
_OFTEN_STOPPED = 0.2


def reason_of(view: RankView) -> Reason:
    """Returns why a rank that waits in no collective does not come."""
    if view.death:
        return Reason(Cause.DEAD_PEER, f"has died: {view.death}", "run %dist_up to replace it")
    return _by_process(view) or _by_stack(view) or _by_phase(view)


def _by_process(view: RankView) -> Reason | None:
    """Returns what the kernel says of its process."""
    activity = view.activity
    pid = view.row.pid if view.row is not None else 0
    if activity is None:
        return None
    now = activity.now
    if activity.stopped > _OFTEN_STOPPED:
        share = f"{100 * activity.stopped:.0f} %"
        return Reason(
            Cause.STOPPED,
            f"is stopped {share} of the time, by signals that stop and continue it in turn (process {pid})",
            "end what sends SIGSTOP to it, such as a program that limits its use of the processor",
        )
    if now.state == "T":
        return Reason(
            Cause.STOPPED, f"is stopped by a signal (SIGSTOP, process {pid})", f"kill -CONT {pid} lets it go on"
        )
    if now.state == "t" or now.tracer:
        return Reason(Cause.DEBUGGER, f"is held by a debugger, process {now.tracer}", "continue or detach the debugger")
    if activity.faults_per_s > _SWAPS and now.swap_bytes:
        return Reason(
            Cause.SWAPPING,
            f"swaps: {decimal_bytes(now.swap_bytes)} of its memory are on disk, and it reads "
            f"{activity.faults_per_s:.0f} pages a second back",
            "use a smaller batch or fewer ranks",
        )
    return None


def _by_stack(view: RankView) -> Reason | None:
    """Returns what the calls of its main thread show."""
    frames, place = view.frames, _at(view)
    inner = frames[:40]
    if _any_in(inner[:12], _DEBUGGERS):
        advice = "%dist_debug talks to it" if view.phase == DEBUGGER else "continue it (c), or leave the debugger (q)"
        return Reason(Cause.DEBUGGER, f"is in the debugger{place}", advice)
    building = view.activity.now.building if view.activity is not None else ()
    if building or _any_in(inner, _BUILDS):
        programs = f" ({', '.join(sorted(set(building)))})" if building else ""
        return Reason(Cause.JIT_BUILD, f"builds code{programs}{place}", "wait: it is built once and then kept")
    if _any_in(inner, _DATA) or view.phase == "data":
        return Reason(Cause.DATA_LOADER, f"is in data loading{place}", "see what its data set does there")
    return None


_PHASES = {
    IDLE: (Cause.FINISHED, "has finished its cell", "call the collective on every rank of the group"),
    "checkpoint": (Cause.CHECKPOINT, "writes or reads a checkpoint", "look at the disk that it is on"),
    "evaluate": (Cause.EVALUATION, "evaluates", "give each rank as much to evaluate"),
}


def _by_phase(view: RankView) -> Reason:
    activity, place = view.activity, _at(view)
    at = f" (it is at {place.removeprefix(', ')})" if place else ""
    if view.frames and not view.answers and view.phase not in _PHASES:
        return Reason(
            Cause.NATIVE_CODE, f"is in native code that holds the interpreter's lock{place}", "look at that call"
        )
    if activity is not None and activity.starved > _STARVES:
        return Reason(
            Cause.STARVED,
            f"gets no core for {100 * activity.starved:.0f} % of the time, as other processes use them{at}",
            "end what else runs on this machine, or use fewer ranks; if it still hangs then, look at that line",
        )
    if activity is not None and activity.now.state == "D":
        return Reason(Cause.DISK, f"waits for a disk{place}", "look at the disk that it reads or writes")
    if view.phase in _PHASES:
        cause, words, advice = _PHASES[view.phase]
        return Reason(cause, words if view.phase == IDLE else f"{words}{place}", advice)
    if view.phase == CELL and place:
        return Reason(Cause.USER_CODE, f"is at {place.removeprefix(', ')}", "look at that line")
    where = {CELL: "is in the cell", PAUSED: "is paused", "": "runs"}.get(view.phase, f"is in phase {view.phase}")
    return Reason(Cause.USER_CODE, f"{where}{place}", "look at that line")


def _any_in(frames: tuple[Frame, ...], parts: tuple[str, ...]) -> bool:
    return any(part in frame.file for frame in frames for part in parts)


def _at(view: RankView) -> str:
    frame = users_frame(view.frames)
    return "" if frame is None else f", {frame}"
