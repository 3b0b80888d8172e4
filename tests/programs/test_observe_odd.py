"""Observed loops that are odd, and sharded ones: each in processes of its own, all cases of a kind in one start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench import Run

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("observed_odd.py")
TRAINERS = Path(__file__).with_name("observed_trainers.py")
WAIT_S = 600.0
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run_script(out: Path, *words: str, python: str = sys.executable) -> None:
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [python, *words, str(out)],
        env={**ours, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "WORKBENCH_HOME": str(out / "runs")},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def warnings(run: Run) -> dict[str, str]:
    return {event.name: str(event.value) for event in run.events().itertuples() if event.kind == "warning"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("alone")
    run_script(out, str(SCRIPT), "alone")
    found: dict[str, Any] = json.loads((out / "found-0.json").read_text())
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    run_script(out, *TORCHRUN, str(SCRIPT), "ranks")
    return [json.loads((out / f"found-{rank}.json").read_text()) for rank in range(2)]


def test_an_optimizer_that_is_swapped_is_followed(alone: dict[str, Any]) -> None:
    run = Run(Path(alone["swapped"]["path"]))
    assert "SGD was replaced by another optimizer (AdamW)" in warnings(run)["optimizer_swapped"]
    metrics = run.metrics()
    assert list(metrics["lr"]) == pytest.approx([0.1] * 3 + [0.05] * 3)
    assert list(metrics["grad_norm"]) == pytest.approx(alone["swapped"]["norms"], rel=1e-5)


def test_gradients_of_a_closure_are_seen_after_it(alone: dict[str, Any]) -> None:
    run = Run(Path(alone["closed"]["path"]))
    assert not warnings(run)
    assert list(run.metrics()["grad_norm"]) == pytest.approx(alone["closed"]["norms"], rel=1e-5)


def test_an_optimizer_that_never_steps_is_named(alone: dict[str, Any]) -> None:
    run = Run(Path(alone["unstepped"]["path"]))
    assert run.status == "finished" and run.last_step == 10
    assert "SGD did not step" in warnings(run)["optimizer_not_stepped"]
    assert run.metrics()["skipped"].all()


def test_a_loop_that_never_calls_step_is_told(alone: dict[str, Any]) -> None:
    run = Run(Path(alone["uncalled"]["path"]))
    assert run.status == "finished"
    assert "call it once after each step" in warnings(run)["step_not_called"]


def test_a_block_that_is_left_by_an_exit_failed_where_its_code_says_so(alone: dict[str, Any]) -> None:
    assert Run(Path(alone["left-well"]["path"])).status == "finished"
    run = Run(Path(alone["left-badly"]["path"]))
    (failed,) = run.events().query("name == 'failed'").itertuples()
    assert run.status == "failed" and failed.value["evalue"] == "no data"


def test_observing_on_one_rank_is_refused_and_the_ranks_meet_the_next_time(ranks: list[dict[str, Any]]) -> None:
    assert "rank 1 has not come" in ranks[0]["told"] and "call it on every one of the 2 ranks" in ranks[0]["told"]
    assert ranks[0]["fsdp"]["path"] == ranks[1]["fsdp"]["path"]
    (refused,) = (path for path in Path(ranks[0]["fsdp"]["path"]).parent.iterdir() if path.name.endswith("one-rank"))
    assert Run(refused).status in ("failed", "lost")


def test_statistics_of_fsdp2_are_those_of_the_whole_model(ranks: list[dict[str, Any]]) -> None:
    run = Run(Path(ranks[0]["fsdp"]["path"]))
    expected = ranks[0]["fsdp"]["expected"]
    assert run.status == "finished" and run.plan.plugin == "fsdp"
    metrics = run.metrics()
    for name in ("loss", "grad_norm"):
        assert list(metrics[name]) == pytest.approx([each[name] for each in expected], rel=1e-4), name
    rows = run.gradients().query("scope == 'reduced'")
    assert len(rows) >= 2 * len(expected)
    for row in rows.itertuples():
        assert row.norm == pytest.approx(expected[row.step - 1]["reduced"][row.layer], rel=1e-4), row
    assert "local gradients are not seen" in warnings(run)["not_seen"]


def test_the_trainer_of_transformers_on_two_ranks(tmp_path: Path) -> None:
    run_script(tmp_path, *TORCHRUN, str(TRAINERS), "trainer")
    run = Run(Path((tmp_path / "run-0").read_text()))
    expected = json.loads((tmp_path / "expected.json").read_text())
    metrics = run.metrics()
    assert run.status == "finished" and run.plan.ranks == 2 and run.plan.plugin == "ddp"
    assert list(metrics["loss"]) == pytest.approx([each["loss"] for each in expected], abs=2e-4)
    assert list(metrics["grad_norm"]) == pytest.approx([each["grad_norm"] for each in expected], rel=1e-3)
