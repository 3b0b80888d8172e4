"""DeepSpeed's ranks, in an environment of their own, from ``%dist_up`` to the end of a run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.environments import interpreter
from workbench import Run
from workbench.cluster.session import Session
from workbench.core.config import SPEC_FILE

LINE = "digits-vit -n 2 --steps 6 --grad-every 1 --wait --quiet"
FLAGS = "--framework colossal --plugin zero2 --accumulate 2 --clip 0.5"
#: the same for DeepSpeed, whose buckets are small enough that a step has several
FILE = {
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 4096},
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
    "optimizer": {"type": "AdamW"},
}
#: every weight is split; by default DeepSpeed leaves small ones whole
SPLIT = FILE | {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


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


def test_a_run_in_an_environment_of_its_own(no_ranks: None, shell: InteractiveShell, tmp_path: Path) -> None:
    """It trains by a configuration file as Colossal-AI's ZeRO does by flags, and says with what: the notebook itself
    does not have DeepSpeed."""
    interpreter("deepspeed")
    whole, split = tmp_path / "whole.json", tmp_path / "split.json"
    whole.write_text(json.dumps(FILE))
    split.write_text(json.dumps(SPLIT))
    found = {}
    for name, flags in (
        ("deepspeed", f"--ds-config {whole}"),
        ("zero3", f"--ds-config {split} --eval-every 3"),
        ("colossal", FLAGS),
    ):
        shell.run_line_magic("dist_train", f"{LINE} {flags} --name by-{name}")
        run = found[name] = Run(f"by-{name}")
        assert run.status == "finished" and run.last_step == 6
        if name != "deepspeed":  # whose ranks train the next one too
            _end_ranks()
    ours, in_parts, theirs = (run.metrics() for run in found.values())
    assert list(ours["loss"]) == pytest.approx(list(in_parts["loss"]), abs=1e-5)
    assert found["zero3"].plan.describe() == "zero3 dp2"
    assert list(in_parts[in_parts["validation_loss"].notna()]["step"]) == [3, 6]
    assert list(ours["loss"]) == pytest.approx(list(theirs["loss"]), abs=1e-5)
    for name in ("grad_norm", "framework_norm"):
        assert list(ours[name]) == pytest.approx(list(theirs["grad_norm"]), rel=1e-4), name
    run = found["deepspeed"]
    kept = json.loads((run.path / "ds_config.json").read_text())
    assert (kept["zero_optimization"]["reduce_bucket_size"], kept["gradient_clipping"]) == (4096, 0.5)
    assert "ds_config.json: zero_optimization.reduce_bucket_size" in run.report().read_text()
    assert set(run.gradients()["scope"]) == {"local", "reduced"} and set(run.phases()["phase"]) >= {
        "forward",
        "backward",
    }
    assert tomllib.loads((run.path / SPEC_FILE).read_text())["versions"]["deepspeed"].startswith("0.19")
