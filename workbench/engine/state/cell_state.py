"""State that a cell keeps beside its model: an averaged teacher, a queue, running statistics, a second optimizer."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from workbench.engine.base.containers import arrays_in
from workbench.engine.share.regions import is_shared
from workbench.engine.state.contents import fingerprint
from workbench.engine.state.plain_state import NotPlainError, from_plain, to_plain
from workbench.errors import ConfigError, RunError

#: key of a dictionary that stands for a tensor in the rank's tensor file
_TENSOR = "__tensor__"
#: what a training saves by itself, or reads anew
_DATA = ("dataset", "dataloader", "eval_dataset", "eval_dataloader")
_SAVED_ELSEWHERE = ("model", "lora", "tokenizer", "optimizer", "optimizers", "lr_scheduler", "metrics")
#: containers deeper or longer than this are searched for a dataset's tensors no further
_DEPTH, _LENGTH = 4, 8


class CellState:
    """Objects of a cell by their variables, as ``capture`` reads and ``restore`` changes them.

    ``namespace``: where the cell's functions look up their variables; ``defined``: the names that the cell defined.
    Kept are modules, tensors and objects with ``state_dict`` and ``load_state_dict``, or what the cell's
    ``state = ["name", ...]`` names. Tensors of the model, of its optimizer and of the dataset are left out, and objects
    whose state the training keeps ``elsewhere``. Raises
    ``ConfigError`` when ``state`` names what the cell does not define, or is a text.
    """

    def __init__(self, namespace: dict[str, Any], defined: Mapping[str, Any], *, elsewhere: Iterable[Any] = ()) -> None:
        self._namespace = namespace
        chosen = defined.get("state")
        self._elsewhere = _tensors_saved_elsewhere(defined)
        #: names of a module's state that are saved with the model
        self._shared: dict[str, set[str]] = {}
        if isinstance(chosen, str):
            raise ConfigError(f"state = {chosen!r}: state is a list of names, such as [{chosen!r}]", field="state")
        if isinstance(chosen, list | tuple) and all(isinstance(name, str) for name in chosen):
            unknown = [name for name in chosen if name not in defined]
            if unknown:
                raise ConfigError(f"state names {', '.join(unknown)}, which the cell does not define", field="state")
            self.names = list(dict.fromkeys(chosen))
            self._without: dict[str, Hashable] = {}
        else:
            own = {id(defined[name]) for name in _DATA if name in defined}
            own |= {id(value) for value in elsewhere}
            own |= {id(value) for name in _SAVED_ELSEWHERE if name in defined for value in _with_parts(defined[name])}
            others = {name: value for name, value in defined.items() if id(value) not in own and name[:2] != "__"}
            self.names = [name for name, value in others.items() if self._is_state(value)]
            may_change = {n: value for n, value in others.items() if n not in self.names and _may_change(value)}
            #: objects of the cell that no checkpoint holds -> what they held at first
            self._without = {name: fingerprint(value) for name, value in may_change.items()}
        for name in self.names:
            if isinstance(defined[name], torch.nn.Module):
                state = defined[name].state_dict(keep_vars=True)
                self._shared[name] = {key for key, value in state.items() if self._is_elsewhere(value)}

    @property
    def left_out(self) -> list[str]:
        """The variables that no checkpoint holds and that have changed since the training began."""
        return [name for name, before in self._without.items() if fingerprint(self._namespace.get(name)) != before]

    def _is_elsewhere(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and (
            id(value) in self._elsewhere or _storage(value) in self._elsewhere.values()
        )

    def _is_state(self, value: Any) -> bool:
        if isinstance(value, torch.nn.Module):
            return any(not self._is_elsewhere(part) for part in value.state_dict(keep_vars=True).values())
        if isinstance(value, torch.Tensor):
            return not self._is_elsewhere(value) and not is_shared(_storage(value))
        return not isinstance(value, type | Dataset | DataLoader | Sampler) and all(
            callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict")
        )

    def capture(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The state as JSON types by name, and the tensors that these refer to. What has no plain form is left out from
        then on, and named in ``left_out``."""
        plain: dict[str, Any] = {}
        tensors: dict[str, torch.Tensor] = {}
        for name in list(self.names):
            found: dict[str, torch.Tensor] = {}
            try:
                state = self._state_of(name, self._namespace[name])
                plain[name] = to_plain(_without_tensors(state, name, found))
            except NotPlainError:
                self.names.remove(name)
                self._without[name] = None
            else:
                tensors |= found
        return plain, tensors

    def _state_of(self, name: str, value: Any) -> Any:
        if isinstance(value, torch.nn.Module):
            shared = self._shared.get(name, set())
            return {key: part for key, part in value.state_dict().items() if key not in shared}
        return value.state_dict() if hasattr(value, "state_dict") else value

    def check(self, plain: Mapping[str, Any], tensors: Any, where: str) -> None:
        """Raise ``RunError`` when a module of the cell does not fit its saved state; nothing is changed."""
        for name in self.names:
            module = self._namespace[name]
            if name not in plain or not isinstance(module, torch.nn.Module):
                continue
            saved, own = _with_tensors(from_plain(plain[name]), tensors), self._state_of(name, module)
            wrong = [key for key in own.keys() | saved.keys() if _shape(own.get(key)) != _shape(saved.get(key))]
            if wrong:
                raise RunError(f"{name} of the cell does not fit the one in {where}: {', '.join(sorted(wrong)[:5])}")

    @torch.no_grad()
    def restore(self, plain: Mapping[str, Any], tensors: Any) -> None:
        """Undo ``capture``: modules, tensors and objects keep their identity; only a tensor of another shape or type
        and plain values are bound anew. ``tensors`` has ``get_tensor(key)``."""
        for name in self.names:
            if name not in plain:
                continue
            saved, value = _with_tensors(from_plain(plain[name]), tensors), self._namespace[name]
            if isinstance(value, torch.nn.Module):
                value.load_state_dict(saved, strict=False)
            elif isinstance(value, torch.Tensor):
                if value.shape == saved.shape and value.dtype == saved.dtype:
                    value.copy_(saved)
                else:
                    self._namespace[name] = saved.to(value.device).requires_grad_(value.requires_grad)
            elif hasattr(value, "load_state_dict"):
                value.load_state_dict(saved)
            else:
                self._namespace[name] = _refilled(value, saved)


