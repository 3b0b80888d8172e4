"""What ranks tell about their variables, and how a table shows where they differ."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from workbench.cluster.names.description import Description
from workbench.cluster.names.on_rank import describe
from workbench.cluster.names.table import NamesTable


def net(seed):
    torch.manual_seed(seed)
    return torch.nn.Linear(4, 2)


def test_tensors_arrays_modules_and_plain_values_are_described():
    tensor = describe(torch.ones(3, 4, dtype=torch.bfloat16))
    assert (tensor.type, tensor.shape, tensor.dtype, tensor.device) == ("Tensor", "(3, 4)", "bfloat16", "cpu")
    assert tensor.bytes == 24 and tensor.value == ""
    assert describe(torch.tensor(0.25)).value == "0.25"
    array = describe(np.zeros((2, 5), dtype=np.int16))
    assert (array.type, array.shape, array.dtype, array.bytes) == ("ndarray", "(2, 5)", "int16", 20)
    module = describe(net(0))
    assert (module.type, module.shape, module.dtype, module.bytes) == ("Linear", "10 parameters", "float32", 40)
    assert describe([1, 2]).shape == "2 items" and describe({"a": 1}).shape == "1 item"
    assert describe(0.1).value == "0.1" and len(describe("long " * 100).value) == 40


ALIKE = [
    lambda: torch.arange(12).reshape(3, 4).T,
    lambda: torch.tensor(float("nan")),
    lambda: torch.ones(2, dtype=torch.complex64).conj(),
    lambda: torch.empty(0),
    lambda: torch.zeros(1500, 1000),
    lambda: np.arange(6)[::2],
    lambda: net(3),
    lambda: {"w": torch.ones(2), "n": [1, (None, "x")]},
    lambda: OrderedDict(a=b"1"),
]


@pytest.mark.parametrize("make", ALIKE)
def test_equal_values_have_equal_fingerprints(make):
    assert describe(make()).fingerprint == describe(make()).fingerprint != ""


def test_values_that_differ_have_other_fingerprints():
    other = torch.zeros(1500, 1000)
    other[1499, 999] = 1
    values = [torch.zeros(1500, 1000), other, torch.zeros(1000, 1500), torch.ones(2), torch.ones(2, dtype=torch.int32)]
    values += [net(1), net(2), {"a": 1}, {"a": 2}, {"b": 1}, [1], 1, "1", True]
    assert len({describe(value).fingerprint for value in values}) == len(values)


def test_what_cannot_be_compared_has_no_fingerprint():
    itself = []
    itself.append(itself)
    for value in (torch.eye(2).to_sparse(), torch.ones(2, device="meta"), np.array([1, "a"], dtype=object), itself):
        assert describe(value).fingerprint == ""
    assert describe(object()).fingerprint == "" and describe([0] * 20_000).fingerprint == ""


def test_the_table_shows_where_ranks_differ():
    described = {
        "lr": {rank: describe(0.1) for rank in range(3)},
        "net": {rank: describe(net(rank)) for rank in range(3)},
        "only": {1: describe("here")},
        "part": {rank: describe(torch.zeros(2 + (rank == 2), 3)) for rank in range(3)},
        "seed": {rank: describe(rank) for rank in range(3)},
        "thing": {rank: Description(type="Thing") for rank in range(3)},
    }
    table = NamesTable(described, (0, 1, 2))
    assert table.differing() == ["net", "only", "part", "seed"]
    assert table.rows() == [
        ("lr", "0-2", "float", "", "", "", "", "0.1"),
        ("net", "0-2", "Linear", "10 parameters", "float32", "cpu", "40 B", "differs between ranks"),
        ("only", "1", "str", "", "", "", "", "'here'"),
        ("part", "0-1", "Tensor", "(2, 3)", "float32", "cpu", "24 B", ""),
        ("part", "2", "Tensor", "(3, 3)", "float32", "cpu", "36 B", ""),
        ("seed", "0-2", "int", "", "", "", "", "differs: 0 (rank 0), 1 (rank 1), 2 (rank 2)"),
        ("thing", "0-2", "Thing", "", "", "", "", ""),
    ]
    assert "<td>differs between ranks</td>" in table._repr_html_()
    assert "no names" in repr(NamesTable({}, (0,))) and "no names" in NamesTable({}, (0,))._repr_html_()
