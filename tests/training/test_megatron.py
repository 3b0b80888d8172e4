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


def test_runs_by_replicas_and_by_stages_are_one_training_which_goes_on(shell: InteractiveShell) -> None:
    stages = "--plan 'megatron pp2' --micro-batches 2"
    for name, flags in (
        ("replicas", "--framework megatron --steps 4"),
        ("stages", f"{stages} --steps 4"),
        ("on", f"{stages} --steps 6 --resume by-replicas"),
    ):
        shell.run_line_magic("dist_train", f"{LINE} {flags} --name by-{name}")
    run, cut, on = (Run(f"by-{name}") for name in ("replicas", "stages", "on"))
    ours, others = run.metrics(), cut.metrics()
    for name in ("loss", "validation_loss"):
        assert list(ours[name].dropna()) == pytest.approx(list(others[name].dropna()), abs=1e-5), name
    for name in ("grad_norm", "framework_norm"):
        assert list(others[name]) == pytest.approx(list(ours["grad_norm"]), rel=1e-4), name
    assert cut.plan.describe() == "megatron hybrid pp2"
    assert run.status == cut.status == on.status == "finished" and on.metrics()["step"].iloc[-1] == on.last_step == 6
    for each in (run, cut, on):
        warned = {event.name for event in each.events().itertuples() if event.kind in ("warning", "error")}
        assert warned == ({"plan_changed"} if each is on else set())
        assert set(each.gradients()["scope"]) >= {"reduced"} and len(each.samples())
        assert {"forward", "backward", "communication", "optimizer"} <= set(each.phases()["phase"])
    assert set(run.gradients()["scope"]) == {"local", "reduced"}
    assert set(run.gradients()["layer"]) == set(cut.gradients()["layer"])
    versions = tomllib.loads((run.path / SPEC_FILE).read_text())["versions"]
    assert versions["megatron-core"].startswith("0.16")
