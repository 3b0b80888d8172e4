"""Megatron-Core's ranks, in an environment of their own, from ``%dist_train`` to the weights of a run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.environments import interpreter
from workbench import Run
from workbench.cluster.session import Session
from workbench.core.config import SPEC_FILE

LINE = "stdlib-llama -n 2 --batch-size 4 --accumulate 2 --clip 0.5 --grad-every 1 --eval-every 2 --wait --quiet"


@pytest.fixture(autouse=True)
def no_ranks_stay(shell: InteractiveShell) -> Iterator[None]:
    interpreter("megatron")
    yield
    current = Session.current()
    if current is not None:
        current.down()


def test_a_run_trains_as_with_torch_which_goes_on_from_its_checkpoint(shell: InteractiveShell) -> None:
    for name, flags in (
        ("megatron", "--framework megatron --steps 4"),
        ("pp2", "--plan 'megatron pp2' --micro-batches 2 --steps 4"),
        ("torch", "--framework torch --steps 4"),
        ("torch-on", "--framework torch --steps 6 --resume by-megatron"),
    ):
        shell.run_line_magic("dist_train", f"{LINE} {flags} --name by-{name}")
    run, cut, theirs, on = (Run(f"by-{name}") for name in ("megatron", "pp2", "torch", "torch-on"))
    expected = theirs.metrics()
    for ours in (run.metrics(), cut.metrics()):
        for name in ("loss", "validation_loss"):
            assert list(ours[name].dropna()) == pytest.approx(list(expected[name].dropna()), abs=1e-5), name
        for name in ("grad_norm", "framework_norm"):
            assert list(ours[name]) == pytest.approx(list(expected["grad_norm"]), rel=1e-4), name
    assert cut.plan.describe() == "megatron hybrid pp2" and cut.status == "finished"
    assert run.status == on.status == "finished"
    assert on.metrics()["step"].iloc[-1] == on.last_step == 6
    assert [event.name for event in run.events().itertuples() if event.kind in ("warning", "error")] == []
    assert set(run.gradients()["scope"]) == {"local", "reduced"}
    assert set(run.gradients()["layer"]) == set(theirs.gradients()["layer"])
    assert {"forward", "backward", "communication", "optimizer"} <= set(run.phases()["phase"])
    versions = tomllib.loads((run.path / SPEC_FILE).read_text())["versions"]
    assert versions["megatron-core"].startswith("0.16")
