"""Several optimizers, or one that holds another, as the one that settings and checkpoints know.

A single optimizer of torch is passed on as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch

from workbench.errors import ConfigError


def joined_optimizer(given: Any) -> Any:
    """What a cell with ``train_step`` calls ``optimizer``: an optimizer, or a list, tuple or dict of some, as one.

    Raises ``ConfigError`` for anything else, and for a parameter that two of them hold.
    """
    members = _members(given, "optimizer")
    for name, member in members.items():
        if not hasattr(member, "param_groups") or not callable(getattr(member, "step", None)):
            raise ConfigError(
                f"optimizer{name} is a {type(member).__name__}: it must be a torch.optim.Optimizer, or a list or dict "
                "of some",
                field="optimizer",
            )
    held: dict[int, str] = {}
    for name, member in members.items():
        for group in member.param_groups:
            for parameter in group["params"]:
                if held.setdefault(id(parameter), name) != name:
                    raise ConfigError(
                        f"optimizer{held[id(parameter)]} and optimizer{name} hold the same parameter, of shape "
                        f"{tuple(parameter.shape)}: checkpoints and the learning rate go by the optimizer of a "
                        "parameter, so give each to one",
                        field="optimizer",
                    )
    optimizers = list(members.values())
    if len(optimizers) == 1 and not _inside(optimizers[0]):
        return optimizers[0]
    return JoinedOptimizer(optimizers)


def joined_scheduler(given: Any) -> Any:
    """What a cell with ``train_step`` calls ``lr_scheduler``: one, or a list, tuple or dict of some, as one."""
    if given is None or not isinstance(given, list | tuple | dict):
        return given
    return JoinedScheduler(list(_members(given, "lr_scheduler").values()))


def _members(given: Any, what: str) -> dict[str, Any]:
    """The optimizers or schedules, by how they are asked for ("", "[0]", "['g']")."""
    if isinstance(given, Mapping):
        members = {f"[{key!r}]": member for key, member in given.items()}
    elif isinstance(given, list | tuple):
        members = {f"[{turn}]": member for turn, member in enumerate(given)}
    else:
        return {"": given}
    if not members:
        raise ConfigError(f"{what} is an empty {type(given).__name__}: it needs at least one", field=what)
    return members


def _inside(optimizer: Any) -> dict[str, Any]:
    """Optimizers that ``optimizer`` holds in its attributes and steps itself, as SAM does, by name."""
    return {name: found for name, found in vars(optimizer).items() if isinstance(found, torch.optim.Optimizer)}


class JoinedOptimizer:
    """The parameter groups and states of several ``optimizers``; none is stepped through it."""

    def __init__(self, optimizers: list[Any]) -> None:
        self.optimizers = optimizers
        self.state = _States(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all, in order: the groups themselves."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of the first one."""
        return dict(self.optimizers[0].defaults)


class _States(MutableMapping[Any, dict[str, Any]]):
    """Parameter -> its state in the optimizer that holds it.

    The state that an optimizer inside of another keeps is under ``<attribute>.<name>``. Writing an entry of a state
    writes to the optimizer.
    """

    def __init__(self, optimizers: list[Any]) -> None:
        self._optimizers = optimizers

    def _parts(self, parameter: Any) -> list[tuple[str, Any]]:
        """Prefix and state of the optimizers that have to do with a parameter."""
        for optimizer in self._optimizers:
            if any(parameter is held for group in optimizer.param_groups for held in group["params"]):
                inner = [(f"{name}.", found.state) for name, found in _inside(optimizer).items()]
                return [("", optimizer.state), *inner]
        raise KeyError(parameter)

    def __getitem__(self, parameter: Any) -> dict[str, Any]:
        return _State(self._parts(parameter), parameter)

    def get(self, parameter: Any, default: Any = None) -> Any:
        """As of a dict: ``default`` where nothing is kept."""
        try:
            return self[parameter] or default
        except KeyError:
            return default

    def __setitem__(self, parameter: Any, state: dict[str, Any]) -> None:
        own = self[parameter]
        for name, value in state.items():
            own[name] = value

    def __delitem__(self, parameter: Any) -> None:
        found = [states.pop(parameter) for _, states in self._parts(parameter) if parameter in states]
        if not found:
            raise KeyError(parameter)

    def pop(self, parameter: Any, default: Any = None) -> Any:
        """Forget the state of a parameter."""
        found = self.get(parameter, default)
        if found is not default:
            del self[parameter]
        return found

    def __iter__(self) -> Iterator[Any]:
        for optimizer in self._optimizers:
            yield from {
                **optimizer.state,
                **{key: None for inner in _inside(optimizer).values() for key in inner.state},
            }

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _State(dict[str, Any]):
    """The state of one parameter; entries that are set are set in the optimizer whose prefix they have."""

    def __init__(self, parts: list[tuple[str, Any]], parameter: Any) -> None:
        super().__init__()
        self._parts, self._parameter = parts, parameter
        for prefix, states in parts:
            for name, value in states.get(parameter, {}).items():
                super().__setitem__(prefix + name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        prefix, states = max(
            ((prefix, states) for prefix, states in self._parts if name.startswith(prefix)),
            key=lambda part: len(part[0]),
        )
        if not isinstance(states, defaultdict):
            states.setdefault(self._parameter, {})
        states[self._parameter][name.removeprefix(prefix)] = value


class JoinedScheduler:
    """Schedules of several optimizers, stepped together."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def step(self, *values: Any) -> None:
        """Step all, each with the same value of a validation where they follow one."""
        for part in self.parts:
            part.step(*values)

    @property
    def base_lrs(self) -> list[float]:
        """The first learning rates of all parameter groups."""
        return [rate for part in self.parts for rate in part.base_lrs]

    @base_lrs.setter
    def base_lrs(self, rates: list[float]) -> None:
        for part in self.parts:
            part.base_lrs, rates = rates[: len(part.base_lrs)], rates[len(part.base_lrs) :]

    def state_dict(self) -> dict[str, Any]:
        """The states by place."""
        return {str(turn): part.state_dict() for turn, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo ``state_dict``."""
        for turn, part in enumerate(self.parts):
            part.load_state_dict({**part.state_dict(), **state[str(turn)]})
