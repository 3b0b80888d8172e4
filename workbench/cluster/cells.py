"""Cells on ranks: sends the source of a cell, collects its output as it arrives, and tracks which ranks finished."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.cluster.base.protocol import CELL, FOLLOWS, RANKS, WORK_DIR
from workbench.cluster.output import MESSAGE_CHARACTERS, CellFailure, RankOutput, cut, group_errors
from workbench.core import background
from workbench.errors import CellError, ClusterError, RankDiedError

#: seconds to wait for more output of a rank after its reply, and after what came since
_OUTPUT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class CellResult:
    """The result of a cell. ``outputs``: output and error by rank; ``result[rank]`` is the output of one rank."""

    outputs: dict[int, RankOutput]

    def __getitem__(self, rank: int) -> RankOutput:
        return self.outputs[rank]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that ran the cell, in ascending order."""
        return tuple(sorted(self.outputs))

    @property
    def ok(self) -> bool:
        """Whether the cell succeeded on all ranks."""
        return all(output.error is None for output in self.outputs.values())

    def raise_on_error(self) -> CellResult:
        """Raises ``CellError`` if the cell failed, for the error that most ranks raised by themselves.

        Otherwise returns itself.
        """
        groups = group_errors(self.outputs)
        if groups:
            ranks, error = groups[0]
            raise CellError(ranks, error.ename, error.evalue, error.traceback)
        return self


