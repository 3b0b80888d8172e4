"""How a run ended: what a rank answers when its part is over, and which failure explains the others."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.core.records import RESTARTING, EventKind
from workbench.errors import format_ranks
from workbench.events.decode import is_rank, of_kind

if TYPE_CHECKING:
    from workbench.core.columns import Columns


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A rank's own word about its end, told to the session beside its log: the log may be what failed.

    ``state``: finished, stopped, failed, or restarting (it failed, and the run may be restarted), after ``step`` steps.
    ``failure``: the value of the event that says so (ename, evalue, traceback, peer); empty unless it failed.
    ``log_failure``: why its log ends early; empty when whole.
    """

    state: str
    step: int
    failure: dict[str, Any] = field(default_factory=dict)
    log_failure: str = ""

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_result(cls, result: str | None) -> Outcome | None:
        """From the result of a cell whose last value was ``to_text()``; None when it is anything else."""
        try:
            return cls(**json.loads(ast.literal_eval(result or "")))
        except (SyntaxError, ValueError, TypeError):
            return None

    def what_the_log_lacks(self) -> tuple[str, dict[str, Any] | None]:
        """State and value of the event that stands for this rank where its log could not say it."""
        if self.failure or not self.log_failure:
            return "failed" if self.state == RESTARTING else self.state, self.failure or None
        told = (
            f"it {self.state} after step {self.step}, but its log could not be written to the end: {self.log_failure}"
        )
        advice = "make room where runs are kept (WORKBENCH_HOME) and train again"
        return "failed", failure("LogLost", f"{told}; {advice}")


def failure(ename: str, evalue: str, traceback: str = "", *, peer: bool = False) -> dict[str, Any]:
    """The value of a ``state failed`` event. ``peer``: it is only the consequence of another rank's failure."""
    return {"ename": ename, "evalue": evalue, "traceback": traceback, "peer": peer}


class FirstFailure(NamedTuple):
    """The failure that explains the others: ``ranks`` that had it (none: nobody said why), ``message``, the
    ``traceback`` from the first line of the user's own code on (empty for a rank that died), and the ``step``."""

    ranks: list[int]
    message: str
    traceback: str = ""
    step: int = 0

    @property
    def who(self) -> str:
        """``ranks 0-3``."""
        return format_ranks(self.ranks) if self.ranks else "a rank"

    def __str__(self) -> str:
        return "\n".join(filter(None, [f"{self.who}: {self.message}", self.traceback.rstrip()]))


def failure_of(events: Columns, *, restarting: bool = False) -> FirstFailure | None:
    """The first failure among events: pure; None when no rank failed or died. ``restarting``: of those after which the
    run may be restarted, and only one that explains itself.

    A rank that died (with those that died of the same) explains what its peers then saw; otherwise it is the earliest
    failure that is not about a peer.
    """
    deaths = []
    for event in of_kind(events, EventKind.RANK, "replaced" if restarting else "died"):
        rank = event.fields.get("rank")
        if is_rank(rank):
            deaths.append((rank, str(event.fields.get("reason", "the reason is not known")), event.step))
    if deaths:
        _, reason, step = deaths[0]
        return FirstFailure(sorted({rank for rank, why, _ in deaths if why == reason}), reason, step=step)
    failures = list(of_kind(events, EventKind.STATE, RESTARTING if restarting else "failed"))
    if restarting:
        failures = [event for event in failures if not event.fields.get("peer")]
    if not failures:
        return None
    first = min(failures, key=lambda event: (bool(event.fields.get("peer")), event.time))
    same = {event.rank for event in failures if event.rank >= 0 and _what(event.fields) == _what(first.fields)}
    return FirstFailure(sorted(same), _what(first.fields), str(first.fields.get("traceback", "")), first.step)


def early_end_of(events: Columns) -> str:
    """Why a run finished before its last step, as its ranks agreed; "" if it did not."""
    reasons = [event.value for event in of_kind(events, EventKind.STATE, "finished")]
    return next((reason for reason in reasons if isinstance(reason, str)), "")


def _what(value: dict[str, Any]) -> str:
    return f"{value.get('ename', 'error')}: {value.get('evalue', '')}"
