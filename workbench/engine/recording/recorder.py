"""Records what a comparison with another training needs: gradients and weights by the user's names, and the batches."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from workbench.core.config import TrainSpec
from workbench.core.frameworks import Capability
from workbench.engine.base.batch import Batch, StandIn, contents
from workbench.engine.base.capabilities import Checkpointable, Validating, Watchable, needed
from workbench.engine.base.containers import arrays_in
from workbench.engine.base.names import users_name
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import samples_in, split
from workbench.engine.frameworks.torch_common.trained import trained
from workbench.engine.recording.causality import probe
from workbench.engine.recording.dropout import DrawingModules, switch_off_dropout
from workbench.engine.recording.perturbation import perturbed, relative_size
from workbench.engine.recording.sampling import held_positions, most_elements, positions
from workbench.engine.state.layout import Originals, Place, RankState
from workbench.rundir.recordings import RankRecording, RecordRequest

_IGNORED = -100


class Recorder(StepObserver):
    """Records the steps of a training that was asked to (``rundir.recordings``). ``take`` comes before the model is
    split. Collective in the last step, where it asks the model for outputs."""

    def __init__(self, run: Path, request: RecordRequest, spec: TrainSpec, strategy: Strategy) -> None:
        self._request = request
        self._spec = spec
        self._strategy = strategy
        self._file = RankRecording(run, strategy.rank)
        self._values: dict[str, np.ndarray] = {}
        self._wanted: dict[tuple[str, Place], tuple[torch.Tensor, bool]] = {}
        self._places: dict[str, np.ndarray] = {}
        self._about: dict[str, Any] = {"samples": {}, "labels": {}, "skipped": []}
        self._batch: Batch = None

    @property
    def _model(self) -> torch.nn.Module:
        module: torch.nn.Module = getattr(self._strategy, "module", self._workload.model)
        return module

    def take(self, workload: Workload) -> None:
        """Look at the model while it is whole, and switch off its dropout."""
        self._workload = workload
        model = trained(workload)
        originals = Originals(model)
        sizes = {name: math.prod(shape) for name, shape in originals.shapes.items()}
        self._most = most_elements(sizes.values(), self._request.elements)
        self._about |= {
            "shapes": {name: list(originals.shapes[name]) for name in originals.order},
            "most": self._most,
            "dropout": switch_off_dropout(model),
            "batch_norm": [users_name(n) for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training],
            "evaluating": [users_name(n) for n, m in model.named_modules() if not m.training],
        }

    def begins(self, step: int, watch: int) -> None:
        if step == 1:
            self._drawing = DrawingModules(self._model)
            self._take_weights(self._state())
            self._file.write_places(self._places)
            self._file.write_step(0, self._flushed())

    def batch(self, step: int, batch: Batch) -> None:
        self._batch = batch
        self._about["samples"][step] = _digests(batch)
        self._about["labels"][step] = _labels(batch)

    @contextmanager
    def around(self, step: int) -> Iterator[None]:  # type: ignore[override]
        with ExitStack() as during:
            during.enter_context(self._drawing.watching(named=step == 2 and self._drawing.drew))
            if self._request.perturbed:
                during.enter_context(self._perturbed(step))
            yield

    def _perturbed(self, step: int) -> AbstractContextManager[None]:
        """A step of the cell's own updates weights within it, so they are not restored: it is perturbed once."""
        size = relative_size(self._model, self._batch, self._request.precision)
        self._about["perturbation"] = max(size, self._about.get("perturbation", 0.0))
        restore = self._workload.train_step is None
        seed = self._request.perturbed * 4096 + step
        return perturbed(self._model, size if restore or step == 1 else 0.0, seed, restore=restore)

    def reduced(self, step: int) -> None:
        if not isinstance(self._strategy, Watchable):
            return
        slots = {slot.name: slot for slot in self._state().slots}
        names: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(users_name(name))
        for part in self._strategy.reduced_gradients(all_held=True):
            name = next(name for name in names[id(part.source.parameter)] if name in slots)
            saved, tensor = slots[name].saved, part.tensor
            if saved.tensor.is_complex():
                tensor = torch.view_as_complex(tensor.reshape(*saved.tensor.shape, 2)).abs()
            self._add("gradient", name, tensor / part.scale, saved.place)

    def updated(self, step: int, skipped: bool) -> None:
        if skipped:
            self._about["skipped"].append(step)
        self._take_weights(self._state())
        self._file.write_step(step, self._flushed())

    def ends(self, step: int) -> None:
        if step == self._spec.steps:
            self._about["random"] = self._drawing.names if self._drawing.drew else None
            if isinstance(self._strategy, Validating) and self._workload.train_step is None:
                self._about["causality"] = probe(self._strategy, self._batch)
            self._file.write_about(self._about)

    def _state(self) -> RankState:
        state: RankState = needed(self._strategy, Checkpointable, Capability.CHECKPOINTABLE).rank_state()
        return state

    def _take_weights(self, state: RankState) -> None:
        for slot in state.slots:
            self._add("weight", slot.name, slot.saved.tensor, slot.saved.place)
            for copy in slot.copies:
                self._add("copy", slot.name, copy.tensor, copy.place)

    def _add(self, kind: str, name: str, tensor: torch.Tensor, place: Place) -> None:
        index, is_whole = self._index(kind, name, place, tensor.device)
        values = tensor.detach().reshape(-1)
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj()).norm(dim=-1)
        values = values if is_whole else values[index]
        if values.dtype != torch.float64:
            values = values.float()
        self._values[f"{kind}/{name}"] = values.cpu().numpy().copy()

    def _index(self, kind: str, name: str, place: Place, device: torch.device) -> tuple[torch.Tensor, bool]:
        """Which of this rank's elements are recorded, and whether all are."""
        key = f"{'copy' if kind == 'copy' else 'saved'}/{name}"
        if (key, place) not in self._wanted:
            held, local = held_positions(positions(name, place.shape, self._most), place)
            is_whole = len(local) == place.numel
            self._wanted[key, place] = (torch.from_numpy(local).to(device), is_whole)
            self._places[key] = held
        return self._wanted[key, place]

    def _flushed(self) -> dict[str, np.ndarray]:
        values, self._values = self._values, {}
        return values


def recorder_of(run: Path, spec: TrainSpec, strategy: Strategy) -> Recorder | None:
    """The recorder of a run; None where nothing asked for a recording."""
    request = RecordRequest.of(run)
    return None if request is None else Recorder(run, request, spec, strategy)


def _digests(batch: Batch) -> list[str]:
    """A number for the contents of each sample, with the shapes that it has; empty for a stand-in."""
    if isinstance(batch, StandIn):
        return []
    found = []
    for sample in split(batch, samples_in(batch)):
        number, shapes = 0, []
        for _, array in arrays_in(contents(sample)):
            shapes.append("x".join(map(str, array.shape[1:])))
            number = zlib.crc32(_bytes(array), number)
        found.append(f"{number:08x} {','.join(shapes)}")
    return found


def _bytes(array: Any) -> bytes:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    found: bytes = np.ascontiguousarray(array).tobytes()
    return found


def _labels(batch: Batch) -> int | None:
    """How many labels of this share are not ignored; None where none is."""
    for place, array in arrays_in(contents(batch)):
        if "labels" in place and isinstance(array, torch.Tensor) and bool((array == _IGNORED).any()):
            return 0 if isinstance(batch, StandIn) else int((array != _IGNORED).sum())
    return None
