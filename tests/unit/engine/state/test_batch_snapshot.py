"""A batch is the same after it was saved and loaded: containers of any class, numbers bit by bit."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
from collections import UserDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from workbench.engine.base.batch import Piece
from workbench.engine.base.containers import entries
from workbench.engine.data.batches import split
from workbench.engine.state.batch_snapshot import load_batch_snapshot, save_batch_snapshot
from workbench.engine.state.randomness import RandomGenerators
from workbench.errors import RunDirectoryError

#: classes as a cell defines them
CELL = """
import dataclasses, torch
from collections import UserDict
from typing import Any, NamedTuple

@dataclasses.dataclass
class Sample:
    ids: Any
    weight: float = 0.5

@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    ids: Any
    texts: list

class Pair(NamedTuple):
    first: Any
    second: Any

class Graph:
    def __init__(self, x):
        raise RuntimeError("it is not made anew")
    def to(self, device):
        return self

class Slots:
    __slots__ = ("x", "missing")

class Outer:
    class Inner(UserDict):
        pass

def inside():
    class Local:
        x = None
    return Local
"""


class Colour(enum.IntEnum):
    RED = 3


NAMES: dict[str, Any] = {"__name__": "__main__"}
exec(CELL, NAMES)


@pytest.fixture
def cell() -> dict[str, Any]:
    return NAMES


def again(batch: Any, directory: Path, cell: dict[str, Any]) -> Any:
    save_batch_snapshot(directory, batch, RandomGenerators({}).capture())
    return load_batch_snapshot(directory, cell)[0]


def same(found: Any, batch: Any) -> bool:
    if type(found) is not type(batch):
        return False
    if isinstance(batch, torch.Tensor):
        return found.dtype == batch.dtype and torch.equal(found, batch)
    if isinstance(batch, np.ndarray) and batch.dtype != object:
        return found.dtype == batch.dtype and np.array_equal(found, batch)
    held, loaded = entries(batch), entries(found)
    if held is None or loaded is None:
        return bool(np.all(found == batch)) and repr(found) == repr(batch)
    return [place for place, _ in held] == [place for place, _ in loaded] and all(
        same(one, other) for (_, one), (_, other) in zip(loaded, held, strict=True)
    )


def _filled(kind: type, **attributes: Any) -> Any:
    made = kind.__new__(kind)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def batches(cell: dict[str, Any]) -> dict[str, Any]:
    x = torch.arange(12).reshape(4, 3)
    return {
        "plain": {"x": x, 3: (x[0], [1.5, None, True, "text", float("inf")]), "y": x.double().numpy()},
        "dataclass": cell["Sample"](x, 0.25),
        "frozen dataclass with slots": cell["Frozen"](x, ["a", "b"]),
        "namedtuple": cell["Pair"](x, cell["Pair"](x + 1, {"deep": x})),
        "object": _filled(cell["Graph"], x=x, name="graph", edges=[x, x]),
        "slots": _filled(cell["Slots"], x=x),
        "nested class": cell["Outer"].Inner({"x": x}),
        "UserDict": UserDict(x=x),
        "OrderedDict": collections.OrderedDict(b=x, a=x + 1),
        "defaultdict": collections.defaultdict(list, x=x),
        "deque": {"x": x, "last": collections.deque([1, 2], maxlen=3)},
        "numbers": [x, np.float32(0.1), np.int8(3), 1 + 2j, Colour.RED, b"\x00\xff", datetime.date(2026, 1, 2), {2, 3}],
        "arrays": [np.array([1.5, 2.5], dtype=">f8"), np.array(["a", "bc"]), np.array(["a", None], dtype=object)],
        "complex": x + 1j * x,
        "bfloat16": x.bfloat16(),
        "classes and functions": {
            "x": x,
            "kind": cell["Sample"],
            "function": np.linalg.norm,
            "own": cell["inside"],
            "dtype": torch.float16,
        },
        "shared": [x, x.T, x[:2]],
    }


def test_containers_of_transformers_there_and_back(tmp_path: Path, cell: dict[str, Any]) -> None:
    from transformers import BatchEncoding
    from transformers.modeling_outputs import BaseModelOutput

    x = torch.arange(12).reshape(4, 3)
    for number, batch in enumerate(
        (BatchEncoding({"input_ids": x, "attention_mask": x > 3}), BaseModelOutput(last_hidden_state=x.float()))
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        assert same(again(batch, directory, cell), batch)


@pytest.mark.parametrize("name", batches(NAMES))
def test_there_and_back(name: str, tmp_path: Path, cell: dict[str, Any]) -> None:
    batch = batches(cell)[name]
    found = again(batch, tmp_path, cell)
    if name == "arrays":  # the byte order is that of the machine
        batch[0] = batch[0].astype(float)
    assert same(found, batch)


def test_a_piece_knows_how_it_is_cut_again(tmp_path: Path, cell: dict[str, Any]) -> None:
    """Lists with one entry per sample, of which a share of one sample shows nothing."""
    batch = {"x": torch.arange(8).reshape(4, 2), "texts": ["a", "b", "c", "d"], "pairs": [torch.ones(4), torch.ones(4)]}
    piece = split(batch, 2)[1]
    assert isinstance(piece, Piece)
    found = again(piece, tmp_path, cell)
    assert isinstance(found, Piece) and found == Piece(found.batch, piece.samples, piece.layout)
    for one, other in zip(split(found, 2), split(piece, 2), strict=True):
        assert same(one.batch, other.batch)


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda cell: {"x": X, "later": [1, (i for i in X)]}, r"batch\['later'\]\[1\] is a generator: cannot pickle"),
        (lambda cell: _filled(cell["Graph"], x=X, f=lambda x: x), r"batch\.f needs .*<lambda>, .* top level of"),
        (lambda cell: _filled(cell["inside"](), x=X), "batch needs inside.<locals>.Local, which is made inside a fun"),
        (lambda cell: {"x": X, "wide": X.to(torch.complex128)}, r"batch\['wide'\] is a complex128 tensor"),
        (lambda cell: {"x": X, "sparse": X.to_sparse()}, r"batch\['sparse'\] is a sparse_coo tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_named(make: Any, reason: str, tmp_path: Path, cell: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=reason):
        save_batch_snapshot(tmp_path, make(cell), RandomGenerators({}).capture())


def test_a_batch_that_holds_itself_is_refused(tmp_path: Path, cell: dict[str, Any]) -> None:
    batch: dict[str, Any] = {"x": X}
    batch["self"] = batch
    with pytest.raises(TypeError, match=r"batch\['self'\] is part of itself"):
        save_batch_snapshot(tmp_path, batch, RandomGenerators({}).capture())


def test_a_class_that_is_gone_is_named(tmp_path: Path, cell: dict[str, Any]) -> None:
    save_batch_snapshot(tmp_path, cell["Sample"](X), RandomGenerators({}).capture())
    others = {name: value for name, value in cell.items() if name != "Sample"}
    with pytest.raises(RunDirectoryError, match="cannot be made again without Sample of the cell"):
        load_batch_snapshot(tmp_path, others)


@dataclasses.dataclass
class OfAModule:
    x: torch.Tensor


class PairOfAModule(NamedTuple):
    x: torch.Tensor
    y: int


def test_classes_of_modules_are_imported(tmp_path: Path) -> None:
    for batch in (OfAModule(X), PairOfAModule(X, 3)):
        assert same(again(batch, tmp_path, {}), batch)
