"""DeepSpeed's ranks, in an environment of their own, from ``%dist_up`` to the end of a run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.environments import interpreter
from workbench import Run
from workbench.cluster.session import Session
from workbench.core.config import SPEC_FILE

LINE = "digits-vit -n 2 --steps 6 --plugin zero2 --accumulate 2 --clip 0.5 --grad-every 1 --wait --quiet"


@pytest.fixture
def no_ranks(shell: InteractiveShell) -> Iterator[None]:
    """No ranks are up, and none of this test's stay."""
    _end_ranks()
    yield
    _end_ranks()


def _end_ranks() -> None:
    current = Session.current()
    if current is not None:
        current.down()


def test_a_run_in_an_environment_of_its_own(no_ranks: None, shell: InteractiveShell) -> None:
    """It trains as Colossal-AI's ZeRO does, and says with what: the notebook itself does not have DeepSpeed."""
    interpreter("deepspeed")
    found = {}
    for framework in ("deepspeed", "colossal"):
        shell.run_line_magic("dist_train", f"{LINE} --framework {framework} --name by-{framework}")
        run = found[framework] = Run(f"by-{framework}")
        assert run.status == "finished" and run.last_step == 6
        _end_ranks()
    ours, theirs = (run.metrics() for run in found.values())
    assert list(ours["loss"]) == pytest.approx(list(theirs["loss"]), abs=1e-5)
    for name in ("grad_norm", "framework_norm"):
        assert list(ours[name]) == pytest.approx(list(theirs["grad_norm"]), rel=1e-4), name
    run = found["deepspeed"]
    assert set(run.gradients()["scope"]) == {"local", "reduced"} and set(run.phases()["phase"]) >= {
        "forward",
        "backward",
    }
    assert tomllib.loads((run.path / SPEC_FILE).read_text())["versions"]["deepspeed"].startswith("0.19")
