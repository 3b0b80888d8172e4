"""The validations of a run beside its steps, and what a rollback takes back of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fake_run import make_fake_run
from workbench.core.records import EventKind, StepRecord
from workbench.export.source import ExportSource
from workbench.history.row import read_row
from workbench.report.run_data import read
from workbench.run.reader import RunReader
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.progress import last_value
from workbench.telemetry.store import Store


def train(log: RankLogWriter, steps: range) -> None:
    for step in steps:
        log.append(
            StepRecord(
                time=float(step), step=step, rank=0, loss=1.0, lr=0.1, grad_sq=1.0, tokens=8, step_time_ms=1.0,
                data_wait_ms=0.0,
            )
        )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Validated at steps 2 and 4, then back to step 2, and ended at step 3: what was measured at 4 is of a model that
    there is no more."""
    path = make_fake_run(tmp_path / "run", ranks=1, steps=4, state="starting")
    for log in (path / "rank-00000").glob("*.arrow"):
        log.unlink()
    with RankLogWriter(path, 0) as log:
        for steps, loss, accuracy in ((range(1, 3), 2.0, 0.5), (range(3, 5), 0.5, 0.9)):
            train(log, steps)
            log.event(EventKind.VALIDATION, "loss", loss, step=steps[-1])
            log.event(EventKind.VALIDATION, "accuracy", accuracy, step=steps[-1])
            log.event(EventKind.VALIDATION, "confusion_matrix", [[1, 0], [0, 1]], step=steps[-1])
        log.event(EventKind.CHECKPOINT, "restored", {"path": "x", "rows": log.taken()}, step=2)
        train(log, range(3, 4))
    return path


def test_metrics_have_a_column_for_each_validation(run: Path) -> None:
    metrics = RunReader(run).metrics()
    assert metrics["step"].tolist() == [1, 2, 3]
    np.testing.assert_equal(metrics["validation_loss"].to_numpy(), [np.nan, 2.0, np.nan])
    np.testing.assert_equal(metrics["validation_accuracy"].to_numpy(), [np.nan, 0.5, np.nan])
    assert "validation_confusion_matrix" not in metrics
    per_rank = RunReader(run).metrics(per_rank=True)
    assert per_rank.loc[per_rank["validation_loss"] == 2.0, ["step", "rank"]].to_numpy().tolist() == [[2, -1]]


def test_what_a_rollback_took_back_is_no_validation_anywhere(run: Path) -> None:
    store = Store(run)
    store.refresh()
    assert last_value(store, "loss") == 2.0
    assert read_row(run).best_validation == 2.0
    assert read(run).validation() == [{"step": 2, "loss": 2.0, "accuracy": 0.5}]
    assert [row[1:] for row in ExportSource(run).validation()] == [(2, "loss", 2.0), (2, "accuracy", 0.5)]
    assert ExportSource(run, (3, 9)).validation() == []
