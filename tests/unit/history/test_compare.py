"""Comparing runs: on curves whose answer is known."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tomli_w

import workbench
from tests.fake_run import make_fake_run
from workbench.core.config import SPEC_FILE, ParallelPlan, TrainSpec
from workbench.core.records import SESSION_RANK, CollectiveRecord, StepRecord
from workbench.errors import ConfigError, RunDirectoryError
from workbench.export import export
from workbench.history import compare as comparing
from workbench.history import sources
from workbench.history.show import curve_table, tables
from workbench.rundir.log import RankLogWriter

HOSTILE = "<script>alert('x')</script>\u2028\N{GRINNING FACE}"


def run_with(
    home: Path,
    name: str,
    losses: list[float],
    *,
    ranks: int = 1,
    step_s: float = 0.1,
    seed: int = 1,
    cell: str = "",
    information: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A run of given losses; every rank takes 100 tokens a step in ``step_s`` seconds, batch 8 x 100 tokens."""
    path = home / name
    path.mkdir(parents=True)
    spec = TrainSpec(name=name, seed=seed, batch_size=8, steps=len(losses), plan=ParallelPlan(ranks=ranks), **options)
    (path / SPEC_FILE).write_text(tomli_w.dumps(spec.to_toml() | (information or {})))
    if cell:
        (path / "cell.py").write_text(cell)
    for rank in range(ranks):
        with RankLogWriter(path, rank) as log:
            for step, loss in enumerate(losses, start=1):
                log.append(
                    StepRecord(
                        time=1e9 + step * step_s,
                        step=step,
                        rank=rank,
                        loss=loss,
                        lr=0.1,
                        grad_sq=1.0,
                        tokens=800 // ranks,
                        step_time_ms=1e3 * step_s,
                        data_wait_ms=0,
                    )
                )
                log.append(
                    CollectiveRecord(
                        step=step,
                        rank=rank,
                        kind="all_reduce",
                        group="dp",
                        group_size=ranks,
                        bytes=10 * step,
                        start_ms=0,
                        duration_ms=1,
                        exposed_ms=1,
                    )
                )
            log.event("state", "finished", step=len(losses))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    return tmp_path


def test_axes_are_cumulated(home: Path) -> None:
    run_with(home, "a", [3.0, 2.0, 1.0], ranks=2)
    run_with(home, "b", [3.0, 2.0, 1.0], ranks=2)
    for x, expected in (
        ("step", [1, 2, 3]),
        ("tokens", [800, 1600, 2400]),
        ("time", [0.1, 0.2, 0.3]),
        ("bytes", [20, 60, 120]),
    ):
        curves = workbench.compare(["a", "b"], x).curves()
        assert curves[curves["run"] == "a"][x].tolist() == pytest.approx(expected), x


def test_of_local_steps_those_that_are_not_logged_sent_nothing() -> None:
    metrics = {"step": np.arange(1.0, 9.0)}
    logged = {"step": np.array([1, 1, 2, 2, 8, 8]), "bytes": np.array([5, 5, 5, 5, 40, 40])}
    together = sources._bytes(metrics, {"collectives": logged, "devices": {}}, math.inf)
    assert np.diff(together).tolist() == [10, 10, 10, 10, 10, 10, 80]
    alone = sources._bytes(metrics, {"collectives": logged, "devices": {}}, 3)
    assert np.diff(alone).tolist() == [10, 10, 0, 0, 0, 0, 80]


def test_ends_are_matched_on_the_axis_of_the_comparison(home: Path) -> None:
    run_with(home, "short", list(np.linspace(4, 2, 100)), step_s=0.2)
    run_with(home, "long", list(np.linspace(4, 0, 200)), step_s=0.05)
    by_step, by_time = workbench.compare(["short", "long"]), workbench.compare(["short", "long"], "time")
    assert by_step.common == 100 and by_time.common == pytest.approx(10.0)
    losses = by_step.curves().query("run == 'long' and 90 <= step <= 100")["loss"]
    assert by_step.figures[1].loss == pytest.approx(losses.mean())
    assert by_time.figures[1].loss == pytest.approx(np.linspace(4, 0, 200)[179:].mean())
    assert any("up to step 100" in line for line in by_step.words())


