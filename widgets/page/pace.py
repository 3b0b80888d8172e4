"""How often a panel is fed: pure arithmetic on times, no clock of its own.

A page acknowledges each message once it has drawn it, and says whether it can be seen. The next message waits for that,
so a slow browser gets fewer and fuller ones; a hidden page gets its facts now and then. Where the kernel cannot hear
the page, because a cell blocks it, figures go on at a lower rate; where nobody answers though the kernel is free, the
page is gone. And whatever a page wants, the feed spends no more than ``SHARE`` of a core.
"""

from __future__ import annotations

from dataclasses import dataclass

PERIOD_S = 0.5
HIDDEN_PERIOD_S = 5.0
#: of one core
SHARE = 0.025
SLOWEST_S = 5.0
#: how long a message may remain without an answer before the next is sent all the same
ACK_TIMEOUT_S = 1.0
#: without a word for so long the page is gone, if the kernel could have heard it
GONE_S = 12.0


@dataclass
class Pace:
    """Times in seconds of one monotonic clock. ``busy``: a cell runs, so that messages of the page may be waiting."""

    sent: int = 0
    acked: int = 0
    sent_at: float = 0.0
    heard_at: float = 0.0
    visible: bool = True
    cost_s: float = 0.0

    def spent(self, cost_s: float) -> None:
        """What the last round took of a core."""
        self.cost_s = cost_s if self.cost_s == 0 else self.cost_s + 0.3 * (cost_s - self.cost_s)

    def sending(self, clock: float) -> int:
        """The number of the message that is sent now."""
        self.sent += 1
        self.sent_at = clock
        return self.sent

    def heard(self, clock: float, seq: int | None = None, visible: bool | None = None) -> None:
        """The page said something: that it drew message ``seq``, or whether it can be seen."""
        self.heard_at = clock
        if seq is not None:
            self.acked = max(self.acked, seq)
        if visible is not None:
            self.visible = visible

    def state(self, clock: float, busy: bool) -> str:
        """ "open", "hidden", "blind" (it cannot be heard, a cell runs) or "gone"."""
        silent = self.acked < self.sent and clock - self.heard_at > ACK_TIMEOUT_S
        if silent and busy:
            return "blind"
        if silent and clock - self.heard_at > GONE_S:
            return "gone"
        return "open" if self.visible else "hidden"

    def period_s(self, clock: float, busy: bool) -> float:
        """Seconds between two rounds."""
        state = self.state(clock, busy)
        least = HIDDEN_PERIOD_S if state in ("hidden", "gone") else PERIOD_S * (2 if state == "blind" else 1)
        return max(least, min(SLOWEST_S, self.cost_s / SHARE))

    def ready(self, clock: float) -> bool:
        """Whether the page has drawn what it got, or had its time for it."""
        return self.acked >= self.sent or clock - self.sent_at >= ACK_TIMEOUT_S
