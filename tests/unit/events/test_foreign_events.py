"""Events that are damaged, of another program, or of a newer version: no reader of a run stops at one."""

import json
import math
import random
import time
from pathlib import Path

import numpy as np
import pytest

import workbench
from tests.fake_run import make_fake_run
from widgets.panel.control_set import History
from widgets.panel.event_list import EventList
from widgets.panel.summary import Facts
from workbench.core.records import Event, EventKind
from workbench.events.decode import MOST_NESTED, as_mapping, as_number, decode, is_rank
from workbench.export import export
from workbench.history.compare import compare
from workbench.history.row import read_row
from workbench.plots import plots
from workbench.report import render
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store

NAMES = (
    "running", "failed", "died", "declared", "lr", "in_force", "loss", "confusion_matrix", "text", "dropped", "batch",
    "gradient", "grad_norm", "interval", "cost", "phases", "changed", "saved", "restored", "lost", "flops", "model",
    "rollback", "branch", "bad_command", "freeze", "from_the_future",
)  # fmt: skip
KEYS = ("rank", "reason", "ename", "samples", "unit", "rows", "path", "value", "usual", "action", "name", "kind",
        "choices", "button", "flops_per_s", "flops_per_token", "parameters", "pid", "layer", "line", "lr")  # fmt: skip
SCALARS = (None, True, 0, -1, 10**30, 10**400, 1.5, math.nan, math.inf, "", "text", "\ud800", "<b>&", "\x00")
NO_JSON = ("", "{", "not json", "nul", '{"a":', "\x00", "[" * 100_000, "1" * 5000, "'single'")


def anything(generator: random.Random, depth: int = 2) -> object:
    """A JSON value of any shape."""
    draw = generator.random()
    if depth and draw < 0.5:
        keys = generator.sample(KEYS, generator.randrange(1, 6))
        return {key: anything(generator, depth - 1) for key in keys}
    if depth and draw < 0.65:
        return [anything(generator, depth - 1) for _ in range(generator.randrange(4))]
    return generator.choice(SCALARS)


def foreign_events(seed: int) -> list[Event]:
    """Each kind with each name, and a kind that is not known, with values of any shape or no JSON at all."""
    generator = random.Random(seed)

    def text() -> str:
        return generator.choice(NO_JSON) if generator.random() < 0.2 else _json(anything(generator))

    return [
        Event(time=time.time(), step=generator.randrange(40), rank=generator.choice((0, 0, 1, -1)), kind=kind,
              name=name, value=text(), old_value=text(), who="<b>", command=generator.randrange(3))
        for kind in (*EventKind, "from_the_future") for name in NAMES
    ]  # fmt: skip


def _json(value: object) -> str:
    try:
        return json.dumps(value)
    except ValueError:  # an integer of more digits than Python writes
        return "1" + "0" * 4000


@pytest.fixture(params=range(3))
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    path = make_fake_run(tmp_path / "2026-01-01-000000-fake", steps=20, layers=1)
    with RankLogWriter(path, -1, flush_s=10) as writer:
        for event in foreign_events(request.param):
            writer.append(event)
    return path


def test_the_panel_shows_a_run_with_foreign_events(run: Path) -> None:
    store = Store(run)
    store.refresh()
    events = store.table("events")
    summary, logged_events, history = Facts(store), EventList(), History(run)
    summary.update()
    logged_events.take(events, 0.0)
    history.take(events)
    facts = summary.now(status="running", can_control=True, clock=time.time())
    json.dumps([facts, logged_events.all(), logged_events.marks(anew=True), history.rows(anew=True)]).encode()
    assert facts["step"] > 0
    assert logged_events.all()
    for plot in plots():
        columns, _ = plot.columns(store, None)
        assert len({values.shape[0] for values in columns.values()}) <= 1, plot.NAME


def test_python_reads_a_run_with_foreign_events(run: Path) -> None:
    opened = workbench.Run(run)
    events = opened.events()
    assert set(events["kind"]) >= {*map(str, EventKind), "from_the_future"}
    assert all(isinstance(text, str) for _, text in opened.samples())
    assert isinstance(opened.settings(), dict)
    assert opened.status
    assert len(opened.metrics()) > 0
    assert opened.declared() is not None


def test_lists_and_comparisons_read_a_run_with_foreign_events(run: Path) -> None:
    row = read_row(run)
    assert row.directory == run.name
    json.dumps(row.to_json())
    assert compare([run, run]) is not None


@pytest.mark.parametrize("to", ["csv", "tensorboard", "trace"])
def test_exports_read_a_run_with_foreign_events(run: Path, to: str, tmp_path: Path) -> None:
    assert export(run, to, tmp_path / f"out-{to}").exists()


def test_the_report_shows_a_run_with_foreign_events(run: Path, tmp_path: Path, few_figures: None) -> None:
    written = render(run, tmp_path / "report.html", light=True)
    assert "from_the_future" in written.read_text()


@pytest.mark.parametrize("text", NO_JSON)
def test_what_is_no_json_is_kept_as_text(text: str) -> None:
    assert decode(text) == text
    assert as_mapping(decode(text)) == {}
    assert math.isnan(as_number(decode(text)))


def test_values_that_no_reader_can_use_are_text() -> None:
    deep = "[" * (MOST_NESTED + 1) + "]" * (MOST_NESTED + 1)
    assert decode(deep) == deep
    assert decode('"\\ud800"') == '"\\ud800"'
    assert decode('"\\ud83d\\ude00"') == "\U0001f600"
    assert decode(json.dumps([[1]] * 1000)) == [[1]] * 1000, "wide, not deep"


def test_numbers_are_what_a_float_holds() -> None:
    assert as_number(decode("3")) == 3.0
    assert all(math.isnan(as_number(decode(text))) for text in ("true", '"3"', "null", "[3]"))
    assert as_number(10**400) == math.inf
    assert [is_rank(value) for value in (0, 3, -1, True, 1.0, 10**30, None)] == [True, True, *[False] * 5]


def test_a_kind_compares_with_what_logs_hold() -> None:
    column = np.array(["state", "other"], dtype=object)
    assert (column == EventKind.STATE).tolist() == [True, False]
    assert np.isin(column, (EventKind.STATE, EventKind.RANK)).tolist() == [True, False]
