"""A cell on ranks: sent as text, its outputs collected as they arrive, its end told rank by rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.cluster.output import CellFailure, RankOutput, fold_errors
from workbench.core import background
from workbench.errors import CellError, ClusterError, RankDiedError

#: seconds to wait for output still on its way after a rank's reply
_OUTPUT_GRACE_S = 2.0


@dataclass(frozen=True)
class CellResult:
    """Outputs of a cell, by rank."""

    outputs: dict[int, RankOutput]

    def __getitem__(self, rank: int) -> RankOutput:
        return self.outputs[rank]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that ran the cell, ascending."""
        return tuple(sorted(self.outputs))

    @property
    def ok(self) -> bool:
        """Whether no rank failed."""
        return all(output.error is None for output in self.outputs.values())

    def raise_on_error(self) -> CellResult:
        """Raise ``CellError`` for the error that most ranks had (each one has the same, as a rule); else itself."""
        errors = fold_errors(self.outputs)
        if errors:
            ranks, error = max(errors, key=lambda found: len(found[0]))
            raise CellError(ranks, error.ename, error.evalue, error.traceback)
        return self


class Submission:
    """A cell that runs on ranks. Callbacks are called in the thread that receives, and must not block."""

    def __init__(self, code: str, ranks: Sequence[int]) -> None:
        self.code = code
        self.ranks = tuple(ranks)
        self.outputs = {rank: RankOutput(rank) for rank in ranks}
        self._changed = threading.Condition()
        self._replied: dict[int, float] = {}
        self._idle: set[int] = set()
        self._dead: dict[int, str] = {}
        self._told = False
        self._timer: threading.Timer | None = None
        self._callbacks: list[Callable[[Submission], None]] = []
        self.version = 0  # grows with every output

    def done(self) -> bool:
        """Whether every rank has finished the cell or died."""
        return all(self._finished(rank) for rank in self.ranks)

    def ready_ranks(self) -> list[int]:
        """Ranks that have finished the cell or died."""
        return [rank for rank in self.ranks if self._finished(rank)]

    def heard_ranks(self) -> set[int]:
        """Ranks whose last output has arrived."""
        return set(self._idle)

    def error(self, rank: int) -> CellFailure | RankDiedError | None:
        """Why a rank did not succeed; None while it runs and when it did."""
        if rank in self._dead:
            return RankDiedError(rank, self._dead[rank])
        return self.outputs[rank].error

    def dead_ranks(self) -> dict[int, str]:
        """Ranks that died before they had finished, and why."""
        return dict(self._dead)

    def result(self) -> CellResult:
        """Outputs so far."""
        return CellResult(self.outputs)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every rank has finished or one died; False when ``timeout`` seconds passed before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not (self.done() or self._dead):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                # All have replied: only output is missing, and that wait has an end.
                pending = _OUTPUT_GRACE_S if len(self._replied) == len(self.ranks) else None
                self._changed.wait(min((value for value in (left, pending) if value is not None), default=None))
        return True

    def add_done_callback(self, callback: Callable[[Submission], None]) -> None:
        """Call ``callback(submission)`` once, when every rank has finished or died; at once if they have."""
        with self._changed:
            told = self._told
            if not told:
                self._callbacks.append(callback)
        if told:
            callback(self)
        else:
            self._limit_wait()

    # --- fed by the session

    def _finished(self, rank: int) -> bool:
        if rank in self._dead:
            return True
        replied = self._replied.get(rank)
        return replied is not None and (rank in self._idle or time.monotonic() - replied > _OUTPUT_GRACE_S)

    def rank_died(self, rank: int, reason: str) -> None:
        """The process of ``rank`` ended."""
        if rank in self.outputs and not self._finished(rank):
            with self._changed:
                self._dead[rank] = reason
            self._tell()

    def hear(self, rank: int, message: dict[str, Any]) -> None:
        """An IOPub message of ``rank``."""
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

    def all_heard(self, rank: int) -> None:
        """No more output of ``rank`` will come."""
        with self._changed:
            self._idle.add(rank)
        self._tell()

    def replied(self, rank: int, reply: Any) -> None:
        """The execute reply of ``rank``: ipyparallel's ``ExecuteReply``, or an error object."""
        with self._changed:
            if isinstance(reply, Exception):
                self.outputs[rank].error = _failure(reply)
                if not getattr(reply, "engine_info", None):
                    self._idle.add(rank)  # it never ran there, so no output comes
            self._replied[rank] = time.monotonic()
        self._tell()
        self._limit_wait()

    def _limit_wait(self) -> None:
        """All have replied and only output is missing: if its last message is lost, callbacks come all the same."""
        with self._changed:
            if self._callbacks and self._timer is None and len(self._replied) == len(self.ranks):
                failed = background.warner("what waited for the end of a cell failed")
                self._timer = background.timer(_OUTPUT_GRACE_S + 0.1, self._tell, failed=failed)
                self._timer.start()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
            if self._told or not (self.done() or len(self._dead) == len(self.ranks)):
                return
            self._told = True
            if self._timer is not None:
                self._timer.cancel()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


def _failure(error: Exception) -> CellFailure:
    """From ipyparallel's ``RemoteError`` (ename, evalue, traceback) or one of its own errors."""
    ename = getattr(error, "ename", type(error).__name__)
    evalue = getattr(error, "evalue", str(error))
    traceback = getattr(error, "traceback", "") or f"{ename}: {evalue}"
    return CellFailure(ename, evalue, traceback if isinstance(traceback, str) else "\n".join(traceback))


def send(client: Any, submission: Submission) -> None:
    """Send a submission's code to its ranks, which are engine ids of an ipyparallel client."""
    for rank in submission.ranks:
        engine = client._engines.get(rank)
        if engine is None:
            raise ClusterError(f"rank {rank} is not connected: run %dist_status, then %dist_up again")

        def listen(future: Any, rank: int = rank) -> None:
            def hear(message: dict[str, Any]) -> None:
                submission.hear(rank, message)
                kept = client.metadata.get(future.msg_id)
                if kept is not None:  # the submission holds the output, once
                    kept.update(stdout="", stderr="", outputs=[])

            future.iopub_callbacks.append(hear)
            future.output.add_done_callback(lambda _: submission.all_heard(rank))
            future.add_done_callback(lambda done: submission.replied(rank, done.result()))

        client.send_execute_request(
            client._mux_socket, submission.code, silent=False, ident=engine.encode(), message_future_hook=listen
        )
