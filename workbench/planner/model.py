"""A model as the planner sees it: its parameters, its optimizer's state, and what one forward pass does, in bytes.

``workbench.engine.planned`` describes the user's model so, on a rank; the description travels as JSON.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: ``Split.kind`` of a module: what tensor parallelism makes of it
COLUMN, ROW, VOCABULARY, HEAD = "column", "row", "vocabulary", "head"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter. ``module``: the module that holds it. ``itemsize``: bytes of an element. ``trained``: it gets a
    gradient. ``group``: the optimizer's group that updates it (-1: none does)."""

    name: str
    module: str
    shape: tuple[int, ...]
    itemsize: int
    trained: bool = True
    group: int = 0

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class StateTensor:
    """A tensor that the optimizer keeps for a parameter: ``elements`` times the lengths of these ``dims`` of it."""

    itemsize: int
    elements: int = 1
    dims: tuple[int, ...] = ()

    def bytes_for(self, shape: tuple[int, ...]) -> int:
        """Its bytes for a parameter, or a part of one, of this shape."""
        return self.itemsize * self.elements * math.prod(shape[dim] for dim in self.dims)


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a module does in one forward pass, without what its submodules do.

    ``saved_fixed`` and ``saved_per_sample``: bytes kept for the backward pass. ``input_bytes``, ``output_bytes``: of
    its first tensors, per sample; ``input_trains``: the backward pass computes the gradient of its input. ``flops``:
    floating point operations per sample. ``operations``: calls of operators, whatever the batch. ``moved_bytes``: read
    and written by operators without a count of operations, per sample.
    """

    module: str
    saved_fixed: float = 0.0
    saved_per_sample: float = 0.0
    input_bytes: float = 0.0
    output_bytes: float = 0.0
    input_trains: bool = True
    flops: float = 0.0
    operations: int = 0
    moved_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Split:
    """How tensor parallelism cuts a module.

    ``kind``: ``COLUMN``, ``ROW``, ``VOCABULARY`` or ``HEAD`` (a column split whose outputs are gathered). ``dims``:
    name of a parameter -> the dim that is cut. ``multiple``: the dim is padded to a multiple of this times tp (0: not
    padded). ``whole_unless_divided``: every rank holds the whole module where tp does not divide it.
    """

    kind: str
    dims: Mapping[str, int]
    multiple: int = 0
    whole_unless_divided: bool = False


@dataclass(frozen=True, kw_only=True)
class SharedSequences:
    """The module ``body`` in which context-parallel ranks compute for positions of their own. ``keys``: its modules
    that compute keys and values -> the share of their outputs that these are. ``last``: the module whose outputs are
    the body's."""

    body: str
    keys: Mapping[str, float]
    last: str


@dataclass(frozen=True, kw_only=True)
class Splits:
    """How a framework splits this model: ``tp``: module -> its split; ``stages``: pipeline stages -> for each stage
    the modules that it holds, in order; ``sequences``: where cp ranks share them. ``unknown``: why it is not known
    ("": it is)."""

    tp: Mapping[str, Split] = field(default_factory=dict)
    stages: Mapping[int, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    sequences: SharedSequences | None = None
    unknown: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model with its optimizer, and what one forward pass of it does.

    ``states``: ``state_key(group, dims, itemsize)`` -> what the optimizer keeps for such a parameter; missing where
    ``state_unknown`` says why. ``activity``: "autocast" and "cast" (see ``Shares.casts``) -> what each module does;
    empty where ``activity_unknown`` says why. ``batch_size``: samples of a global batch. ``splits``: "FRAMEWORK
    PLUGIN" -> how it splits the model. ``tied``: name of a parameter -> the other modules that share it. ``blocks``:
    the repeated blocks, modules that are gathered one by one where ranks hold parts of parameters. ``refused``: number
    of a candidate -> why it cannot train this model.
    """

    title: str
    parameters: tuple[Parameter, ...]
    buffer_bytes: int
    states: Mapping[str, tuple[StateTensor, ...]]
    batch_size: int
    state_unknown: str = ""
    activity: Mapping[str, tuple[Activity, ...]] = field(default_factory=dict)
    activity_unknown: str = ""
    splits: Mapping[str, Splits] = field(default_factory=dict)
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Number of elements of all parameters."""
        return sum(parameter.elements for parameter in self.parameters)

    def block_of(self, parameter: Parameter) -> str:
        """The block that a parameter is in; "": in none."""
        return next((block for block in self.blocks if is_within(parameter.module, block)), "")

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelDescription:
        """The inverse of ``to_json``."""
        fields = dict(data)
        fields["parameters"] = tuple(
            Parameter(**{**item, "shape": tuple(item["shape"])}) for item in data["parameters"]
        )
        fields["states"] = {
            key: tuple(StateTensor(**{**item, "dims": tuple(item["dims"])}) for item in kept)
            for key, kept in data["states"].items()
        }
        fields["activity"] = {
            mode: tuple(Activity(**item) for item in items) for mode, items in data["activity"].items()
        }
        fields["splits"] = {name: _splits(item) for name, item in data["splits"].items()}
        fields["blocks"] = tuple(data["blocks"])
        fields["tied"] = {name: tuple(modules) for name, modules in data["tied"].items()}
        fields["refused"] = {int(number): reason for number, reason in data["refused"].items()}
        return cls(**fields)


def _splits(data: Mapping[str, Any]) -> Splits:
    return Splits(
        tp={module: Split(**item) for module, item in data["tp"].items()},
        stages={int(count): tuple(map(tuple, stages)) for count, stages in data["stages"].items()},
        sequences=SharedSequences(**data["sequences"]) if data["sequences"] else None,
        unknown=data["unknown"],
    )


def state_key(group: int, dims: int, itemsize: int) -> str:
    """Under which ``ModelDescription.states`` has the state of a parameter of this optimizer group, number of dims and
    bytes of an element."""
    return f"{group} {dims} {itemsize}"


def is_within(module: str, outer: str) -> bool:
    """Whether a module is ``outer`` or inside it; everything is inside the model, ""."""
    return not outer or module == outer or module.startswith(f"{outer}.")