class Submission:
    """A cell that was sent to ranks.

    Done callbacks are usually called in the thread that receives messages, so they must not block. ``version`` grows
    with every output. ``number``: of the cell, by which ranks tell cells apart. ``began``: ``time.monotonic()``.
    """

    _numbers = itertools.count(1)

    def __init__(self, code: str, ranks: Sequence[int]) -> None:
        self.code = code
        self.number = next(self._numbers)
        self.began = time.monotonic()
        self.ranks = tuple(ranks)
        self.outputs = {rank: RankOutput(rank) for rank in ranks}
        self._changed = threading.Condition()
        self._heard: dict[int, float] = {}  # ranks that have replied -> when they, or their output, came last
        self._complete_outputs: set[int] = set()
        self._dead: dict[int, str] = {}
        self._callbacks_called = False
        self._timer: threading.Timer | None = None
        self._callbacks: list[Callable[[Submission], None]] = []
        self._error_callback: Callable[[Submission], None] | None = None
        self.version = 0

    def done(self) -> bool:
        """Returns whether every rank has finished the cell or died."""
        return not self.running_ranks()

    def finished_ranks(self) -> list[int]:
        """Returns the ranks that have finished the cell or died."""
        return [rank for rank in self.ranks if self._is_finished(rank)]

    def running_ranks(self) -> list[int]:
        """Returns the ranks that have neither finished the cell nor died."""
        return [rank for rank in self.ranks if not self._is_finished(rank)]

    def ranks_with_complete_output(self) -> set[int]:
        """Returns the ranks whose output has arrived in full."""
        return set(self._complete_outputs)

    def error(self, rank: int) -> CellFailure | RankDiedError | None:
        """Returns the error of a rank, or None while the rank runs the cell and when it succeeded."""
        if rank in self._dead:
            return RankDiedError(rank, self._dead[rank])
        return self.outputs[rank].error

    def dead_ranks(self) -> dict[int, str]:
        """Returns the ranks that died before they finished the cell, with the reason for each."""
        return dict(self._dead)

    def result(self) -> CellResult:
        """Returns the result, with the output that has arrived so far."""
        return CellResult(self.outputs)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until every rank has finished or one has died. Returns False after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not (self.done() or self._dead):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                # All ranks have replied and only output is missing, which is waited for only for a limited time.
                output_timeout = _OUTPUT_TIMEOUT_S if self._is_only_output_missing() else None
                self._changed.wait(min((value for value in (left, output_timeout) if value is not None), default=None))
        return True

    def add_done_callback(self, callback: Callable[[Submission], None]) -> None:
        """Calls ``callback(submission)`` once, when every rank has finished or died; at once if they already have."""
        with self._changed:
            called = self._callbacks_called
            if not called:
                self._callbacks.append(callback)
        if called:
            callback(self)
        else:
            self._start_output_timer()

    def on_first_error(self, callback: Callable[[Submission], None]) -> None:
        """Calls ``callback(submission)`` once, when the first rank raises. It must not block."""
        self._error_callback = callback

    def wait_until_finished(self, timeout_s: float) -> bool:
        """Waits until every rank has finished or died, ``timeout_s`` seconds at most. Returns whether they have."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self.done() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        return self.done()

    # --- updates, from the thread that receives messages

    def _is_finished(self, rank: int) -> bool:
        if rank in self._dead:
            return True
        heard = self._heard.get(rank)
        if heard is None:
            return False
        return rank in self._complete_outputs or time.monotonic() - heard > _OUTPUT_TIMEOUT_S

    def _is_only_output_missing(self) -> bool:
        """Whether every rank has replied or died, so that nothing but output can still arrive."""
        return self._heard.keys() | self._dead.keys() >= set(self.ranks)

    def mark_dead(self, rank: int, reason: str) -> None:
        """Records that the process of ``rank`` ended."""
        if rank in self.outputs and not self._is_finished(rank):
            with self._changed:
                self._dead[rank] = reason
            self._notify()
            self._start_output_timer()

    def add_output(self, rank: int, message: dict[str, Any]) -> None:
        """Adds the output in an IOPub message of ``rank``. Ignores messages that are not output."""
        content = message["content"]
        output = self.outputs[rank]
        with self._changed:
            match message["header"]["msg_type"]:
                case "stream":
                    output.add_text(content["name"], content["text"])
                case "display_data":
                    output.add_data("display", content["data"], content.get("metadata"))
                case "execute_result":
                    output.add_data("result", content["data"], content.get("metadata"))
                case _:
                    return
            self.version += 1
            if rank in self._heard:
                self._heard[rank] = time.monotonic()

    def mark_output_complete(self, rank: int) -> None:
        """Records that the output of ``rank`` has arrived in full."""
        with self._changed:
            self._complete_outputs.add(rank)
        self._notify()

    def add_reply(self, rank: int, reply: Any) -> None:
        """Records the execute reply of ``rank``: ipyparallel's ``ExecuteReply``, or the exception of a failed cell.

        Of a rank that has died, ipyparallel says less than is known.
        """
        callback = None
        with self._changed:
            if rank in self._dead:
                return
            if isinstance(reply, Exception):
                callback, self._error_callback = self._error_callback, None
                self.outputs[rank].error = _failure(reply)
                if not getattr(reply, "engine_info", None):
                    self._complete_outputs.add(rank)  # the cell did not run on the rank, so it has no output
            self._heard[rank] = time.monotonic()
        self._notify()
        self._start_output_timer()
        if callback is not None:
            callback(self)

    def _start_output_timer(self) -> None:
        """When every living rank has replied, makes sure that callbacks are called even if output is lost."""
        with self._changed:
            if self._callbacks and self._timer is None and self._is_only_output_missing():
                failed = background.warner("a done callback of a cell failed")
                self._timer = background.timer(_OUTPUT_TIMEOUT_S + 0.1, self._look_again, failed=failed)
                self._timer.start()

    def _look_again(self) -> None:
        """Calls the callbacks when nothing more came; else waits once more."""
        with self._changed:
            self._timer = None
        self._notify()
        self._start_output_timer()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
            if self._callbacks_called or not (self.done() or len(self._dead) == len(self.ranks)):
                return
            self._callbacks_called = True
            if self._timer is not None:
                self._timer.cancel()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


def _failure(error: Exception) -> CellFailure:
    """Converts an exception of ipyparallel: a ``RemoteError`` of the cell, or an error of ipyparallel itself."""
    ename = getattr(error, "ename", type(error).__name__)
    evalue = getattr(error, "evalue", str(error))
    traceback = getattr(error, "traceback", "") or f"{ename}: {evalue}"
    traceback = traceback if isinstance(traceback, str) else "\n".join(traceback)
    return CellFailure(ename, cut(evalue, MESSAGE_CHARACTERS), cut(traceback))


def wait_until_done(
    submission: Submission, timeout: float | None, while_waiting: Callable[[Submission], None] | None = None
) -> bool:
    """Waits until all ranks have finished a cell or died, for ``timeout`` seconds at most (None: for ever). Calls
    ``while_waiting(submission)`` every 0.5 s; what that takes does not count. Returns whether they have."""
    deadline = None if timeout is None else time.monotonic() + timeout
    finished = False
    while not finished and (deadline is None or time.monotonic() < deadline):
        slice_s = 0.5 if deadline is None else min(0.5, max(0.0, deadline - time.monotonic()))
        finished = submission.wait(slice_s)
        if not finished and while_waiting is not None:
            began = time.monotonic()
            while_waiting(submission)
            if deadline is not None:
                deadline += time.monotonic() - began
    return finished


def send(client: Any, submission: Submission, *, follows: bool = True) -> None:
    """Sends the code of a submission to its ranks. ``client``: an ipyparallel client, whose engine ids are the ranks.

    If it ``follows``, the ranks change to the notebook's working directory, and reload modules that changed on
    disk, before they run the code. Raises ``ClusterError`` when a rank is not connected to the controller.
    """
    metadata: dict[str, Any] = {**_work_dir(), RANKS: submission.ranks} if follows else {FOLLOWS: False}
    metadata[CELL] = submission.number
    for rank in submission.ranks:
        engine = client._engines.get(rank)
        if engine is None:
            raise ClusterError(
                f"rank {rank} is not connected to the controller: check %dist_status, and restart the ranks with "
                "%dist_down and %dist_up"
            )

        def add_callbacks(future: Any, rank: int = rank) -> None:
            def add_output(message: dict[str, Any]) -> None:
                submission.add_output(rank, message)
                metadata = client.metadata.get(future.msg_id)
                if metadata is not None:  # the client keeps no second copy of the output
                    metadata.update(stdout="", stderr="", outputs=[])

            future.iopub_callbacks.append(add_output)
            future.output.add_done_callback(lambda _: submission.mark_output_complete(rank))
            future.add_done_callback(lambda done: submission.add_reply(rank, done.result()))

        client.send_execute_request(
            client._mux_socket,
            submission.code,
            silent=False,
            metadata=metadata,
            ident=engine.encode(),
            message_future_hook=add_callbacks,
        )


def _work_dir() -> dict[str, Any]:
    try:
        return {WORK_DIR: os.getcwd()}
    except FileNotFoundError:  # the notebook's directory was deleted: the ranks stay where they are
        return {}
