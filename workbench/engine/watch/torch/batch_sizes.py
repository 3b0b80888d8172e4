"""Logs the size of the global batch once per run, and whether throughput counts tokens or samples."""

from __future__ import annotations

from workbench.core.records import EventKind
from workbench.engine.agree.exchange import Exchange
from workbench.engine.base.batch import Batch
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.data.batches import counts_tokens, samples_in
from workbench.rundir.log import RankLogWriter


class BatchSizeLogger(StepObserver):
    """Rank 0 logs the event ``data batch`` with the first batch of the run, whose shares may differ in size.

    Collective over ``exchange`` at the first batch.
    """

    def __init__(
        self, strategy: Strategy, log: RankLogWriter, exchange: Exchange, *, tokens_per_sample: int | None
    ) -> None:
        self._strategy = strategy
        self._log = log
        self._exchange = exchange
        self._tokens_per_sample = tokens_per_sample
        self._done = False

    def batch(self, step: int, batch: Batch) -> None:
        if self._done:
            return
        self._done = True
        mesh = self._strategy.mesh
        ranks_of_replica = mesh.replica_size
        samples = sum(self._exchange.gathered(samples_in(batch))) // ranks_of_replica
        if self._strategy.rank:
            return
        unit = "tokens" if counts_tokens(batch, self._tokens_per_sample) else "samples"
        self._log.event(EventKind.DATA, "batch", {"samples": samples, "unit": unit}, step=step)
