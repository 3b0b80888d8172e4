"""What a cell takes from elsewhere: which names these are, how they are kept, and made again."""

from __future__ import annotations

import json
import linecache
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workbench.engine.state.cell_names import MOST_ELEMENTS, CellNames, keep, names_from_elsewhere, restore


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x = a + 1\ny = x", {"a"}),
        ("a = a + 1", {"a"}),
        ("a = 1\nb = a", set()),
        ("def f(p, q=a):\n    r = p\n    return r + b + f(c)\nc = 2", {"a", "b"}),
        ("for i in range(3):\n    print(i)", {"range", "print"}),
        ("y = [k * a for k in b]", {"a", "b"}),
        ("import math\nz = math.pi", set()),
        ("class C(Base):\n    width = w\n    def f(self):\n        return self.width * depth", {"Base", "w", "depth"}),
        ("f = lambda v: v + a", {"a"}),
        ("model.x = 1", {"model"}),
    ],
)
def test_names_that_a_source_does_not_define_itself(source: str, names: set[str]) -> None:
    assert names_from_elsewhere(source) == names


def ran_as_cell(source: str) -> dict[str, Any]:
    """The namespace after a cell ran as an engine runs it."""
    file = f"/tmp/ipykernel_1/{abs(hash(source))}.py"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, file, "exec"), namespace)
    return namespace


EARLIER = """
import math
import numpy as np
from collections import OrderedDict
from dataclasses import dataclass

width = 16
factors = {"a": (1, 2.5, float("inf")), "b": [None, True]}
grid = np.arange(6, dtype=np.float32).reshape(2, 3)

def half(x):
    return x / divisor

divisor = 2
double = lambda x: 2 * x

class Scaled:
    def __init__(self, by):
        self.by = half(by)

@dataclass
class Sizes:
    depth: int = 3

alias = half
"""
USES = """
result = (width, factors, grid.sum(), half(3), double(4), Scaled(5).by, Sizes().depth, math.pi, alias(1))
result += (np, OrderedDict)
"""


def test_what_is_kept_makes_the_same_values_again(tmp_path: Path) -> None:
    namespace = ran_as_cell(EARLIER)
    names = CellNames.of(USES, namespace, ())
    assert names.missing == []
    assert keep(tmp_path, USES, names) == ([], [])
    again: dict[str, Any] = {"__name__": "__main__"}
    assert restore(tmp_path, again)
    exec(USES, again)
    expected = (16, {"a": (1, 2.5, math.inf), "b": [None, True]}, 15.0, 1.5, 8, 2.5, 3, math.pi, 0.5)
    assert again["result"][:9] == expected
    assert "divisor" in json.loads((tmp_path / "names.json").read_text()), "a function's own names too"


def test_what_cannot_be_kept_is_named() -> None:
    def closure(x: int) -> Any:
        return lambda: x

    namespace = {
        "net": torch.nn.Linear(2, 2),
        "big": np.zeros(MOST_ELEMENTS + 1),
        "leaf": torch.zeros(2, requires_grad=True),
        "inner": closure(3),
        "small": torch.ones(2),
        "unused": object(),
    }
    names = CellNames.of("net, big, leaf, inner, small", namespace, ())
    assert names.missing == ["big", "inner", "leaf", "net"] and list(names.kept) == ["small"]


def test_local_modules_are_kept_and_can_be_imported_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, run = tmp_path / "here", tmp_path / "run"
    (here / "own_package").mkdir(parents=True)
    run.mkdir()
    (here / "own_package" / "__init__.py").write_text("")
    (here / "own_package" / "layers.py").write_text("from own_helper import SIZE\n")
    (here / "own_helper.py").write_text("SIZE = 7\n")
    (here / "own_other.py").write_text("")
    monkeypatch.syspath_prepend(str(here))
    cell = "from own_package.layers import SIZE\nimport numpy"
    exec("import own_other\n" + cell, {})
    assert keep(run, cell, CellNames()) == ([], [])
    kept = sorted(str(path.relative_to(run)) for path in run.rglob("*.py"))
    assert kept == ["modules/own_helper.py", "modules/own_package/__init__.py", "modules/own_package/layers.py"]
    (here / "own_helper.py").write_text("SIZE = 8\n")
    assert keep(run, cell, CellNames()) == ([], ["own_helper"])
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]
    (here / "own_helper.py").rename(here / "gone.py")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert not restore(run, {})
    namespace: dict[str, Any] = {}
    exec(cell, namespace)
    assert namespace["SIZE"] == 8
