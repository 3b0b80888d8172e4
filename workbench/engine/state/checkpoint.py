"""Saves and restores checkpoints: every rank writes its shards, rank 0 writes the index, and any plan can read them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from workbench.core.config import ParallelPlan
from workbench.core.frameworks import Capability
from workbench.core.records import EventKind
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.capabilities import Checkpointable, averaged, needed
from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import KeptState
from workbench.engine.state import apart
from workbench.engine.state.background_save import BackgroundSave
from workbench.engine.state.base_weights import BaseWeights
from workbench.engine.state.checkpoint_files import WRITE_ERRORS, ShardReader, ShardWriter, write_index
from workbench.engine.state.layout import Place, RankState, Slot
from workbench.engine.state.plain_state import NotPlainError, from_plain, to_plain
from workbench.engine.state.randomness import RandomGenerators, RandomState
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.rundir import checkpoints
from workbench.rundir.checkpoints import TEMPORARY
from workbench.rundir.log import RankLogWriter

#: marks, in a rank's plain optimizer state, a tensor that is stored in the rank's own file
_IN_RANK_FILE = {"file": "own"}


@dataclass(frozen=True)
class Checkpoints:
    """Saves and restores the checkpoints of one run. Its methods are collective.

    A checkpoint that cannot be written (for example on a full disk) is logged as an event, and training continues. A
    checkpoint that cannot be read changes nothing, as all ranks check it before any of them changes a weight. ``keep``:
    number of automatic checkpoints that are kept (0: all). ``cell``: what the cell keeps beside the model, each rank's
    own in the rank's file. ``generators``: the cell's own. ``base``: frozen weights that are left out. ``tells``:
    whether what is saved and removed is logged.
    """

    run: Path
    strategy: Strategy
    control: AgreedControl
    log: RankLogWriter
    keep: int = 0
    cell: KeptState | None = None
    generators: Mapping[str, ModuleGenerator] = field(default_factory=dict)
    base: BaseWeights = field(default_factory=BaseWeights)
    tells: bool = True

    @property
    def _plan(self) -> ParallelPlan:
        return self.strategy.spec.plan

    def _rank_state(self) -> RankState:
        return needed(self.strategy, Checkpointable, Capability.CHECKPOINTABLE).rank_state()

    def save(self, step: int, state: dict[str, Any], *, asked: bool, best: dict[str, Any] | None = None) -> bool:
        """Save the checkpoint of ``step`` and return whether that succeeded. Arguments: see ``begin``."""
        writing = self.begin(step, state, asked=asked, best=best)
        return writing is not None and self.finish(writing)

    def begin(
        self, step: int, state: dict[str, Any], *, asked: bool, best: dict[str, Any] | None = None
    ) -> BackgroundSave | None:
        """Copy what the checkpoint of ``step`` holds, and begin to write it in the background; ``finish`` ends that.

        The copy is in the host's memory until it is written. ``state``: the trainer's state as JSON types, which
        ``restore`` returns. ``asked``: the user requested this checkpoint, so ``keep`` never removes it. ``best``: it
        replaces the best checkpoint, with what it is best at. None when a rank could not copy its state, or when the
        directory could not be made.
        """
        path = checkpoints.directory(self.run, step) if best is None else checkpoints.best_directory(self.run)
        temporary = path.with_name(path.name + TEMPORARY)
        base = self.base if self._leaves_base() else None
        copied: list[Any] = []
        with contextlib.ExitStack() as undo:  # also where another rank dies meanwhile
            if self.strategy.rank == 0:
                undo.callback(shutil.rmtree, temporary, ignore_errors=True)
            reason = self._run_and_agree(lambda: self._make_directory(temporary), first_only=True)
            if not reason:
                with averaged(self.strategy):
                    reason = self._run_and_agree(lambda: copied.extend(self._copied(temporary, base)))
            if reason:
                self.tell_failure(step, reason)
                return None
            undo.pop_all()
        shards, plain, groups, tied = copied
        document = {"trainer": state, "groups": groups, "tied": tied}
        about = {"asked": asked, "best": best, "base": base}
        return BackgroundSave(
            temporary,
            shards,
            plain,
            ranks=self.strategy.mesh.world_size,
            publish=partial(self._publish, path, step, document, about) if self.strategy.rank == 0 else None,
            failed=lambda why: self.tell_failure(step, why),
        )

    def finish(self, writing: BackgroundSave) -> bool:
        """Wait until the checkpoint is written; whether it is there, alike on all ranks. Collective."""
        went_well = self.control.all_can(not writing.wait_written())
        if self.strategy.rank == 0:
            if went_well:
                went_well = not writing.wait_published()
            else:
                writing.abandon(0.0)
        return self.control.all_can(went_well)

    def tell_failure(self, step: int, reason: str) -> None:
        """Log that the checkpoint of ``step`` could not be written."""
        self.log.event(EventKind.CHECKPOINT, "failed", reason, step=step)

    def _run_and_agree(self, work: Any, *, first_only: bool = False) -> str:
        """Run ``work`` on all ranks (or rank 0 only) and agree on the outcome.

        Returns "" if it succeeded everywhere, else the reason. Collective.
        """
        reason = ""
        if not first_only or self.strategy.rank == 0:
            try:
                work()
            except (*WRITE_ERRORS, NotPlainError, WorkbenchError) as error:
                reason = f"{type(error).__name__}: {error}"
        went_well = self.control.all_can(not reason)
        return "" if went_well else reason or "another rank failed"

    def _make_directory(self, temporary: Path) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o700, parents=True)

    def _leaves_base(self) -> bool:
        """Whether the frozen weights of a pretrained directory are left out. Collective."""
        return bool(self.base.tensors) and self.control.all_can(self.base.are_unchanged(self._rank_state()))

    def _copied(
        self, temporary: Path, base: BaseWeights | None
    ) -> tuple[ShardWriter, dict[str, Any], list[dict[str, Any]], dict[str, str]]:
        """This rank's shards, copied, but those that ``base`` has; what its file says beside them, the options of the
        parameter groups, and the further names of tied parameters."""
        held = self._rank_state()
        left_out = set() if base is None else base.left_out(held)
        writer = ShardWriter(temporary, self.strategy.rank)
        plain: dict[str, Any] = {}
        for slot in held.slots:
            if slot.mine and slot.name not in left_out:
                writer.add(f"weights/{slot.name}", slot.saved.tensor, slot.saved.place)
            plain.update(_add_optimizer_state(writer, slot, held.optimizer))
        if held.saves_buffers:
            for name, buffer in held.buffers.items():
                writer.add(f"buffers/{name}", buffer.tensor, buffer.place)
        random = RandomGenerators({**held.generators, **self.generators}).capture()
        for name, tensor in random.tensors.items():
            writer.add(f"random/{name}", tensor)
        for name, tensor in held.own.items():
            writer.add(f"rank/{name}", tensor)
        for name, tensor in apart.tensors(held):
            writer.add(name, tensor)
        beside, tensors = self.cell.capture() if self.cell is not None else ({}, {})
        for name, tensor in tensors.items():
            writer.add(f"cell/{name}", tensor)
        scaler = to_plain(held.scaler_state())
        groups = [
            {name: to_plain(value) for name, value in group.items() if name != "params"}
            for group in held.optimizer.param_groups
        ]
        numbers = {id(p): number for number, group in enumerate(held.optimizer.param_groups) for p in group["params"]}
        group_of = {slot.name: numbers[id(slot.key)] for slot in held.slots if id(slot.key) in numbers}
        own = {"random": random.plain(), "optimizer": plain, "scaler": scaler, "cell": beside, "groups": group_of}
        return writer, own, groups, dict(held.tied)

    def _publish(self, path: Path, step: int, document: dict[str, Any], about: dict[str, Any]) -> None:
        """Make the checkpoint of what all ranks have written, say so, and remove those that are kept no longer."""
        ranks = self.strategy.mesh.world_size
        temporary = path.with_name(path.name + TEMPORARY)
        write_index(temporary, step=step, ranks=ranks, plan=self._plan, state=document, **about)
        checkpoints.publish(path)
        self._tell_what_is_left_out(path, about["base"], step)
        best = about["best"]
        if best is not None:
            self.log.event(EventKind.CHECKPOINT, "best", {"name": best["name"], "value": best["value"]}, step=step)
            return
        removed_steps = checkpoints.remove_old(self.run, self.keep)
        if not self.tells:
            return
        self.log.event(EventKind.CHECKPOINT, "saved", path.name, step=step)
        for removed in removed_steps:
            self.log.event(EventKind.CHECKPOINT, "removed", checkpoints.directory(self.run, removed).name, step=step)

    def _tell_what_is_left_out(self, path: Path, base: BaseWeights | None, step: int) -> None:
        """Say once how large a checkpoint is, and where the weights are that it does not hold."""
        if base is None or base.is_told or not self.tells:
            return
        base.is_told = True
        sizes = {"bytes": checkpoints.total_bytes(path), "base_bytes": base.bytes, "directory": base.directory}
        self.log.event(EventKind.CHECKPOINT, "without_base", sizes, step=step)

    def restore(self, path: Path, prepare: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Load a checkpoint into this training and return the trainer's state that was saved with it.

        ``prepare`` is called with that state before the random generators are restored, as skipping data may draw
        random numbers. The generators and the loss scaler are restored when the plan is unchanged; under another plan
        they continue from their current state, and a warning is logged. Raises ``RunError`` on every rank, before
        anything is changed, when any rank finds the checkpoint damaged, incomplete or made for another model.
        """
        held = self._rank_state()
        reader: ShardReader | None = None
        reason = ""
        try:
            reader = ShardReader(path)
            reader.verify(self.strategy.rank, self.strategy.mesh.world_size)
            _check_matches(reader, held)
            beside, tensors = self._cell_state(reader)
            if self.cell is not None:
                self.cell.check(beside, tensors, str(path))
        except (WorkbenchError, OSError) as error:
            reason = str(error)
        if not self.control.all_can(not reason) or reader is None:
            raise RunError(
                f"cannot restore {path}: {reason or 'another rank found it damaged or made for another model'}"
            )
        load_tensors(reader, held)
        _load_groups(reader, held)
        self.base.watch(held)
        self._restore_cell(reader, beside, tensors)
        state: dict[str, Any] = reader.index["state"]["trainer"]
        prepare(state)
        was = ParallelPlan.recorded(reader.index["plan"])
        if was == self._plan:
            self._load_rank_state(reader, held)
        else:
            kept = "random generators" + (f" and the state of {was.algorithm}" if was.algorithm else "")
            self.log.event(
                EventKind.WARNING,
                "plan_changed",
                f"{kept} were not restored: the checkpoint is of {was.describe()}",
            )
        return state

    def _cell_state(self, reader: ShardReader) -> tuple[dict[str, Any], Any]:
        """What this rank's cell kept, by name, and its tensors; rank 0's under another number of ranks."""
        is_same = reader.index["ranks"] == self.strategy.mesh.world_size
        state, tensors = reader.own(self.strategy.rank if is_same else 0)
        return state.get("cell", {}), tensors

    def _restore_cell(self, reader: ShardReader, beside: dict[str, Any], tensors: Any) -> None:
        if self.cell is None:
            return
        self.cell.restore(beside, tensors)
        missing = [name for name in self.cell.names if name not in beside]
        if missing:
            text = f"the checkpoint does not hold {', '.join(missing)} of the cell: they begin as the cell made them"
            self.log.event(EventKind.WARNING, "state_not_restored", text)
        ranks = reader.index["ranks"]
        if beside and ranks != self.strategy.mesh.world_size:
            text = f"{', '.join(beside)} of the cell are those of rank 0: the checkpoint is of {ranks} ranks"
            self.log.event(EventKind.WARNING, "state_of_rank_0", text)

    def _load_rank_state(self, reader: ShardReader, held: RankState) -> None:
        state, tensors = reader.own(self.strategy.rank)
        held.set_scaler_state(from_plain(state["scaler"]))
        apart.load(tensors, held)
        for slot in held.slots:
            for name, value in state["optimizer"].get(slot.name, {}).items():
                is_own = value == _IN_RANK_FILE
                stored = tensors.get_tensor(f"own/{slot.name}/{name}") if is_own else from_plain(value)
                held.optimizer.state[slot.key][name] = stored.to(slot.saved.tensor.device) if is_own else stored
        for name, tensor in held.own.items():
            tensor.copy_(tensors.get_tensor(f"rank/{name}"))
        names: list[str] = [*tensors.keys()]
        states = {n.removeprefix("random/"): tensors.get_tensor(n) for n in names if n.startswith("random/")}
        RandomGenerators({**held.generators, **self.generators}).restore(
            RandomState.from_plain(states, state["random"])
        )