def _refilled(value: Any, saved: Any) -> Any:
    """``value`` with the contents of ``saved`` where it is a container that can change, else ``saved``."""
    if isinstance(value, dict):
        value.clear()
        value.update(saved)
        return value
    if isinstance(value, list):
        value[:] = saved
        return value
    return saved


def _with_parts(value: Any) -> list[Any]:
    """``value``, and what it holds where it is a list or mapping, as of several optimizers."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [value, *parts]


def _tensors_saved_elsewhere(defined: Mapping[str, Any]) -> dict[int, int]:
    """id -> storage of the tensors that the model, its optimizers, and the data for training and validation hold."""
    found: dict[int, int] = {}
    model = defined.get("model")
    held: list[torch.Tensor] = [*model.parameters(), *model.buffers()] if isinstance(model, torch.nn.Module) else []
    for optimizer in (part for name in ("optimizer", "optimizers") for part in _with_parts(defined.get(name))):
        if isinstance(optimizer, torch.optim.Optimizer):
            held += [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for data in map(defined.get, _DATA):
        held += _tensors_in(data)
    for tensor in held:
        found[id(tensor)] = _storage(tensor)
    return found


def _storage(tensor: torch.Tensor) -> int:
    """Where the tensor's memory begins; the tensor's id for one without memory, which shares none."""
    try:
        return tensor.untyped_storage().data_ptr() or -id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse, lazy and fake tensors
        return -id(tensor)


def _tensors_in(value: Any, depth: int = _DEPTH) -> Iterator[torch.Tensor]:
    """Tensors that ``value`` holds in its attributes and elements, a few levels down."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    if not depth or isinstance(value, str | bytes | type | types.FunctionType | types.ModuleType):
        return
    inner: Iterable[Any] = ()
    if isinstance(value, list | tuple):
        inner = value[:_LENGTH]
    elif isinstance(value, dict):
        inner = list(value.values())
    elif hasattr(value, "__dict__"):
        inner = list(vars(value).values())
    for part in inner:
        yield from _tensors_in(part, depth - 1)


def _may_change(value: Any) -> bool:
    """Whether ``value`` may be state of a training: a container or an object, and not code, data or a plain value."""
    if isinstance(value, torch.Tensor | torch.nn.Module):
        return False  # saved elsewhere, or without state
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.device | torch.dtype):
        return False
    if _is_shared_data(value):
        return False
    if isinstance(value, type | types.ModuleType | Dataset | DataLoader | Sampler):
        return False
    return isinstance(value, dict | list | set) or not (callable(value) or isinstance(value, tuple | range))


def _is_shared_data(value: Any) -> bool:
    """Whether ``value`` is an array, or a container of arrays, that ranks share."""
    if not isinstance(value, np.ndarray | dict | list | tuple):
        return False
    arrays = [array for _, array in arrays_in(value)]
    addresses = [each.ctypes.data if isinstance(each, np.ndarray) else _storage(each) for each in arrays]
    return bool(addresses) and all(map(is_shared, addresses))


def _without_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` with a reference in place of each tensor, which goes to ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, dict):
        return {key: _without_tensors(part, f"{path}/{key}", tensors) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_tensors(part, f"{path}/{turn}", tensors) for turn, part in enumerate(value))
    return value


def _with_tensors(value: Any, tensors: Any) -> Any:
    """Undo ``_without_tensors``."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors.get_tensor(f"cell/{value[_TENSOR]}")
        return {key: _with_tensors(part, tensors) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_tensors(part, tensors) for part in value)
    return value


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)
