"""What stands in a model in place of the modules that pipeline stages begin with or leave out.

The model's own forward pass runs on every stage. The modules of earlier stages give numbers of the right shape that are
not computed, all NaN, so that a stage that does depend on them shows. The first module of a stage is called with what
the stage before has sent. The first module of the next stage ends the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from workbench.errors import ConfigError


class EndOfStage(Exception):
    """The forward pass has come to the first module of the next stage, which takes ``output``."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__("the next stage goes on")
        self.output = output


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape and type of what a stage receives."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(slots=True)
class Running:
    """The stage that this rank computes now, what it has received, and whether its first module was called.

    ``shapes``: filled instead, while nothing is computed, with what each stage would receive; ``count``: stages of the
    pipeline.
    """

    count: int = 1
    stage: int = 0
    received: torch.Tensor | None = None
    has_begun: bool = False
    shapes: dict[int, Shape] | None = None


class Blanks:
    """Tensors on ``device`` whose numbers were not computed: all of one type share one, so they take no memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._numbers: dict[torch.dtype, torch.Tensor] = {}

    @torch.no_grad()
    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """One of the shape and type of ``tensor``: NaN, or 0 where its type knows no NaN."""
        if tensor.dtype not in self._numbers:
            has_nan = tensor.is_floating_point() or tensor.is_complex()
            number = torch.full((), math.nan if has_nan else 0, dtype=tensor.dtype, device=self._device)
            self._numbers[tensor.dtype] = number
        blank = torch.empty(0, dtype=tensor.dtype, device=self._device)
        # not by expand: a view cannot be written into
        return blank.set_(self._numbers[tensor.dtype], 0, tensor.shape, [0] * tensor.dim())  # type: ignore[call-overload]

    @contextmanager
    def zeros(self) -> Iterator[None]:
        """While entered, all of them are 0."""
        nan = [number for number in self._numbers.values() if number.isnan()]
        for number in nan:
            number.zero_()
        try:
            yield
        finally:
            for number in nan:
                number.fill_(math.nan)


class ShapeOnly:
    """A module without its weights: computes of which shape and type its outputs are, and fills them with NaN."""

    def __init__(self, name: str, module: torch.nn.Module, blanks: Blanks) -> None:
        self._name = name
        self._blanks = blanks
        self.module = module
        self._known: dict[Any, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs like those of the module: numbers NaN, integers 0."""
        leaves, structure = tree_flatten((args, kwargs))
        key = (str(structure), tuple(map(_signature, leaves)))
        if key not in self._known:
            self._known[key] = self._shaped(args, kwargs)
        # each call gives tensors of its own, as the next stage's first module writes into what it is called with
        return tree_map(
            lambda leaf: self._blanks.like(leaf) if isinstance(leaf, torch.Tensor) else leaf, self._known[key]
        )

    @torch.no_grad()
    def _shaped(self, args: Any, kwargs: Any) -> Any:
        without = tree_map(_on_meta, (args, kwargs))
        try:
            with torch.random.fork_rng(devices=[]), _Found(every=True) as found:
                outputs = self.module(*without[0], **without[1])
            if found.asked:
                with torch.random.fork_rng(devices=[]), _Found(every=False):
                    others = self.module(*without[0], **without[1])
                if tree_map(_signature, outputs) != tree_map(_signature, others):
                    raise ValueError("it depends on numbers, such as how many elements are not zero")
            return outputs
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{self._name} is on another pipeline stage, and the shape of what it returns cannot be told without "
                f"its weights ({type(error).__name__}: {error}): use --plugin ddp, or put it inside a module that "
                "returns one tensor",
                field="--pp",
            ) from error


class _Found(TorchDispatchMode):
    """Where a tensor has no numbers, every element of it is not zero, or none is: for modules that choose rows by them,
    as experts do, and put what they make of these into a tensor of all rows. ``asked``: whether one did."""

    def __init__(self, *, every: bool) -> None:
        super().__init__()
        self._every = every
        self.asked = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default and args[0].device.type == "meta":
            self.asked = True
            rows = args[0].numel() if self._every else 0
            return torch.empty((rows, args[0].dim()), dtype=torch.int64, device="meta")
        return func(*args, **(kwargs or {}))


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype
    return leaf if isinstance(leaf, int | float | str | None) else type(leaf)


def _on_meta(leaf: Any) -> Any:
    return torch.empty_like(leaf, device="meta") if isinstance(leaf, torch.Tensor) else leaf


