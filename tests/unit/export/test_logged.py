"""What a cell logged, in exports: without what a rollback took back, and of the steps that are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fake_run import fake_spec, write_spec
from workbench.core.records import MediaRecord, StepRecord, ValueRecord
from workbench.export import export
from workbench.export.source import ExportSource
from workbench.history import compare, curves
from workbench.history.sources import from_run
from workbench.history.tensorboard_file import read_scalars
from workbench.rundir.log import RankLogWriter


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two ranks that trained to step 3, went back to step 1 and trained steps 2 and 3 again."""
    write_spec(tmp_path, fake_spec())
    for rank in range(2):
        with RankLogWriter(tmp_path, rank, flush_s=60) as log:
            for step in (1, 2, 3, 2, 3):
                second = log.taken().get("steps", 0) >= 3
                if second and step == 2:
                    log.event("checkpoint", "restored", {"rows": log.taken()}, step=1)
                value = step + (10.0 if second else 0.0) + rank
                log.append(StepRecord(time=float(step), step=step, rank=rank, loss=1.0, lr=0.1, grad_sq=1.0, tokens=8,
                                      step_time_ms=1.0, data_wait_ms=0.0))  # fmt: skip
                log.append(ValueRecord(step=step, rank=rank, name="loss", reduce="mean", value=value, count=1))
                log.append(ValueRecord(step=step, rank=rank, name="own", reduce="none", value=value, count=1))
                log.append(MediaRecord(step=step, rank=rank, name="said", kind="text", text=f"{value:g}"))
    return tmp_path


def test_values_that_stand(run: Path) -> None:
    source = ExportSource(run)
    found = {(step, name): value for _, step, name, value in source.logged_values}
    assert len(source.logged_values) == len(found) == 9
    assert [found[step, "log/loss"] for step in (1, 2, 3)] == [1.5, 12.5, 13.5]
    assert [found[step, "log/own/rank 1"] for step in (1, 2, 3)] == [2.0, 13.0, 14.0]
    assert source.metrics["log/loss"].tolist() == [1.5, 12.5, 13.5]
    assert [one.text for _, one in source.logged_media()] == ["1", "2", "12", "13", "13", "14"]
    assert [row[1] for row in ExportSource(run, (2, 2)).logged_values] == [2, 2, 2]


def test_a_tensorboard_file_has_them(run: Path, tmp_path: Path) -> None:
    scalars = read_scalars(export(run, "tensorboard", tmp_path / "out"))
    np.testing.assert_allclose(scalars["log/loss"].values, [1.5, 12.5, 13.5])
    assert {"log/own/rank 0", "log/own/rank 1"} <= set(scalars)


def test_a_comparison_has_a_curve_per_name(run: Path) -> None:
    """The same values as the run's own columns, a figure for each name; of a run that has them not, none."""
    subject = from_run(run)
    np.testing.assert_allclose(subject.curve["log/loss"], [1.5, 12.5, 13.5])
    found = compare.compare([run, run])
    titles = [figure.title.text for figure in curves.figures(found)]
    assert [title for title in titles if title.startswith("Logged")] == ["Logged: loss", "Logged: own"]
    np.testing.assert_allclose(subject.curve["log/own"], [1.5, 12.5, 13.5])  # the mean over the ranks