def _add_optimizer_state(writer: ShardWriter, slot: Slot, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Add the optimizer's state of a parameter to ``writer``; return the entries that are no tensors, as JSON types.

    A tensor whose shape differs from the parameter's (for example a factored moment) is usable under this plan only, so
    it goes to the rank's own file.
    """
    plain: dict[str, Any] = {}
    for name, value in optimizer.state.get(slot.key, {}).items():
        if not isinstance(value, torch.Tensor):
            plain[name] = to_plain(value)
        elif value.dim() and value.shape == slot.key.shape:
            if slot.mine:
                writer.add(f"optimizer/{slot.name}/{name}", slot.part(value), slot.saved.place)
        elif not value.dim():
            if slot.mine:
                writer.add(f"optimizer/{slot.name}/{name}", value, slot.saved.place.whole(()))
        else:
            writer.add(f"own/{slot.name}/{name}", value)
            plain[name] = _IN_RANK_FILE
    return {slot.name: plain} if plain else {}


def _check_matches(reader: ShardReader, held: RankState) -> None:
    for slot in held.slots:
        reader.expect(f"weights/{slot.name}", slot.saved.place.shape)
    groups = reader.index["state"]["groups"]
    if len(groups) != len(held.optimizer.param_groups):
        raise ConfigError(
            f"the checkpoint's optimizer has {len(groups)} parameter groups, "
            f"this one has {len(held.optimizer.param_groups)}"
        )


class TensorReader(Protocol):
    """Gives parts of whole tensors by name: "weights/NAME", "buffers/NAME", "optimizer/NAME/STATE"."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Name -> its ``shape``."""

    def part(self, name: str, place: Place) -> torch.Tensor:
        """The elements at ``place``."""

    def optimizer_states(self, parameter: str) -> list[str]:
        """Names of the optimizer's state tensors of a parameter."""


@torch.no_grad()
def load_tensors(reader: TensorReader, held: RankState) -> None:
    """Copy this rank's parts of weights, buffers and optimizer state from ``reader`` into the training."""
    groups = {id(parameter): group for group in held.optimizer.param_groups for parameter in group["params"]}
    for slot in held.slots:
        for target in (slot.saved, *slot.copies):
            part = reader.part(f"weights/{slot.name}", target.place)
            target.tensor.copy_(part.reshape(target.tensor.shape))  # of one number: a scalar, or a slice of one element
        _load_optimizer_state(reader, held.optimizer.state, slot, groups.get(id(slot.key), {}))
    for name, buffer in held.buffers.items():
        if f"buffers/{name}" in reader.tensors:
            buffer.tensor.copy_(reader.part(f"buffers/{name}", buffer.place))


def _load_groups(reader: ShardReader, held: RankState) -> None:
    """Restore the options of the optimizer's groups."""
    for group, saved in zip(held.optimizer.param_groups, reader.index["state"]["groups"], strict=True):
        for name, value in saved.items():
            if isinstance(group.get(name), torch.Tensor):
                group[name].copy_(torch.as_tensor(from_plain(value)))
            else:
                group[name] = from_plain(value)


def _load_optimizer_state(reader: TensorReader, states: dict[Any, Any], slot: Slot, group: dict[str, Any]) -> None:
    """Replace the optimizer's state of one parameter by that of the checkpoint, cut to this rank's shard."""
    states.pop(slot.key, None)
    for name in reader.optimizer_states(slot.name):
        key = f"optimizer/{slot.name}/{name}"
        entry = reader.tensors[key]
        if entry["shape"] or not slot.saved.place.shape:
            part = reader.part(key, slot.saved.place)
            state = torch.zeros_like(slot.key, dtype=part.dtype)
            own = slot.part(state)
            own.copy_(part.reshape(own.shape))
        else:
            state = reader.part(key, slot.saved.place.whole(())).reshape(())
            if group.get("capturable") or group.get("fused"):  # as in torch, step counters otherwise stay on the host
                state = state.to(slot.key.device)
        states[slot.key][name] = state
