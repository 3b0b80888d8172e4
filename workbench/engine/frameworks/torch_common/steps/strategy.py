"""Trains a cell that has a ``train_step`` of its own: every rank holds the whole model, and calls it with its samples.

What happens inside of ``train_step`` is the cell's business: backward passes, updates, several optimizers. Gradients
are reduced after each backward pass (``steps.reduction``), and looked at before each update (``steps.updates``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.utils import _sync_module_states, _verify_param_shape_across_processes

from workbench.core.config import TrainSpec
from workbench.core.frameworks import Capability
from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.parts import BatchObserver, GradientPart, PartNorms, WeightPart
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import samples_in
from workbench.engine.frameworks.torch_common.batch_norm import BatchNorms
from workbench.engine.frameworks.torch_common.batches import to_device
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.frameworks.torch_common.losses.whole_model import EvaluatedWhole, WholeModel
from workbench.engine.frameworks.torch_common.optimizer_state import weight_part
from workbench.engine.frameworks.torch_common.parameters import ModelNames, rank_parameters, share_of_replicas
from workbench.engine.frameworks.torch_common.state_locator import StateLocator
from workbench.engine.frameworks.torch_common.steps.losses import log_named_losses, loss_of
from workbench.engine.frameworks.torch_common.steps.reduction import StepReduction
from workbench.engine.frameworks.torch_common.steps.updates import Updates
from workbench.engine.frameworks.torch_common.trained import trained, users_model
from workbench.engine.frameworks.torch_common.weight_changes import layers_apart
from workbench.engine.state.layout import Originals, RankState
from workbench.errors import ConfigError

#: bytes of buffers that are sent together, as in torch's DDP
_BUFFER_BYTES = 250 * 2**20
_FIRST_STEPS = 3


class OwnSteps(EvaluatedWhole, Strategy):
    """Gradients are those of one process with the global batch where losses are means over samples."""

    #: why this way to train cannot do what the plan's own can
    lacks: Mapping[Capability, str] = {
        Capability.WATCHABLE: "of a rank's own samples: train_step decides when gradients are complete",
        Capability.REPLAYABLE: "train_step updates weights in the middle of a step",
    }

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        if spec.accumulate != 1:
            raise ConfigError(
                f"--accumulate {spec.accumulate}: train_step is called once a step and makes its own updates. Leave "
                "--accumulate out, and cut the batch inside of train_step",
                field="--accumulate",
            )
        if spec.precision == "fp16":
            raise ConfigError(
                "--precision fp16 scales the loss before backward, which train_step calls itself: use --precision "
                "bf16, or fp32 with torch.autocast and a torch.amp.GradScaler in the cell",
                field="--precision",
            )
        if spec.plan.algorithm:
            raise ConfigError(
                f"--algorithm {spec.plan.algorithm} exchanges the gradients of a loss_fn or criterion; the updates of "
                "train_step are reduced whole: leave out --algorithm",
                field="--algorithm",
            )
        trainable = {id(parameter) for parameter in workload.model.parameters() if parameter.requires_grad}
        if not trainable:
            raise ConfigError("no parameter of the model requires a gradient: nothing to train", field="model")
        held = [parameter for group in workload.optimizer.param_groups for parameter in group["params"]]
        if not any(id(parameter) in trainable for parameter in held):
            raise ConfigError(
                "the optimizer has no parameter of the model: make it from model.parameters() after the model",
                field="optimizer",
            )
        if spec.plan.ranks > 1:
            _check_hooks(workload)

    def prepare(self, workload: Workload) -> None:
        self.workload = workload
        self.device = rank_device()
        self._module = trained(workload).to(self.device)
        self._model = users_model(self._module)
        self._whole = WholeModel(workload, self._module, self.device, self.spec.precision)
        self.originals = Originals(self._module)
        self.norms = BatchNorms(
            self._module, replicas=self.mesh.dp, synchronised=self.spec.plan.sync_batchnorm, accumulate=1
        )
        self.norms.tell_on(self.rank, self.tell)
        if self.mesh.dp > 1:
            _begin_alike(self._module)
        self._optimizer = workload.optimizer
        names = ModelNames(self._module, workload.optimizer)
        self._layers = names.layers
        self._sizes = names.sizes
        self._rank_parameters = rank_parameters(self._module, names)
        turns = {layer: turn for turn, layer in enumerate(names.layers)}
        self._mine = share_of_replicas(self._rank_parameters, turns, self.mesh, self.coordinates)
        parameters = dict(self._module.named_parameters())
        self._reduction = StepReduction(
            parameters,
            ranks=self.mesh.dp,
            device=self.device,
            enter=self._enter,
            tell=self.tell,
        )
        self._updates = Updates(
            self._reduction,
            {id(parameter) for parameter in parameters.values()},
            enter=self._enter,
        )
        self._updates.clip = self.spec.clip
        self._steps = 0
        if self.rank == 0:
            self.tell(
                "train_step",
                "train_step makes its own updates: gradient statistics are those of the gradients that optimizers step "
                "with, averaged over ranks; those of a rank's own samples, the search for the module of a non-finite "
                "number and its replay are not available. Loss, gradient norm, clipping, phases, learning rate, "
                "freezing, checkpoints and rollback are",
            )

    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor:
        (piece,) = pieces
        self._steps += 1
        self.mark("transfer", -1)
        batch = to_device(contents(piece), self.device)
        self._share_buffers()
        self.mark("forward", -1)
        with (
            self._updates.watching(),
            self._reduction.around(samples_in(piece)),
            self.norms.around(piece),
            self._whole.autocast(),
        ):
            found = self.workload.train_step(self._model, batch)  # type: ignore[misc]
        loss = loss_of(found, self.device)
        log_named_losses(self.workload.user_log, found, self._reduction.share)
        self._look_at_first_steps()
        if not self._reduction.share:
            return torch.zeros_like(loss)
        return loss * (self._reduction.share * self.mesh.dp)

    def _enter(self, phase: str) -> None:
        self.mark(phase, -1)

    def _share_buffers(self) -> None:
        """Every rank computes with the buffers of rank 0, as in torch's DDP."""
        buffers = [buffer for buffer in self._module.buffers() if buffer.numel()]
        if buffers and self.mesh.dp > 1:
            dist._broadcast_coalesced(_group(), buffers, _BUFFER_BYTES, 0)

    def _look_at_first_steps(self) -> None:
        """Collective, with the same decision on all ranks: in the first steps, and ever more rarely after them."""
        if self._steps == _FIRST_STEPS and not self._updates.count and self.rank == 0:
            self.tell("no_update", f"train_step made no step of an optimizer in step {self._steps}")
        if self.mesh.dp == 1 or (self._steps > _FIRST_STEPS and self._steps & (self._steps - 1)):
            return
        apart = layers_apart(self._rank_parameters, self.device)
        if apart:
            raise ConfigError(
                f"train_step changes weights ({', '.join(apart[:8])}) in a different way on each rank, as by gradients "
                "of its own samples or by random numbers: ranks would train different models. Let gradients come from "
                "loss.backward(), or set .grad before optimizer.step(), which averages it, and change weights by "
                "nothing else that differs between ranks",
                field="train_step",
            )

    def step(self) -> bool:
        """The updates are made already; whether none was left out."""
        return not self._updates.left_out

    def skip(self) -> None:
        """Updates with gradients that are not finite were left out already; no such gradient is kept."""
        self._reduction.forget()

    def grad_sq(self) -> torch.Tensor:
        """As ``Normed.grad_sq``: every rank has the whole gradients, and gives an equal share."""
        return torch.tensor(self._updates.squared_norm() / self.mesh.dp, dtype=torch.float32, device=self.device)

    def part_norms(self) -> PartNorms | None:
        """As ``Normed.part_norms``: of what each parameter was updated with last."""
        norms = self._updates.norms
        mine = [item for item in self._mine if id(item.parameter) in norms]
        parts = [(item.layer, "", item.parameter.numel()) for item in mine]
        found = [norms[id(item.parameter)] for item in mine]
        return PartNorms(parts, torch.tensor(found, dtype=torch.float64), 1.0)

    @contextmanager
    def watch_updates(self, observer: BatchObserver, layers: Collection[str] | None = None) -> Iterator[None]:
        """As ``UpdateWatchable.watch_updates``."""
        mine = {id(item.parameter): item for item in self._mine if layers is None or item.layer in layers}
        show = self.aside(observer)

        def look(updated: list[torch.Tensor]) -> None:
            items = [mine[id(parameter)] for parameter in updated if id(parameter) in mine]
            show([GradientPart(item.layer, item.reduced(), "", source=item) for item in items])

        self._updates.look = look
        try:
            yield
        finally:
            self._updates.look = None

    def layer_sizes(self) -> dict[str, int]:
        """As ``UpdateWatchable.layer_sizes``."""
        return self._sizes

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """As ``UpdateWatchable.weights``."""
        chosen = [item for item in self._mine if layers is None or item.layer in layers]
        return [weight_part(item, item.parameter, self._optimizer) for item in chosen]

    def set_clip(self, clip: float) -> None:
        """As ``Normed.set_clip``: of the gradients that each optimizer steps with."""
        self._updates.clip = clip

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        state = StateLocator(module=self._module, originals=self.originals, mesh=self.mesh, here=self.coordinates)
        return state.rank_state(self._optimizer)

    def layers(self) -> list[str]:
        """As ``Freezable.layers``."""
        return self._layers

    def set_frozen(self, layers: Collection[str]) -> None:
        """As ``Freezable.set_frozen``."""
        self._updates.frozen = frozenset(id(item.parameter) for item in self._rank_parameters if item.layer in layers)

    def close(self) -> None:
        if hasattr(self, "norms"):
            self.norms.close()


def _begin_alike(module: torch.nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0, as torch's DDP does."""
    group = _group()
    _verify_param_shape_across_processes(group, list(module.parameters()))
    _sync_module_states(module, group, _BUFFER_BYTES, src=0, params_and_buffers_to_ignore=())


def _group() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None  # a rank has joined it
    return dist.group.WORLD


def _check_hooks(workload: Workload) -> None:
    hooked = [
        name
        for name, parameter in trained(workload).named_parameters()
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks  # type: ignore[attr-defined]
    ]
    if hooked:
        raise ConfigError(
            "hooks on gradients of parameters see those of one rank's samples under train_step: change gradients in "
            "train_step after backward(), where they are those of all ranks",
            field="train_step",
        )