def test_seed_noise_is_told_from_a_difference(home: Path) -> None:
    from scipy import stats

    random = np.random.default_rng(0)
    same = [run_with(home, f"a{i}", [1 + 0.01 * random.normal()] * 10, seed=i, lr=0.1) for i in range(4)]
    other = [run_with(home, f"b{i}", [1 + 0.01 * random.normal()] * 10, seed=i, lr=0.2) for i in range(4)]
    worse = [run_with(home, f"c{i}", [1.2 + 0.01 * random.normal()] * 10, seed=i, lr=0.3) for i in range(4)]
    found = workbench.compare([*same, *other, *worse])
    assert [(g.label, len(g.members)) for g in found.groups] == [("lr 0.1", 4), ("lr 0.2", 4), ("lr 0.3", 4)]
    loss = {(t.a, t.b): t for t in found.tests if t.metric == "loss"}
    assert {pair: t.exceeds for pair, t in loss.items()} == {(0, 1): False, (0, 2): True, (1, 2): True}
    values = [[found.figures[i].loss for i in group.members] for group in found.groups]
    theirs = stats.ttest_ind(values[0], values[2], equal_var=False)
    assert loss[0, 2].welch.p == pytest.approx(theirs.pvalue, rel=1e-6)
    assert loss[0, 2].permutation.p == pytest.approx(2 / math.comb(8, 4))  # both extreme splits of all 70
    said = "\n".join(found.words())
    assert "within seed noise" in said and "more than seed noise explains" in said and "70 splits" in said


def test_one_run_each_is_no_evidence(home: Path) -> None:
    found = workbench.compare([run_with(home, "a", [1.0] * 5, lr=0.1), run_with(home, "b", [2.0] * 5, lr=0.2)])
    assert found.tests == () and found.words()[0] == "a has the lowest training loss (mean of the last tenth), 1."
    assert "there is one seed only of a; b. Repeat with another --seed." in found.words()[1]
    repeats = workbench.compare([home / "a", run_with(home, "c", [1.2] * 5, lr=0.1, seed=9)])
    assert "2 repeats of one spec: training loss 1.1 ± 0.1414" in repeats.words()[1]


def test_runs_of_one_seed_are_one_repeat(home: Path) -> None:
    """Their losses come out alike, so they say nothing of seed noise; their speed was measured in each."""
    low = [run_with(home, f"a{i}", [1.0] * 5, lr=0.1, seed=1) for i in range(3)]
    high = [run_with(home, f"b{i}", [1.1] * 5, lr=0.2, seed=1) for i in range(3)]
    found = workbench.compare([*low, *high])
    assert {test.metric for test in found.tests} == {"tps"}
    assert "one seed only of lr 0.1; lr 0.2. Repeat" in "\n".join(found.words())
    alone = workbench.compare(low)
    assert "3 runs of one spec and one seed: their training losses are equal" in "\n".join(alone.words())
    more = [run_with(home, f"c{i}", [1.0 + 0.3 * i] * 5, lr=0.1, seed=2) for i in range(2)]  # losses 1.0 and 1.3
    (group,) = (mixed := workbench.compare([*low, *more])).groups
    assert group.repeats("loss", mixed.figures) == pytest.approx([1.0, 1.15]) and len(group.members) == 5


def test_what_differs_in_spec_environment_and_code(home: Path) -> None:
    one = {"versions": {"torch": "2.5.1"}, "machine": {"host": "h", "started": "1", "git_commit": "abc"}}
    two = {"versions": {"torch": "2.13.0"}, "machine": {"host": "h", "started": "2", "git_commit": "def"}}
    run_with(home, "a", [1.0], cell="lr = 1\nmodel = small", information=one)
    run_with(home, "b", [1.0], cell=f"lr = 1\nmodel = '{HOSTILE}'", information=two, precision="bf16")
    found = workbench.compare(["a", "b"])
    assert [(d.section, d.name, d.values) for d in found.differences] == [
        ("spec", "precision", ("fp32", "bf16")),
        ("environment", "versions.torch", ("2.5.1", "2.13.0")),
        ("code", "machine.git_commit", ("abc", "def")),
        ("code", "cell.py", ("2 lines", "2 lines")),
    ]
    assert "-model = small\n+model = " in found.code_diffs["b"]
    assert list(found.differences_table().columns) == ["section", "name", "a", "b"]
    page = found._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page and "alert" in repr(found)


def test_what_was_not_committed_differs(home: Path) -> None:
    for name, diff in (("a", ""), ("b", "+x\n+y")):
        about = {"git": {"commit": "abc", "diff": diff}, "packages": {"numpy": "2.0" if diff else "1.26"}}
        (run_with(home, name, [1.0]) / "environment.json").write_text(json.dumps(about))
    first, second = workbench.compare(["a", "b"]).differences
    assert (first.section, first.name, first.values) == ("environment", "packages.numpy", ("1.26", "2.0"))
    assert (second.section, second.name) == ("code", "git.diff")
    assert second.values[0] == "clean" and str(second.values[1]).startswith("2 lines not committed")


