"""The starter package of ``workbench new framework``: a framework of one's own, which trains without changes."""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path

from workbench.core import algorithms
from workbench.core.frameworks import installed, usable
from workbench.core.plan_grammar import COUNTS, ELSEWHERE, SWITCHES
from workbench.errors import ConfigError, RunDirectoryError

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["dist-workbench", "torch"]

# `%dist_train --framework {name}`, `workbench frameworks` and the panel find it here
[project.entry-points."dist_workbench.frameworks"]
{name} = "{name}:FRAMEWORK"
"""

_TABLE = '''\
"""{name}, as the notebook sees it: its plugins and what each can do. Imports no tensor library."""

from workbench.core.frameworks import Capability, Feature, Framework, Plugin

FRAMEWORK = Framework(
    name="{name}",
    title="{name}",
    plugins=(
        Plugin(
            name="ddp",
            summary="each rank holds the whole model; gradients are averaged after backward",
            strategy="{name}.strategy:DataParallel",
            # What it cannot do stands in lacks and refuses, what nobody has tried in untried, each with the reason that
            # a person reads before a run starts.
            capabilities=frozenset(Capability) - {{Capability.PIPELINED}},
            lacks={{Capability.PIPELINED: "every rank holds all layers: use --framework colossal or torch"}},
            refuses={{
                Feature.COMPILED: "not written yet",
                Feature.OWN_STEPS: "only the gradients of its own step are averaged",
            }},
            untried={{Feature.GPU: "not yet run on a GPU"}},
        ),
    ),
    preload="{name}.strategy:load",
    joined="workbench.engine.frameworks.torch.ranks:joined",
    packages=("torch", "{name}"),
)
'''

_STRATEGY = '''\
"""How {name} trains: what runs on ranks.

The loop, batches, losses, commands, checkpoints and records are the workbench's. A framework says how ranks meet
(`joined` in __init__.py: a group of torch) and how what they compute becomes one training: by the two functions here.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from workbench.engine import preload
from workbench.engine.frameworks.torch.data_parallel import DataParallelStrategy


def load() -> Callable[[], None]:
    """Import what ranks need, in the process that they are forked from. It must start no thread."""
    return preload.load(["{name}.strategy"], title="{name}")


class DataParallel(DataParallelStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    def begin(self) -> None:
        """Make what the functions below need. Called once on all ranks, before the first of them."""

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum `tensor` over the ranks, in place: gradients after backward, bucket by bucket, and their norm.

        Write here what your library does. All ranks must get the same bits, or their weights part.
        """
        dist.all_reduce(tensor)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Give all ranks what rank 0 has in `tensor`: weights at the start, buffers before each step."""
        dist.broadcast(tensor, src=0)
'''

_TEST = '''\
"""{name} trains as one process does, and can do what its table says: `python -m pytest`, which starts two ranks."""

import pytest
import workbench
from {name} import FRAMEWORK

CELL = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.BatchNorm1d(32), torch.nn.Dropout(0.1),
                            torch.nn.GELU(), torch.nn.Linear(32, 1))
model[1].eval()  # its statistics would be those of each rank's own share of the batch
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
x = torch.randn(256, 8)
dataset = torch.utils.data.TensorDataset(x, x.sin().sum(1, keepdim=True))
criterion = torch.nn.MSELoss()
"""


@pytest.fixture(autouse=True, scope="module")
def no_rank_stays():
    yield
    if workbench.Session.current() is not None:
        workbench.Session.current().down()


@pytest.fixture(params=[plugin.name for plugin in FRAMEWORK.plugins])
def options(request, tmp_path, monkeypatch):
    """Of a run on two ranks, by each plugin. Its directory is a temporary one."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    return {{"framework": "{name}", "plugin": request.param, "ranks": 2, "batch_size": 32}}


def test_it_trains_as_one_process(options):
    """Losses, gradients and weights of every step, against one process with the whole batch."""
    found = workbench.verify(options, cell=CELL, steps=8)
    assert found.same, str(found)


def test_it_can_be_watched_and_goes_on_from_a_checkpoint(options):
    options |= {{"steps": 6, "clip": 0.5, "accumulate": 2, "grad_every": 1, "save_every": 3}}
    run = workbench.train(options, cell=CELL).wait()
    assert set(run.gradients()["scope"]) == {{"local", "reduced"}}
    again = workbench.train(options | {{"resume": f"{{run.path}}@3"}}, cell=CELL).wait()
    assert list(again.metrics()["loss"]) == list(run.metrics()["loss"])[3:]
'''


def write(folder: Path) -> list[Path]:
    """Write the package of a framework into ``folder``, whose last part is its name; returns the paths of its files.

    Raises ``ConfigError`` for a name that a framework cannot have or that is taken, and ``RunDirectoryError`` when the
    folder exists or cannot be written. Nothing is written then.
    """
    name = folder.absolute().name
    _check_name(name)
    if folder.exists():
        raise RunDirectoryError(f"{folder} already exists: choose another name, or move it away")
    texts = {
        "pyproject.toml": _PROJECT,
        f"{name}/__init__.py": _TABLE,
        f"{name}/strategy.py": _STRATEGY,
        "tests/test_conformance.py": _TEST,
    }
    try:
        for file, text in texts.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text.format(name=name), encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(f"cannot write the package {folder}: {error.strerror}") from error
    return [folder / file for file in texts]


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a framework, which is a Python package and a word of a plan: use small "
            "letters, digits and _, a letter first",
            field="NAME",
        )
    if name in installed():
        raise ConfigError(f"a framework {name!r} is installed already: choose another name", field="NAME")
    plugins = {plugin.name for framework in usable() for plugin in framework.plugins}
    word = name.rstrip("0123456789").replace("_", "-")
    if {name, word} & {*plugins, *COUNTS, *SWITCHES, *ELSEWHERE, *algorithms.names()}:
        raise ConfigError(f"{name!r} means something else in a plan: choose another name", field="NAME")
    if find_spec(name) is not None:
        raise ConfigError(f"a Python module {name!r} is installed already: choose another name", field="NAME")
