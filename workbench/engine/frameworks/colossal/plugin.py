"""What Colossal-AI's plugins share: a boosted workload and its verbs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from colossalai.booster import Booster
from torch.utils._pytree import tree_map

from workbench.core.config import TrainSpec
from workbench.core.mesh import Coordinates
from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, WeightMatrix, WeightPart
from workbench.engine.base.workload import Workload
from workbench.engine.communication.exchange import GradientExchange
from workbench.engine.communication.weight_exchange import WeightExchange
from workbench.engine.frameworks.colossal.module_state import generators_of, is_sharded
from workbench.engine.frameworks.colossal.sequence_parallel import SequenceReduction
from workbench.engine.frameworks.torch_common.batch_norm import BatchNorms
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction
from workbench.engine.frameworks.torch_common.gradient_hooks import GradientHooks, StepHooks
from workbench.engine.frameworks.torch_common.optimizer_state import cut_state, weight_part
from workbench.engine.frameworks.torch_common.parameters import (
    ModelNames,
    RankParameter,
    rank_parameters,
    share_of_replicas,
)
from workbench.engine.frameworks.torch_common.state_locator import StateLocator
from workbench.engine.frameworks.torch_common.step_reads import StepReads
from workbench.engine.frameworks.torch_common.trained import convert_inputs, modes_of, set_modes, trained, users_model
from workbench.engine.frameworks.torch_common.weight_changes import FrozenByCell
from workbench.engine.state.layout import LossScaler, Originals, RankState

Result = TypeVar("Result")

#: names of layers, None for all of them
Wanted = Collection[str] | None


def is_in(layer: str, wanted: Wanted) -> bool:
    """Whether a layer is among those wanted; None: all are."""
    return wanted is None or layer in wanted


class Plan(ABC):
    """A workload boosted by one plugin: ``model`` and ``optimizer`` are the wrapped ones, ``module`` the user's.

    ``masters_are_slices``: each replica's optimizer updates a flat slice of every parameter.
    """

    masters_are_slices = False
    #: first loss scale in fp16. Upstream's defaults (2**16, 2**32) skip so many steps that short runs learn less
    initial_scale = 2.0**10
    #: the algorithm that averages the gradients in place of an all-reduce
    exchange: GradientExchange | None = None
    #: the algorithm under which ranks step by themselves
    weights_exchange: WeightExchange | None = None

    def __init__(self, spec: TrainSpec, here: Coordinates, device: torch.device) -> None:
        self.spec = spec
        self.here = here
        self.mesh = spec.plan.mesh
        self.device = device
        self.skipped = False
        self.framework_norm = math.nan  # of the last step, loss scale removed
        self.watch_framework_norm = False
        self.clip = spec.clip
        self.hooks = GradientHooks()
        self.step_hooks = StepHooks()

    def boost(self, workload: Workload) -> None:
        """Wrap model and optimizer. Collective."""
        self.is_whole = self.mesh.replica_size == 1
        module = trained(workload) if self.is_whole else workload.model
        names = self.names = ModelNames(module, workload.optimizer)
        self.originals = Originals(module)
        self.frozen_by_cell = FrozenByCell(module, workload.optimizer)
        self.hooks.take(module.parameters())
        modes = modes_of(module)
        replicas = self.mesh.dp if self.is_whole else 1  # models that are split have no batch normalisation
        self.norms = BatchNorms(
            module,
            replicas=replicas,
            synchronised=self.spec.plan.sync_batchnorm,
            accumulate=self.spec.accumulate,
        )
        self.plugin = self.make_plugin()
        self.booster = Booster(plugin=self.plugin)
        self.model, self.optimizer, *_ = self.booster.boost(module, workload.optimizer)
        self.module: torch.nn.Module = self.model.unwrap()
        set_modes(self.module, modes)
        convert = self.convert()
        if convert is not None:
            convert_inputs(self.module, convert)
        self.held = rank_parameters(
            self.module,
            names,
            tp=self.here.tp,
            is_sharded=is_sharded if self.mesh.tp > 1 else lambda parameter: False,
            foreign=self.foreign_parameters(),
        )
        if self.masters():
            self.step_hooks.take(self.optimizer.optim)
            self._move_state()
        self.step_reads = StepReads(
            getattr(self.optimizer, "optim", self.optimizer),
            [item.parameter for item in self.held],
            has_copies=bool(self.masters()),
            tp=self.mesh.tp,
            pp=self.mesh.pp,
        )
        self.generators = generators_of(self.module)
        self.reduction = self.reduction_of()
        turns = {layer: turn for turn, layer in enumerate(names.layers)}
        self.mine = share_of_replicas(self.held, turns, self.mesh, self.here)
        self.shares = {(item.layer, item.sharded) for item in self.mine}
        self.sizes = names.sizes

    def _move_state(self) -> None:
        """What the cell put into the optimizer, such as moments that it loaded, belongs to the copies from now on."""
        states, masters = self.optimizer.optim.state, self.masters()
        parameters = {id(item.parameter): item.parameter for item in self.held}
        for key in [key for key in states if id(key) in parameters and masters.get(id(key)) is not None]:
            state = states.pop(key)
            states[masters[id(key)]] = cut_state(state, key, partial(self.own_part, parameter=key))

    def own_part(self, state: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """The part of ``state``, which is shaped like ``parameter``, that belongs to this rank's copy of it."""
        return state.float()

    @abstractmethod
    def make_plugin(self) -> Any:
        """The Colossal-AI plugin for the spec."""

    def reduction_of(self) -> DdpReduction | SequenceReduction | None:
        """What reduces the gradients after backward where DDP would be wrong; None where no DDP reduces them."""
        return None

    def foreign_parameters(self) -> list[torch.Tensor]:
        """Tied parameters that an earlier pipeline stage counts."""
        return []

    def autocast(self) -> AbstractContextManager[Any]:
        """Around forward pass and loss."""
        return nullcontext()

    def convert(self) -> Callable[[Any], Any] | None:
        """What the wrapper does to each input of the model; None: nothing."""
        convert: Callable[[Any], Any] | None = getattr(self.model, "convert_fn", None)
        return convert

    def cast(self, batch: Any) -> Any:
        """``batch`` as the model itself takes it (what the wrapper does to its inputs)."""
        convert = self.convert()
        return batch if convert is None else tree_map(convert, batch)

    def calling(self, compute: Callable[[torch.nn.Module], Result]) -> Result:
        """``compute(model)`` as a forward pass whose gradients are reduced.

        A model that is whole on every rank is the user's own, inside the wrapper's forward pass; else the wrapper.
        """
        return self.model(lambda: compute(users_model(self.module))) if self.is_whole else compute(self.model)

    def scale_gradients(self, factor: Any) -> None:
        """Multiply the reduced gradients by ``factor``."""
        torch._foreach_mul_([item.parameter.grad for item in self.held if item.parameter.grad is not None], factor)

    def run_gradient_hooks(self) -> None:
        """Let the cell's own hooks on parameters act on the reduced gradients. Collective."""
        self.hooks.run(self.loss_scale())

    def no_sync(self) -> AbstractContextManager[Any]:
        """Around pieces whose gradients are only accumulated."""
        return self.booster.no_sync(self.model, self.optimizer)

    def around(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Around one piece: only in the last one gradients are reduced, or after it."""
        reduces_here = is_last and (self.reduction is None or not self.reduction.afterwards)
        return nullcontext() if reduces_here else self.no_sync()

    def backward(self, loss: torch.Tensor) -> None:
        """Backward of one piece of the batch."""
        self.booster.backward(loss, self.optimizer)

    def loss_scale(self) -> float:
        """What gradients are still multiplied by."""
        return 1.0

    @abstractmethod
    def watching(self, show: BatchObserver, wanted: Wanted, keep: bool) -> AbstractContextManager[None]:
        """``Strategy.watch_batches``."""

    def reduced(self, wanted: Wanted = None, *, all_held: bool = False) -> list[GradientPart]:
        """This rank's share of the reduced gradient: over all ranks, each element once."""
        return self.parts([item for item in (self.held if all_held else self.mine) if is_in(item.layer, wanted)])

    def reports(self, layer: str, sharded: str) -> bool:
        """``Strategy.reports``."""
        return (layer, sharded) in self.shares

    def compare(self, parts: Sequence[GradientPart]) -> Comparison:
        """``Strategy.compare``: by then ``p.grad`` is the reduced gradient."""
        return Comparison("exact", [[(part.tensor, part.source.reduced())] for part in parts])

    def weights(self, wanted: Wanted = None) -> list[WeightPart]:
        """``Strategy.weights``."""
        found, masters = [], self.masters()
        for item in self.mine:
            if is_in(item.layer, wanted):
                master = masters.get(id(item.parameter), item.parameter)
                found.append(weight_part(item, master, self.optimizer.optim))
        return found

    def matrices(self) -> list[WeightMatrix]:
        """``Shaped.weight_matrices``. Collective where weights are in parts."""
        return [matrix for item in self.mine if (matrix := item.matrix()) is not None]

    def gathered(self) -> AbstractContextManager[None]:
        """``Gathering.gathered``."""
        return nullcontext()

    def skip(self) -> None:
        """Forget the gradients of a step that is not made."""
        self.optimizer.zero_grad()

    def set_clip(self, clip: float) -> None:
        """Clip to this global norm from the next step on; 0: not at all."""
        self.clip = clip

    def drop_gradients(self, layers: Collection[str]) -> None:
        """Forget the reduced gradient of these layers, so that nothing updates them. Every rank calls it."""
        for item in self.held if layers else ():
            if item.layer in layers:
                item.parameter.grad = None

    def rank_state(self) -> RankState:
        """What a checkpoint keeps of this rank."""
        state = StateLocator(
            module=self.module,
            originals=self.originals,
            mesh=self.mesh,
            here=self.here,
            masters=self.masters(),
            masters_are_slices=self.masters_are_slices,
            foreign={id(item.parameter) for item in self.held if item.foreign},
        )
        optimizer = getattr(self.optimizer, "optim", self.optimizer)
        exchange, weights = self.exchange or self.weights_exchange, self.weights_exchange
        return state.rank_state(
            optimizer,
            generators=self.generators,
            scaler=self.scaler_of(),
            own=exchange.kept if exchange is not None else {},
            apart=weights.own if weights is not None else None,
        )

    def end_step(self, frozen: Collection[str]) -> None:
        """Exchange the weights that are due after a step, made or skipped, if ranks step by themselves; ``frozen``
        layers stay as they are."""
        if self.weights_exchange is not None:
            self.weights_exchange.end_step({id(item.parameter) for item in self.held if item.layer in frozen})

    def masters(self) -> Mapping[Any, torch.Tensor]:
        """Parameter's id -> the fp32 tensor that the optimizer updates in its stead, shaped alike; empty: itself."""
        return {}

    def scaler_of(self) -> LossScaler | None:
        """What holds the fp16 loss scale, for a checkpoint; None without one."""
        return None

    @abstractmethod
    def step(self, global_norm: float | None) -> bool:
        """Clip to ``clip`` (``global_norm`` is given then), update, clear gradients. False: skipped."""

    def groups(self) -> list[Any]:
        """Process groups that the plugin made."""
        return []

    def close(self) -> None:
        """Destroy them."""
        return

    def wanted(self, layers: Wanted) -> list[RankParameter]:
        """The held parameters of ``layers``."""
        return [item for item in self.held if is_in(item.layer, layers)]

    def parts(self, items: Sequence[RankParameter]) -> list[GradientPart]:
        """Their gradients as they are now, those left out that another rank counts."""
        scale = self.loss_scale()
        return [
            GradientPart(item.layer, item.real(item.parameter.grad), item.sharded, scale, item)
            for item in items
            if item.parameter.grad is not None and not item.foreign
        ]


class MeshPlan(Plan):
    """A plan whose plugin makes process groups along the axes of a mesh."""

    def groups(self) -> list[Any]:
        return list(self.plugin.pg_mesh._ranks_to_group.values())

    def close(self) -> None:
        self.plugin.pg_mesh.destroy_mesh_process_groups()
        self.plugin.pg_mesh._ranks_to_group.clear()  # its __del__ would destroy them again


def record_skips(plan: Plan, mixin: Any) -> None:
    """Let ``plan.skipped`` say whether the last step was dropped: upstream's ``step`` returns nothing."""
    should_skip = mixin.should_skip_step

    def recorded() -> bool:
        plan.skipped = should_skip()
        return plan.skipped

    mixin.should_skip_step = recorded