def test_scaling_follows_amdahl(home: Path) -> None:
    serial = 0.2
    for ranks in (1, 2, 4, 8):
        run_with(home, f"n{ranks}", [1.0] * 5, ranks=ranks, step_s=0.8 * (serial + (1 - serial) / ranks))
    found = workbench.compare(["n1", "n2", "n4", "n8"]).scaling
    assert found is not None and found.fit is not None and not found.weak
    assert found.fit.serial == pytest.approx(serial) and found.fit.error == pytest.approx(0, abs=1e-9)
    expected = [1 / (serial + (1 - serial) / n) for n in found.ranks]
    assert found.speed_up == pytest.approx(expected)
    assert found.efficiency == pytest.approx([s / n for s, n in zip(expected, found.ranks, strict=True)])
    assert any("a serial share of 20 ± " in line and "limit of 5.0x" in line for line in workbench.compare(
        ["n1", "n2", "n4", "n8"]).words())  # fmt: skip
    assert workbench.compare(["n1", "n1"]).scaling is None


def test_a_batch_that_grows_is_weak_scaling(home: Path) -> None:
    make_fake_run(home / "one", ranks=1, steps=20)
    make_fake_run(home / "two", ranks=2, steps=20)
    found = workbench.compare(["one", "two"])
    assert found.scaling is not None and found.scaling.weak and found.scaling.fit is None
    assert "weak scaling" in "\n".join(found.words())


def test_tables_and_text(home: Path) -> None:
    run_with(home, "a", list(np.linspace(2, 1, 12)))
    run_with(home, "b", list(np.linspace(3, 2, 12)))
    found = workbench.compare(["a", "b"])
    table = found.table()
    assert (
        isinstance(table, pd.DataFrame) and table["run"].tolist() == ["a", "b"] and table["steps"].tolist() == [12] * 2
    )
    heads, rows = curve_table(found)
    assert heads[1:] == ["2", "4", "6", "8", "10", "12"]
    places = np.array([2, 4, 6, 8, 10, 12])
    assert [float(v) for v in rows[0][1:]] == pytest.approx(2 - (places - 1) / 11, abs=5e-4)
    assert "loss at step" in repr(found) and "<caption>Runs</caption>" in found._repr_html_()


def test_speeds_of_samples_are_called_so_and_steps_are_whole(home: Path) -> None:
    for name in ("a", "b"):
        run_with(home, name, list(np.linspace(2, 1, 10)))
        with RankLogWriter(home / name, SESSION_RANK) as log:
            log.event("data", "batch", {"samples": 8, "unit": "samples"})
    found = workbench.compare(["a", "b"])
    assert "samples/s/device" in found._repr_html_() and "tokens" not in found._repr_html_()
    assert curve_table(found)[0][1:] == ["2", "3", "5", "7", "8", "10"]


def test_runs_without_a_step_are_no_obstacle(home: Path) -> None:
    run_with(home, "a", [1.0])
    run_with(home, "b", [math.nan])
    (run_with(home, "c", [1.0]) / "rank-00000" / "steps.arrow").unlink()
    found = workbench.compare(["a", "b", "c"])
    assert math.isnan(found.figures[1].loss) and found.figures[2].steps == 0 and repr(found) and found._repr_html_()
    assert (found.common, found.figures[0].loss) == (1.0, 1.0), "the common end is that of the runs that took a step"
    assert "Without a completed step: c." in found.words() and "or" not in found.counts


@pytest.mark.parametrize(
    ("runs", "x", "error", "said"),
    [
        (["a"], "step", ConfigError, "needs at least two runs"),
        (["a", "b"], "epoch", ConfigError, "unknown axis"),
        (["a", "nope"], "step", RunDirectoryError, "no run 'nope'"),
    ],
)
def test_what_cannot_be_compared(home: Path, runs: list[str], x: str, error: type[Exception], said: str) -> None:
    run_with(home, "a", [1.0])
    run_with(home, "b", [1.0])
    with pytest.raises(error, match=said):
        workbench.compare(runs, x)