class StageItem:
    """One module of the model as the running stage sees it. ``real``: None on ranks that do not hold it. ``begins``: it
    is the first one of ``stage``."""

    def __init__(
        self,
        name: str,
        real: torch.nn.Module | None,
        shape_only: ShapeOnly,
        running: Running,
        *,
        stage: int,
        begins: bool,
    ) -> None:
        self.name = name
        self.stage = stage
        self._real = real
        self._shape_only = shape_only
        self._running = running
        self._begins = begins

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, or do what the running stage does in its place."""
        return self.now()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """An attribute of the module; of one that is left out its tensors have no numbers."""
        return getattr(self._shape_only.module if self._real is None else self._real, name)

    def now(self) -> Callable[..., Any]:
        """What to call for the running stage: kept by a recomputation, while other micro-batches run."""
        running = self._running
        if running.shapes is not None:
            return self._looked_at
        if self.stage < running.stage:
            return self._left_out
        if self.stage > running.stage:
            return self._ends if self._begins and self.stage == running.stage + 1 else self._too_early
        assert self._real is not None  # a rank runs only the stages whose modules it holds
        return First(self._real, running) if self._begins and running.stage else self._real

    def _looked_at(self, *args: Any, **kwargs: Any) -> Any:
        if self._begins:
            assert self._running.shapes is not None
            received = self._passed_on(args, kwargs)
            self._running.shapes[self.stage] = Shape(tuple(received.shape), received.dtype)
            if self.stage == self._running.count - 1:
                raise EndOfStage(received)
        return self._shape_only(*args, **kwargs)

    def _left_out(self, *args: Any, **kwargs: Any) -> Any:
        if self._running.has_begun:
            raise ConfigError(
                f"{self.name} is called after the blocks, but stands before them in the model, so it is on an earlier "
                "pipeline stage: define it after the blocks in __init__, or use --plugin ddp",
                field="--pp",
            )
        return self._shape_only(*args, **kwargs)

    def _too_early(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"{self.name} is called before the first module of pipeline stage {self.stage}, which holds it: define it "
            "before the blocks in __init__, or use --plugin ddp",
            field="--pp",
        )

    def _passed_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """The first argument, which the stage before sends."""
        first = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(first, torch.Tensor):
            raise ConfigError(
                f"{self.name} is called with a {type(first).__name__}: pipeline stages pass on one tensor, the first "
                "argument of the module that the next stage begins with. Use --plugin ddp",
                field="--pp",
            )
        return first

    def _ends(self, *args: Any, **kwargs: Any) -> Any:
        first = self._passed_on(args, kwargs)
        others = [*args[1:], *(kwargs.values() if args else list(kwargs.values())[1:])]
        if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in tree_leaves(others)):
            raise ConfigError(
                f"{self.name} is called with more than one tensor that depends on trained weights: pipeline stages "
                "pass on one tensor, the first argument. Use --plugin ddp, or let pipeline_split name other modules",
                field="--pp",
            )
        raise EndOfStage(first)


class First:
    """The first module of a stage, called with what the stage has received as its first argument."""

    def __init__(self, module: torch.nn.Module, running: Running) -> None:
        self.module = module
        self._received = running.received
        self._running = running

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module."""
        args, kwargs = self.given(args, kwargs)
        return self.module(*args, **kwargs)

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with what was received."""
        self._running.has_begun = True
        if args:
            return (self._filled(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return (), {**kwargs, name: self._filled(kwargs[name])}

    def _filled(self, given: torch.Tensor) -> torch.Tensor:
        """What was received, in the tensor ``given`` itself: the caller may use it too, as in ``x = x + block(x)``."""
        assert self._received is not None
        if given._is_view() or given.requires_grad or given.shape != self._received.shape:
            return self._received
        given.data = torch.empty_like(self._received)  # it has the storage of all blanks
        filled: torch.Tensor = given.copy_(self._received)
        return filled

    def __getattr__(self, name: str) -> Any:
        """An attribute of the module."""
        return getattr(self.module, name)


class _Items:
    """The children of a list as the running stage sees them, all of them, in order."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield _now(item)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        found = self._items[index]
        return _Items(found) if isinstance(index, slice) else _now(found)


def _now(item: Any) -> Any:
    return _Bound(item) if isinstance(item, StageItem) else item


class _Bound:
    """A ``StageItem`` of the stage that ran when it was taken from its list."""

    def __init__(self, item: StageItem) -> None:
        self._item = item
        self.call = item.now()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._item, name)


class _Staged:
    """Some modules of this container are on other stages. ``items``: all of them."""

    items: list[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(_Items(self.items))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return _Items(self.items)[index]


class StagedList(_Staged, torch.nn.ModuleList):
    """A ``ModuleList`` some of whose modules are on other stages."""


class StagedSequential(_Staged, torch.nn.Sequential):
    """A ``Sequential`` some of whose modules are on other stages."""


def recomputed_here(recompute: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Checkpoint ``function`` by ``recompute`` if it is a module of the running stage; else call it."""
    if isinstance(function, partial):  # transformers gives some arguments so
        args, kwargs, function = (*function.args, *args), {**function.keywords, **kwargs}, function.func
    owner = getattr(function, "__self__", None)
    if isinstance(owner, StageItem):
        owner = _Bound(owner)
    if not isinstance(owner, _Bound):
        return recompute(function, *args, **kwargs)
    call = owner.call
    if isinstance(call, First):  # what it received is written before, as a recomputation takes its inputs as they were
        (args, kwargs), call = call.given(args, kwargs), call.module
    return recompute(call.__call__, *args, **kwargs) if isinstance(call, torch.nn.Module) else call(*args, **kwargs)
