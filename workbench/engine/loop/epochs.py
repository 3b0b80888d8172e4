"""Where a training is in its data: the batches of this replica, one after another, and where epochs end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.engine.base.batch import Batch
from workbench.engine.base.workload import EPOCH_END, BatchSource, Epochal
from workbench.errors import ConfigError


class EpochReader:
    """Reads the batches of a source. ``consumed``: batches that were given; ``done``: epochs that ended with one.

    A source that cannot count its epochs is read one batch ahead, if ``exact``: the end of an epoch is then known right
    after its last batch, else when the next batch is asked for. Raises ``ConfigError`` when ``exact`` is asked of a
    source that knows no epochs.
    """

    def __init__(self, data: BatchSource, dp: int, dp_size: int, *, exact: bool) -> None:
        self._data = data
        self._epochal = data if isinstance(data, Epochal) else None
        if exact and self._epochal is None:
            raise ConfigError(f"{type(data).__name__} has no epochs: train with --steps, and count in steps")
        self._place = (dp, dp_size)
        self._exact = exact
        self._stream: Iterator[Any] = iter(())
        self._ahead: Any = None
        self._is_end_counted = False
        self.consumed = 0
        self.done = 0
        #: batches of the last whole epoch that was read; None: not known
        self.length: int | None = None
        self._began_at: int | None = 0

    def begin(self, number: int, done: int | None = None) -> None:
        """Go on with batch ``number``, before which ``done`` epochs have ended (None: not known)."""
        self.consumed, self._ahead, self._is_end_counted = number, None, False
        self._began_at = None if number else 0
        epochal = self._epochal
        if epochal is None:
            self._stream = self._data.batches(*self._place, number) if number else self._data.batches(*self._place)
            return
        at = epochal.epochs_at(number)
        if at is not None:
            self.done = int(at)
            self._stream = epochal.marked(*self._place, number)
            self.length = self._known_length()
            return
        self.done = 0
        self._stream = epochal.marked(*self._place)
        left = number
        while left:
            if next(self._stream) is EPOCH_END:
                self.done += 1
                self._began_at = number - left
            else:
                left -= 1
        if done is not None and done > self.done:
            self.done, self._is_end_counted = done, True

    def _known_length(self) -> int | None:
        assert self._epochal is not None
        through = self._epochal.batches_through(self.done + 2), self._epochal.batches_through(self.done + 1)
        return None if None in through else through[0] - through[1]  # type: ignore[operator]

    def __next__(self) -> Batch:
        item, self._ahead = self._ahead, None
        while item is None or item is EPOCH_END:
            if item is EPOCH_END:
                self._pass_end()
            item = next(self._stream)
        self.consumed += 1
        return item

    def _pass_end(self) -> None:
        if not self._is_end_counted:
            self._count_end()
        self._is_end_counted = False

    def _count_end(self) -> None:
        self.done += 1
        self._is_end_counted = True
        if self._began_at is not None:
            self.length = self.consumed - self._began_at
        self._began_at = self.consumed

    def look_ahead(self) -> bool:
        """Whether the last batch that was given ended its epoch. Called once after each batch, if the source is read
        exactly or can count."""
        if self._epochal is None:
            return False
        through = self._epochal.batches_through(self.done + 1)
        if through is None and self._exact:
            self._ahead = next(self._stream)
            ended = self._ahead is EPOCH_END
        else:
            ended = through is not None and self.consumed == through
        if ended:
            self._count_end()
        return ended

    def steps_through(self, epochs: int) -> int | None:
        """Steps from here to the end of so many epochs; None where only reading tells."""
        through = self._epochal.batches_through(epochs) if self._epochal is not None else None
        return None if through is None else through - self.consumed

    @property
    def progress(self) -> float:
        """Epochs that are done, with the share of the begun one where its length is known."""
        at = self._epochal.epochs_at(self.consumed) if self._epochal is not None else None
        return float(self.done) if at is None else at