def test_the_same_run_twice_has_two_labels(home: Path) -> None:
    run_with(home, "a", [1.0])
    found = comparing.compare(["a", home / "a"])
    assert [s.label for s in found.compared] == ["a (1)", "a (2)"]
    assert [row[-1] for row in tables(found)[0][2]] == ["a", "a"], "directories tell apart what names do not"


def test_runs_are_called_by_their_names(home: Path) -> None:
    runs = [run_with(home, f"2026-05-01-12000{at}-{name}", [1.0] * 3) for at, name in enumerate("ab")]
    found = comparing.compare(runs)
    assert [s.label for s in found.compared] == ["a", "b"]
    assert "2026" not in repr(found)


@pytest.mark.parametrize(
    ("damage", "said", "steps"), [("cut", "cut off", 3), ("gone", "no log of rank 1", 0), ("newer", "version 99", 0)]
)
def test_what_is_wrong_with_a_run_is_said(home: Path, tmp_path: Path, damage: str, said: str, steps: int) -> None:
    """Compared all the same; exports take what was whole, and refuse what they cannot know."""
    run_with(home, "a", [3.0, 2.0, 1.0], ranks=2)
    log = run_with(home, "b", [3.0, 2.0, 1.0], ranks=2) / "rank-00001" / "steps.arrow"
    if damage == "cut":
        log.write_bytes(log.read_bytes()[:-6])
    elif damage == "gone":
        shutil.rmtree(log.parent)
    else:
        schema = pa.schema([pa.field("step", pa.int64())], metadata={"schema_version": "99"})
        with pa.OSFile(str(log), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            stream.write_batch(pa.record_batch([pa.array([1])], schema=schema))
    found = workbench.compare(["a", "b"])
    assert any(line.startswith("b: ") and said in line for line in found.words())
    assert [figures.steps for figures in found.figures] == [3, steps] and said in found._repr_html_()
    if damage == "newer":
        with pytest.raises(RunDirectoryError, match="schema version 99"):
            export(home / "b", "csv", tmp_path / "out")
    else:
        rows = pd.read_csv(export(home / "b", "csv", tmp_path / "out") / "steps.csv")
        assert len(rows) == (6 if damage == "cut" else 3)


def validate(run: Path, losses: dict[int, float]) -> Path:
    """Log validation losses: step -> loss."""
    with RankLogWriter(run, 0) as log:
        for step, loss in losses.items():
            log.event("validation", "loss", loss, step=step)
    return run


def test_validation_losses_are_compared_at_a_step_that_both_runs_validated(home: Path) -> None:
    """The longer run is better at its end only because it has trained for longer."""
    long = validate(run_with(home, "long", [1.0] * 150), {50: 3.0, 100: 2.5, 150: 1.9})
    short = validate(run_with(home, "short", [1.0] * 120), {50: 2.8, 100: 2.0, 120: 1.95})
    found = workbench.compare([long, short])
    assert [(f.validation, f.validation_step) for f in found.figures] == [(2.5, 100), (2.0, 100)]
    assert "short has the lowest validation loss at step 100, 2." in found.words()


def test_without_a_common_step_each_validation_loss_stands_with_its_own_and_none_wins(home: Path) -> None:
    runs = [validate(run_with(home, "a", [1.0] * 60, lr=0.1), {40: 2.0})]
    runs.append(validate(run_with(home, "b", [1.0] * 60, lr=0.2), {50: 1.5}))
    found = workbench.compare(runs)
    said = "\n".join(found.words())
    assert "not compared, as no step was validated in all runs: a 2 at step 40; b 1.5 at step 50." in said
    assert "lowest validation" not in said and not [test for test in found.tests if test.metric == "validation"]
    assert found.table()["validation_step"].tolist() == [40, 50]


def test_what_was_changed_by_hand_belongs_to_what_differs(home: Path) -> None:
    runs = [run_with(home, name, [1.0] * 9, seed=seed) for seed, name in enumerate("abc")]
    with RankLogWriter(runs[1], 0) as log:
        log.event("control", "lr", 1e-3, step=3, old_value=2e-3)
        log.event("control", "lr", 5e-4, step=6, old_value=1e-3)
        log.event("control", "freeze", ["head"], step=7, old_value=[])
        log.event("control", "checkpoint", 8, step=8)
    found = workbench.compare(runs)
    changed = {d.name: d.values for d in found.differences if d.section == "changed while training"}
    assert changed == {
        "lr": (None, "0.001 at step 3, 5e-4 at step 6", None),
        "frozen": (None, "head at step 7", None),
    }
    assert [group.members for group in found.groups] == [(0, 2), (1,)], "it is no repeat of the others"
