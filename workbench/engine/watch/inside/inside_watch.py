"""Which steps are looked at inside the model, and the way of what is seen there into the log."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.core.controls import AUTOMATIC
from workbench.core.frameworks import Capability
from workbench.engine.base.capabilities import Inspectable, LossScaled, PartlyInspectable, Shaped, Watchable, needed
from workbench.engine.base.names import users_name
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.watch.host.governor import FULL, NOTHING, Governor
from workbench.engine.watch.inside.attention import attention_seen, summed
from workbench.engine.watch.inside.collector import InsideCollector, PendingInside
from workbench.engine.watch.inside.routers import routed, routers_of
from workbench.engine.watch.inside.spectra import PendingSpectra, PowerIteration
from workbench.engine.watch.inside.taps import Taps
from workbench.engine.watch.torch.host_copy import Stopwatch
from workbench.errors import ConfigError
from workbench.rundir.log import RankLogWriter

#: share of the monitor's budget that looking inside may take
SHARE = 0.5
#: where a whole run would have fewer looks than this, it is said why, after so many steps at the least
FEW_LOOKS, LEAST_SEEN = 5, 20
#: of the number that ranks agree on, the bit that says that the next step is looked at (``host.intervals`` has others)
BIT = 1 << 24


class InsideWatch(StepObserver):
    """Logs statistics of outputs, their gradients, attention, routers and weights, of the first step in which ``watch``
    is on and of every ``watch_every``-th; without an interval rank 0's governor chooses the steps within ``SHARE`` of
    the budget, and all ranks look at the same. Nothing is hooked in other steps.

    Raises ``ConfigError`` for a compiled model, which runs none of its modules' hooks, for weights of a plan that
    does not show them as matrices, and for what else a plan does not show.
    """

    def __init__(self, spec: TrainSpec, strategy: Strategy, log: RankLogWriter, device: torch.device) -> None:
        monitor = spec.monitor
        self._every = monitor.watch_every
        self._pattern = monitor.watch_layers
        self._strategy = strategy
        self._inspected = needed(strategy, Inspectable, Capability.INSPECTABLE)
        self._scaled = strategy if isinstance(strategy, LossScaled) else None
        self._watchable = strategy if isinstance(strategy, Watchable) else None
        self._log = log
        self._precision = spec.precision
        self._governor = Governor(budget=SHARE * monitor.budget, norms=False)
        self._cost = Stopwatch(device)
        self._pending: list[PendingInside | PendingSpectra] = []
        self._shaped = strategy if isinstance(strategy, Shaped) else None
        self._iteration = None if self._shaped is None else PowerIteration(self._shaped.sum_over_shards)
        self._collector: InsideCollector | None = None
        self._choose(monitor.watch)

    def _choose(self, watch: str) -> None:
        self._watched = frozenset(filter(None, watch.split(",")))
        hidden = self._inspected.hidden if isinstance(self._inspected, PartlyInspectable) else {}
        for name in sorted(self._watched & hidden.keys()):
            self._watched = frozenset()
            plan = self._strategy.spec.plan
            raise ConfigError(
                f"watch={watch}: {name}: not available with {plan.framework} {plan.plugin} ({hidden[name]})",
                field="watch",
            )
        if "weights" in self._watched and self._shaped is None:
            self._watched = frozenset()
            plan = self._strategy.spec.plan
            raise ConfigError(
                f"watch={watch}: weights: not available with {plan.framework} {plan.plugin}", field="watch"
            )
        if self._watched - {"weights"}:
            compiled = compiled_modules(self._inspected.module)
            if compiled:
                self._watched = frozenset()
                raise ConfigError(
                    f"watch={watch}: {compiled[0]} is compiled (torch.compile), so nothing inside it can be watched: "
                    "leave out torch.compile, or watch=off (watch=weights works)",
                    field="watch",
                )
        self._watch = watch
        self._is_first = True
        self._seen = self._looks = 0

    def settings(self) -> dict[str, Any]:
        every = AUTOMATIC if self._every is None else self._every
        return {"watch": self._watch, "watch_every": every, "watch_layers": self._pattern}

    def set(self, name: str, value: Any) -> None:
        if name == "watch":
            self._choose(value)
        elif name == "watch_every":
            self._every = None if value == AUTOMATIC else value
        elif name == "watch_layers":
            self._pattern = value

    def propose(self, step: int) -> int:
        if not self._watched or self._every is not None or self._strategy.rank:
            return 0
        return BIT if self._governor.choose() == FULL else 0

    def begins(self, step: int, watch: int) -> None:
        self.cost_ms = 0.0
        self._began = time.perf_counter()
        self._collector = None
        if self._watched and self._is_due(step, watch):
            self._collector = InsideCollector(sampled=self._every is None, precision=self._precision)

    def _is_due(self, step: int, watch: int) -> bool:
        first, self._is_first = self._is_first, False
        return first or (bool(watch & BIT) if self._every is None else step % self._every == 0)

    def around(self, step: int) -> AbstractContextManager[None]:
        if self._collector is None or self._watched == {"weights"}:
            return nullcontext()
        return self._looking(self._collector)

    @contextmanager
    def _looking(self, collector: InsideCollector) -> Iterator[None]:
        """Look at what runs inside. Only entering, leaving and what is computed for it count as cost."""
        with ExitStack() as looking:
            with self._cost:
                taps = self._taps(collector)
                looking.enter_context(taps)
                if "attention" in self._watched:
                    looking.enter_context(self._attention(taps, collector))
                if "micro_batches" in self._watched:
                    looking.enter_context(self._counting(taps))
            yield

    def _taps(self, collector: InsideCollector) -> Taps:
        model = self._inspected.module
        held = {users_name(name).rpartition(".")[0] for name, _ in model.named_parameters()}
        sizes = self._watchable.layer_sizes() if self._watchable is not None else {}
        elsewhere = [name for name in sizes if name not in held] if self._strategy.mesh.pp > 1 else []
        names = {users_name(name) for name, _ in model.named_modules()}
        self._chosen = {
            name
            for name in names
            if re.search(self._pattern, name) and not any(_is_within(layer, name) for layer in elsewhere)
        }
        self._routers = routers_of(model) if "routers" in self._watched else {}
        self._aside_taken = self._timed(collector)
        tapped = self._chosen if "activations" in self._watched else self._chosen & self._routers.keys()
        sharding = self._inspected.output_sharding if self._strategy.mesh.tp > 1 else None
        return Taps(model, tapped, self._aside_taken, sharding)

    def _timed(self, collector: InsideCollector) -> Any:
        """What takes an output or a gradient; its time is that of the monitor, and no phase of training."""

        def taken(found: Any) -> None:
            layer, what, micro_batch, sharded, tensor = found
            with self._cost:
                if "activations" in self._watched:
                    collector.take((layer, what, micro_batch, sharded), tensor)
                router = self._routers.get(layer) if what == "output" else None
                if router is not None and tensor.shape[-1] == router.experts:
                    collector.take_router((layer, micro_batch, router.top_k), *routed(tensor, router.top_k))

        aside: Any = self._strategy.aside(taken)  # takes one argument, whatever it is
        return lambda *found: aside(found)

    def _attention(self, taps: Taps, collector: InsideCollector) -> AbstractContextManager[None]:
        def taken(logits: Any) -> None:
            call = taps.calls[-1]
            if call.name in self._chosen:
                with self._cost:
                    sharded = "tp" if self._strategy.mesh.tp > 1 and taps.split else ""
                    collector.take_attention((call.name, taps.micro_batch, sharded), *summed(logits))

        aside: Any = self._strategy.aside(taken)  # takes one argument, whatever it is
        return attention_seen(taps, aside)

    @contextmanager
    def _counting(self, taps: Taps) -> Iterator[None]:
        """Tell ``taps`` which micro-batch is computed, as the strategy says it to those who measure phases."""
        before = self._strategy.mark

        def marked(phase: str, micro_batch: int) -> None:
            taps.micro_batch = max(micro_batch, 0)
            before(phase, micro_batch)

        self._strategy.mark = marked
        try:
            yield
        finally:
            self._strategy.mark = before

    def reduced(self, step: int) -> None:
        if self._collector is None:
            return
        with self._cost:
            scale: Any = self._strategy.mesh.dp * (self._scaled.loss_scale() if self._scaled is not None else 1.0)
            if self._watchable is not None:
                scale = scale / self._watchable.local_factor()
            self._pending.append(self._collector.finish(step, self._strategy.rank, scale))

    def updated(self, step: int, skipped: bool) -> None:
        if self._collector is None or "weights" not in self._watched:
            return
        assert self._shaped is not None and self._iteration is not None
        with self._cost:
            matrices = [one for one in self._shaped.weight_matrices() if re.search(self._pattern, one.layer)]
            found = self._iteration.look(matrices, step, self._strategy.rank)
            if found is not None:
                self._pending.append(found)

    def ends(self, step: int) -> None:
        if self._pending:
            with self._cost:
                while self._pending and self._pending[0].ready():
                    self._write(self._pending.pop(0))
        self.cost_ms = self._cost.take()

    def accounted(self, step: int, cost_ms: float) -> None:
        if self._watched:
            looked = NOTHING if self._collector is None else FULL
            step_ms = (time.perf_counter() - self._began) * 1e3
            self._governor.account(looked, self.cost_ms, step_ms, 0.0)
            self._seen += 1
            self._looks += looked == FULL
            if self._seen == max(LEAST_SEEN, self._strategy.spec.steps // FEW_LOOKS):
                self._tell_if_rare()

    def _tell_if_rare(self) -> None:
        """Say, in an event, why there is little to see of a model whose steps are short."""
        if self._looks < 2 and self._every is None and not self._strategy.rank:
            self._strategy.tell(
                "watched_rarely",
                f"activations were measured in {self._looks} of {self._seen} steps, as one measurement costs more than "
                "the monitoring budget of many such short steps: watch_every=10 (%dist_set, or --watch-every 10) "
                "measures every 10th step, whatever it costs; watch_layers measures fewer modules",
            )

    def rolled_back(self, step: int) -> None:
        self._write_all()

    def close(self) -> None:
        self._write_all()

    def _write_all(self) -> None:
        while self._pending:
            self._write(self._pending.pop(0))

    def _write(self, pending: PendingInside | PendingSpectra) -> None:
        for record in pending.records():
            self._log.append(record)


def _is_within(layer: str, module: str) -> bool:
    """Whether ``layer`` is that module or in it; the root's name is ""."""
    return not module or layer == module or layer.startswith(f"{module}.")


def compiled_modules(model: torch.nn.Module) -> list[str]:
    """Names of the modules of ``model`` that ``torch.compile`` has compiled; the root is "the model"."""
    return [
        users_name(name) or "the model"
        for name, module in model.named_modules()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    ]
