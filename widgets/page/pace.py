"""Decides how often a panel gets messages, from times that the caller passes in.

A page acknowledges each message after drawing it, and says whether it is visible. The next message waits for the
acknowledgement, so a slow browser gets fewer, larger messages; a hidden page gets only facts, at long intervals. While
a cell blocks the kernel, acknowledgements cannot arrive, and messages are sent at a lower rate without them. A page
that is silent although the kernel is free counts as gone. In all cases the feed uses at most ``SHARE`` of a core.
"""

from __future__ import annotations

from dataclasses import dataclass

#: seconds between two rounds for a visible page, and for a hidden one
PERIOD_S = 0.5
HIDDEN_PERIOD_S = 5.0
#: largest share of one core that the feed uses
SHARE = 0.025
#: largest number of seconds between two rounds that ``SHARE`` can cause
SLOWEST_S = 5.0
#: seconds without an acknowledgement after which the next message is sent anyway
ACK_TIMEOUT_S = 1.0
#: seconds without a message from the page, while the kernel is free, after which the page counts as gone
GONE_S = 12.0


@dataclass
class Pace:
    """Times are seconds of one monotonic clock. ``busy``: whether a cell runs, so that messages may be waiting.

    ``sent`` and ``acked``: numbers of the last message that was sent, and acknowledged. ``cost_s``: mean CPU seconds of
    a round.
    """

    sent: int = 0
    acked: int = 0
    sent_at: float = 0.0
    heard_at: float = 0.0
    visible: bool = True
    cost_s: float = 0.0

    def spent(self, cost_s: float) -> None:
        """Record the CPU seconds of the last round."""
        self.cost_s = cost_s if self.cost_s == 0 else self.cost_s + 0.3 * (cost_s - self.cost_s)

    def sending(self, clock: float) -> int:
        """Record that a message is sent now, and return its number."""
        self.sent += 1
        self.sent_at = clock
        return self.sent

    def heard(self, clock: float, seq: int | None = None, visible: bool | None = None) -> None:
        """Record a message from the page: that it has drawn message ``seq``, or whether it is visible."""
        self.heard_at = clock
        if seq is not None:
            self.acked = max(self.acked, seq)
        if visible is not None:
            self.visible = visible

    def state(self, clock: float, busy: bool) -> str:
        """Return "open", "hidden", "blind" (a running cell blocks the page's messages) or "gone"."""
        silent = self.acked < self.sent and clock - self.heard_at > ACK_TIMEOUT_S
        if silent and busy:
            return "blind"
        if silent and clock - self.heard_at > GONE_S:
            return "gone"
        return "open" if self.visible else "hidden"

    def period_s(self, clock: float, busy: bool) -> float:
        """Return the seconds between two rounds."""
        state = self.state(clock, busy)
        least = HIDDEN_PERIOD_S if state in ("hidden", "gone") else PERIOD_S * (2 if state == "blind" else 1)
        return max(least, min(SLOWEST_S, self.cost_s / SHARE))

    def ready(self, clock: float) -> bool:
        """Return whether the next message may be sent: the last one was acknowledged or has timed out."""
        return self.acked >= self.sent or clock - self.sent_at >= ACK_TIMEOUT_S
