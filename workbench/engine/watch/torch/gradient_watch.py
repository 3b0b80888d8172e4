"""Which steps' gradients are watched, and their way into the log."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.core.controls import AUTOMATIC
from workbench.core.frameworks import Capability
from workbench.core.records import EventKind
from workbench.engine.base.capabilities import Normed, NormReporting, Watchable, is_alone, needed
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.parts import Comparison, GradientPart, PartNorms, WeightPart
from workbench.engine.base.strategy import PlannedRank
from workbench.engine.watch.host.governor import FULL, MASK, NOTHING, Governor
from workbench.engine.watch.torch.gradient_statistics import GradientCollector, PendingRecords
from workbench.engine.watch.torch.host_copy import Stopwatch
from workbench.engine.watch.torch.layer_norms import LayerNormLog, NormCollector, PendingNorms
from workbench.engine.watch.torch.sketch import REPLICAS, Sketcher
from workbench.engine.watch.torch.weights import PendingWeights, WeightCollector
from workbench.rundir.log import RankLogWriter

#: the interval is told again when it has changed by so much
_TELL_CHANGE = 0.25
#: full sets after which the measured cost is told: not after the first, which is much of the time so far
_TELL_COST_EVERY = 25
#: part of the free memory of a GPU that copies of weights may take, and that kept gradients may take
_ROOM = 0.25
_OF_A_STEP = ("data", "forward_backward", "optimizer")


class GradientWatch(StepObserver):
    """Logs statistics of gradients and weights: the norms of the reduced gradient of all layers at every step, those of
    the local gradients at an interval, and all statistics ("full set") at a longer one. Of a step that ranks make by
    themselves there are local gradients only.

    ``grad_every`` given: the full set of the first step and of every ``grad_every``-th, with exact histograms, and no
    local norms in between; 0: nothing at all. Otherwise rank 0's governor chooses, all ranks watch the same, and
    histograms are estimated from a sample. At level "light" local norms take the place of the full set.
    """

    #: whether gradients are seen before they are reduced
    _has_local = True

    def __init__(self, spec: TrainSpec, strategy: PlannedRank, log: RankLogWriter, device: torch.device) -> None:
        monitor = spec.monitor
        self._every = monitor.grad_every
        self._strategy = strategy
        self._watchable = self._source(strategy)
        self._normed = strategy if isinstance(strategy, Normed) else None
        self._reporting = strategy if isinstance(strategy, NormReporting) else None
        self._log = log
        self._device = device
        self._one_replica = strategy.mesh.dp == 1
        self._sees_local = self._has_local and not self._one_replica
        self._whole = monitor.level == "full"
        self._precision = spec.precision
        self._clips = spec.clip > 0
        self._governor = Governor(budget=monitor.budget, norms=self._whole and self._sees_local)
        self._choose(monitor.grad_layers)
        self._norm_log = LayerNormLog(log, strategy.rank)
        self._cost = Stopwatch(device)
        self._weights = WeightCollector()
        self._weights_from = 0
        self._sketcher = Sketcher() if strategy.mesh.dp >= REPLICAS else None
        self._collector: GradientCollector | NormCollector | None = None  # of this step; None: nothing is watched
        self._pending: list[PendingRecords | PendingNorms | PendingWeights] = []
        self._is_first = True
        self._ended: float | None = None
        self._interrupted = False
        self._told_interval: int | None = None
        self._full_sets = 0
        self._step = 0
        self._alone = False  # whether the gradients of this step are each rank's own
        _warm_up(device)

    def _source(self, strategy: PlannedRank) -> Any:
        """What shows gradients and weights. ``ConfigError`` where nothing does."""
        return needed(strategy, Watchable, Capability.WATCHABLE)

    def _choose(self, pattern: str) -> None:
        """Watch the layers in whose names ``pattern`` is found ("": all)."""
        self._pattern = pattern
        sizes = self._watchable.layer_sizes()
        chosen = {name: size for name, size in sizes.items() if re.search(pattern, name)}
        self._layers = frozenset(chosen) if pattern else None
        self._elements = sum(chosen.values()) / self._strategy.mesh.replica_size
        self._nothing_there = bool(sizes) and not chosen

    def settings(self) -> dict[str, Any]:
        return {"grad_every": AUTOMATIC if self._every is None else self._every, "grad_layers": self._pattern}

    def set(self, name: str, value: Any) -> None:
        if name == "grad_every":
            self._every = None if value == AUTOMATIC else value
        elif name == "grad_layers":
            self._choose(value)

    def propose(self, step: int) -> int:
        if self._every is not None or self._strategy.rank:
            return NOTHING
        began = self._cost.clock()
        choice = self._governor.choose()
        self._cost.add((self._cost.clock() - began) * 1e3)
        return choice

    def begins(self, step: int, watch: int) -> None:
        self.cost_ms = 0.0
        self._step = step
        self._began = time.perf_counter()
        self._code = self._code_of(step, watch)
        with self._cost:
            self._collector = self._new_collector()
            self._is_first = False
            if self._is_full and self._clips and self._reporting is not None:
                self._reporting.watch_framework_norm(True)

    @property
    def _is_full(self) -> bool:
        """Whether all statistics of this step are taken."""
        return isinstance(self._collector, GradientCollector)

    def _new_collector(self) -> GradientCollector | NormCollector | None:
        if self._code == NOTHING:
            return None
        if self._code != FULL or not self._whole:
            return NormCollector()
        return GradientCollector(
            keep=not self._one_replica and self._may_keep(),
            sampled=self._every is None,
            precision=self._precision,
            sketcher=self._sketcher,
        )

    def _code_of(self, step: int, watch: int) -> int:
        if self._nothing_there:
            return NOTHING
        if self._every is not None:
            return FULL if self._every and (step == 1 or step % self._every == 0) else NOTHING
        return FULL if self._is_first else watch & MASK

    def around(self, step: int) -> AbstractContextManager[None]:
        if self._collector is None or self._one_replica:
            return nullcontext()
        return self._looking(self._collector)

    @contextmanager
    def _looking(self, collector: GradientCollector | NormCollector) -> Iterator[None]:
        """Watch the gradients of what runs inside. Only entering and leaving count as cost, and the strategy's context
        manager is told of an exception that was raised inside."""
        looking = ExitStack()
        keep = isinstance(collector, GradientCollector) and collector.keep

        def take(parts: list[GradientPart]) -> None:
            with self._cost:
                collector.take(parts)

        with self._cost:
            looking.enter_context(self._watchable.watch_batches(take, self._layers, keep=keep))

        def leave(*raised: Any) -> bool | None:
            with self._cost:
                return looking.__exit__(*raised)

        with ExitStack() as around:
            around.push(leave)
            yield

    def reduced(self, step: int) -> None:
        self._alone = is_alone(self._strategy)
        if self._collector is None:
            return
        with self._cost:
            if isinstance(self._collector, GradientCollector):
                self._finish_full_set(step, self._collector)
            else:
                factor = self._watchable.local_factor()
                self._write_norms(step, "local", self._collector.finish(), factor)

    def _finish_full_set(self, step: int, own: GradientCollector) -> None:
        rank, layers = self._strategy.rank, self._layers
        if self._one_replica:
            own.take(self._watchable.reduced_gradients(layers, all_held=True))
            own.equals_reduced()
            self._pending.append(own.finish(step, rank, "local", reports=self._watchable.reports))
        else:
            own.multiply(self._watchable.local_factor())
            if own.keep and not self._alone:
                own.compare(self._watchable.compare(own.parts))
            self._pending.append(own.finish(step, rank, "local"))
            if not self._alone:  # otherwise there is no reduced one
                averaged = GradientCollector(sampled=self._every is None, precision=self._precision)
                averaged.take(self._watchable.reduced_gradients(layers))
                self._pending.append(averaged.finish(step, rank, "reduced"))
        self._weight_layers = self._fitting(layers)
        self._weights.before(self._watchable.weights(self._weight_layers))

    def _write_norms(self, step: int, scope: str, norms: PartNorms | None, factor: float | torch.Tensor = 1.0) -> None:
        if norms is None:
            return
        begun = self._norm_log.begin(step, scope, norms, self._layers, factor=factor)
        if begun is not None:
            self._pending.append(begun)

    def updated(self, step: int, skipped: bool) -> None:
        with self._cost:
            if self._is_full:
                found = self._weights.after(self._watchable.weights(self._weight_layers), step, self._strategy.rank)
                if found is not None:
                    self._pending.append(found)
            elif self._normed is not None and self._every != 0 and not self._nothing_there and not self._alone:
                self._write_norms(step, "reduced", self._normed.part_norms())  # they were computed for the guard
            if self._is_full and self._clips and self._reporting is not None:
                self._reporting.watch_framework_norm(False)

    def ends(self, step: int) -> None:
        if self._pending:
            with self._cost:
                self._write_arrived()
        self.cost_ms = self._cost.take()

    def accounted(self, step: int, cost_ms: float) -> None:
        began = self._cost.clock()
        self._governor.account(self._code, self.cost_ms, self._step_ms(time.perf_counter()), cost_ms - self.cost_ms)
        if self._code == FULL:
            self._full_sets += 1
            self._tell(step)
        self._cost.add((self._cost.clock() - began) * 1e3)  # counts in the next step

    def phase(self, name: str) -> None:
        self._interrupted |= name not in _OF_A_STEP

    def _step_ms(self, now: float) -> float:
        """The step's time: on a GPU from end to end, as it works on when the step's code is through, but not across an
        evaluation or a pause."""
        since = self._began
        if self._ended is not None and self._device.type == "cuda" and not self._interrupted:
            since = self._ended
        self._ended, self._interrupted = now, False
        return (now - since) * 1e3

    def rolled_back(self, step: int) -> None:
        self._write_all()

    def close(self) -> None:
        self._write_all()
        self._tell_cost(self._step)

    def _write_all(self) -> None:
        for pending in self._pending:
            for record in pending.records():
                self._log.append(record)
        self._pending = []

    def _write_arrived(self) -> None:
        while self._pending and self._pending[0].ready():
            for record in self._pending.pop(0).records():
                self._log.append(record)

    def _tell(self, step: int) -> None:
        interval = self._governor.interval if self._every is None else self._every
        told = self._told_interval
        if interval and (told is None or abs(interval - told) > _TELL_CHANGE * told) and self._strategy.rank == 0:
            self._log.event(EventKind.MONITOR, "interval", interval, step=step, old_value=told)
            self._told_interval = interval
        if self._full_sets % _TELL_COST_EVERY == 0:
            self._tell_cost(step)

    def _tell_cost(self, step: int) -> None:
        if self._governor.passed_ms:
            self._log.event(EventKind.MONITOR, "cost", round(self._governor.cost, 6), step=step)

    def _may_keep(self) -> bool:
        """Whether local gradients can be held until the reduced ones are there. On a GPU not before it is known how
        much memory a step needs, and not where it is short: watching must not be what makes a training fail."""
        if self._device.type != "cuda":
            return True
        if self._is_first:
            return False
        free, _ = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.max_memory_allocated(self._device)
        return 4 * self._elements <= _ROOM * (free + max(0, unused))

    def _fitting(self, layers: Collection[str] | None) -> Collection[str] | None:
        """Layers whose old weights fit into memory for the length of an optimizer step: all of them where possible, as
        many as fit otherwise, beginning where the last time ended."""
        if self._device.type != "cuda":
            return layers
        free, _ = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        room = _ROOM * (free + unused) / 4
        sizes = [
            (name, size) for name, size in self._watchable.layer_sizes().items() if layers is None or name in layers
        ]
        if sum(size for _, size in sizes) <= room:
            return layers
        taken: set[str] = set()
        for _ in range(len(sizes)):
            name, size = sizes[self._weights_from % len(sizes)]
            if size > room:
                break
            taken.add(name)
            room -= size
            self._weights_from += 1
        return taken


@functools.cache
def _warm_up(device: torch.device) -> None:
    """Compute a small full set, so that what torch does once per process is not counted as the cost of step 1's."""
    tensors = [torch.ones(size, device=device) for size in (8, 2**17)]
    own, averaged = GradientCollector(keep=True, sampled=True), GradientCollector(sampled=True)
    parts = [GradientPart(str(index), tensor, "") for index, tensor in enumerate(tensors)]
    weights, collector = [WeightPart(part.layer, part.tensor, "", (None, None)) for part in parts], WeightCollector()
    own.take(parts)
    own.compare(Comparison("exact", [[(tensor, tensor)] for tensor in tensors]))
    averaged.take(parts)
    collector.before(weights)
    updates = collector.after(weights, 0, 0)
    for pending in (own.finish(0, 0, "local"), averaged.finish(0, 0, "reduced"), updates):
        assert pending is not None
        pending.records()
