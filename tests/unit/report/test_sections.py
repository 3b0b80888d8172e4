"""Controls, plan, verdict, timelines, environment and comparison in a report, checked against what was logged."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bs4 import BeautifulSoup

import workbench
from tests.fake_run import fake_spec, make_fake_run, write_spec
from workbench.core.config import MonitorSpec
from workbench.core.mesh import Mesh
from workbench.core.records import Command, Event, EventKind, GradientStats, PhaseRecord
from workbench.history.show import tables as tables_of
from workbench.plots import gradients, histogram, loss, memory, throughput, utilisation
from workbench.plots import timeline as plot_of_timeline
from workbench.report import document, mesh_diagram, render, run_data, timeline, words
from workbench.report.compared import compare_runs
from workbench.report.control_history import read_control_history
from workbench.report.figures import FigureBundle, ReportFigure, compress_text
from workbench.report.missing import why_missing
from workbench.run.api import Run
from workbench.rundir.log import RankLogWriter
from workbench.rundir.owner import OWNER_FILE
from workbench.telemetry.store import Store

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"
SHOWN = [loss, throughput, gradients, memory, utilisation, plot_of_timeline]


def page_of(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


def text_page(run: Path) -> BeautifulSoup:
    """The report of a run without figures, which are slow to draw."""
    return page_of(render(run, figures=[], light=True))


@pytest.fixture(scope="module")
def phased(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BeautifulSoup]:
    """A run of 40 steps with known phases, and its report with six figures."""
    run = make_fake_run(tmp_path_factory.mktemp("phased") / "run", steps=40)
    with_phases(run, {"forward": 50, "communication": 60, "optimizer": 10})
    return run, page_of(render(run, figures=SHOWN))


def with_phases(run: Path, phases: dict[str, float]) -> Path:
    """Give every rank of a fake run phases of steps 6 to 14, in ms; step 12 takes ten times as long."""
    for rank in range(len(list(run.glob("rank-*")))):
        with RankLogWriter(run / "other", rank) as log:
            for step in range(6, 15):
                begin = 0.0
                for phase, ms in phases.items():
                    long = ms * (10 if step == 12 else 1)
                    log.append(
                        PhaseRecord(step=step, rank=rank, phase=phase, micro_batch=-1, start_ms=begin, duration_ms=long)
                    )
                    begin += long
        shutil.move(run / "other" / f"rank-{rank:05d}" / "phases.arrow", run / f"rank-{rank:05d}" / "phases.arrow")
    shutil.rmtree(run / "other")
    return run


def test_commands_are_matched_with_their_steps(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=20)
    for directory in run.glob("rank-*"):
        (directory / "events.arrow").unlink()  # the fake run has commands of its own
    asked = [
        Command(time=10.0, name="lr", value=0.1, who="ann", id=3),
        Command(time=11.0, name="stop", who="bob", id=9),
    ]
    asked.append(Command(time=12.0, name="lr", value=0.2, who=HOSTILE, id=4))
    asked.append(Command(time=13.0, name="lr", value=0.3, who="bob", id=5))
    lines = "".join(command.to_line() for command in asked)
    (run / "control.jsonl").write_text(lines + "not a command\n")
    with RankLogWriter(run, -1) as log:
        given = [("control", "lr", 0.1, 7, 3), ("refused", "lr", {"value": 0.3, "reason": "no"}, 8, 5)]
        given.append(("control", "stop", "step", 9, 9))
        for kind, name, value, step, command in given:
            event = Event(time=time.time(), step=step, rank=-1, kind=kind, name=name, value=json.dumps(value))
            log.append(replace(event, command=command, old_value="0.003" if step == 7 else "null"))
    found = run_data.read(run)
    table = read_control_history(found)
    assert [(c.name, c.who, c.value, c.old_value, c.step, c.refused) for c in table] == [
        ("lr", "ann", 0.1, 0.003, 7, ""),
        ("stop", "bob", "step", None, 9, ""),
        ("lr", HOSTILE, 0.2, None, None, ""),
        ("lr", "bob", 0.3, None, 8, "no"),
    ]
    assert "1 of 5 lines of control.jsonl could not be read." in found.notes
    text = text_page(run).find(id="controls").get_text()
    assert "not applied" in text and HOSTILE in text and "0.3 (refused: no)" in text


@pytest.mark.parametrize(("dp", "pp", "tp"), [(1, 1, 1), (4, 1, 1), (2, 2, 2), (16, 4, 4)])
def test_the_mesh_shows_every_rank_once(dp: int, pp: int, tp: int) -> None:
    mesh = Mesh(dp=dp, pp=pp, tp=tp)
    svg = BeautifulSoup(mesh_diagram.draw_mesh(mesh), "html.parser")
    assert sorted(int(text.text) for text in svg.find_all("text", class_="r")) == list(range(mesh.world_size))
    shared = mesh_diagram.draw_mesh(Mesh(dp=2, cp=2))
    assert shared.count(">cp 1<") == 2 and "each sequence shared by 2 context-parallel ranks" in shared
    assert mesh_diagram.draw_mesh(Mesh(dp=1000)) == "" and "1000 ranks" in mesh_diagram.describe_mesh(Mesh(dp=1000))


def test_layers_of_ranks(tmp_path: Path) -> None:
    names = [f"layer{number}" for number in range(6)]
    run = make_fake_run(tmp_path / "run", ranks=4, steps=40, plugin="hybrid", pp=2, names=names)
    held = mesh_diagram.find_layers_of_ranks(run_data.read(run))
    assert [(h.ranks, h.layers, h.first_layer, h.last_layer) for h in held] == [
        ("ranks 0, 2", 3, "layer0", "layer2"),
        ("ranks 1, 3", 3, "layer3", "layer5"),
    ]
    assert all(h.elements == 3 * 4096 and h.split_over == "not split" for h in held)


def test_layers_of_ranks_are_read_from_local_statistics(tmp_path: Path) -> None:
    """Replicas share the logging of reduced gradients, but each of them holds all layers."""
    run = make_fake_run(tmp_path / "run", steps=1, names=["a"])
    for rank in (0, 1):
        with RankLogWriter(tmp_path / "other", rank) as log:
            for layer in ("a", "b"):
                log.append(gradient(rank, layer, "local"))
            log.append(gradient(rank, "ab"[rank], "reduced"))
        log_of = tmp_path / "other" / f"rank-{rank:05d}" / "gradients.arrow"
        shutil.move(log_of, run / f"rank-{rank:05d}" / "gradients.arrow")
    assert [(h.ranks, h.layers, h.elements) for h in mesh_diagram.find_layers_of_ranks(run_data.read(run))] == [
        ("ranks 0-1", 2, 20)
    ]


def gradient(rank: int, layer: str, scope: str) -> GradientStats:
    rest = {"sum": 0.0, "sum_sq": 1.0, "max_abs": 1.0, "zero_count": 0, "nonfinite_count": 0, "underflow_count": 0}
    return GradientStats(
        step=1, rank=rank, layer=layer, scope=scope, sharded="", numel=10, dot=0.0, dot_kind="", **rest
    )


def test_the_report_contains_the_verdict(phased: tuple[Path, BeautifulSoup]) -> None:
    run, page = phased
    found = run_data.read(run)
    assert words.verdict_sentence(found) == Run(run).verdict().sentence and "50%" in words.verdict_sentence(found)
    assert words.verdict_sentence(found) in page.find(id="summary").get_text()


def test_timelines_show_a_typical_step_and_the_slowest(phased: tuple[Path, BeautifulSoup]) -> None:
    run, page = phased
    found = run_data.read(run)
    chosen = timeline.choose_steps(found)
    steps, times = found.metrics["step"], found.metrics["step_time_ms"]
    later = (steps >= 7) & (steps <= 14)  # the first step with phases is not considered
    assert chosen[-1].step == steps[later][np.argmax(times[later])] and 1 <= len(chosen) <= 2
    keys = [key.get_text(" ") for key in page.find(id="timeline").find_all("ul", class_="key")]
    assert page.find(id=f"timeline-{chosen[0].step}") and keys == ["forward optimizer communication"] * (
        1 + len(chosen)
    )
    bars = timeline.bar_columns(found, 12)
    assert (bars["end"] - bars["start"]).tolist() == [500.0, 600.0, 100.0] * 2 and set(bars["row"]) == {0.0, 1.0}


def test_logs_with_a_newer_schema_are_noted(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=20)
    schema = pa.schema([pa.field("step", pa.int64())], metadata={"schema_version": "99"})
    with pa.OSFile(str(run / "rank-00000" / "devices.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write_batch(pa.record_batch([pa.array([1])], schema=schema))
    page = text_page(run)
    assert "has schema version 99" in page.get_text() and page.find("h1")


def test_several_runs_are_compared(tmp_path: Path, two_figures: None) -> None:
    first = make_fake_run(tmp_path / "a", steps=40)
    second = make_fake_run(tmp_path / "b", ranks=4, steps=60, plugin="hybrid", tp=2)
    found = compare_runs([run_data.read(first), run_data.read(second)], FigureBundle(light=True))
    tables = {title: rows for title, _, rows in found.tables}
    assert found.labels == [row[0] for row in tables["Runs"]] == ["a", "b"]
    assert {name: values for section, name, *values in tables["What differs"] if section == "spec"} == {
        "ranks": ["2", "4"], "plugin": ["ddp", "hybrid"], "tp": ["1", "2"], "steps": ["40", "60"],
        "batch_size": ["16", "32"], "eval_every": ["20", "30"],
    }  # fmt: skip
    other = workbench.compare([first, second])
    assert found.tables == tables_of(other)
    page = page_of(render([first, second], tmp_path / "both.html", labels=["left", HOSTILE]))
    ids = [e["id"] for e in page.find_all(id=True)]
    assert len(ids) == len(set(ids)) and {"run1-figure-loss", "run2-figure-loss", "compared-loss"} <= set(ids)
    levels = [int(h.name[1]) for h in page.find_all(["h1", "h2", "h3", "h4", "h5"])]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert HOSTILE in page.find(id="comparison").get_text() and len(page.find_all("h2")) == 3


def test_a_light_report_is_small_and_has_no_script(phased: tuple[Path, BeautifulSoup], tmp_path: Path) -> None:
    run, _ = phased
    light = render(run, tmp_path / "light.html", figures=SHOWN, light=True)
    page = page_of(light)
    assert not page.find("script") and len(page.find_all("svg", class_="still")) >= 5
    assert light.stat().st_size < 200_000 < (run / "report.html").stat().st_size


def test_figures_over_the_same_axis_are_linked(phased: tuple[Path, BeautifulSoup]) -> None:
    import gzip
    from base64 import b64decode

    _, page = phased
    sheets = json.loads(gzip.decompress(b64decode(page.find("script", id="packed-figures").text)))
    of_figures = [root["attributes"]["x_range"]["id"] for root in sheets[0]["document"]["roots"]]
    places = list(sheets[0]["roots"].values())
    shared = dict(zip(places, of_figures, strict=True))
    assert shared["figure-loss"] == shared["figure-throughput"] == shared["figure-gradients"]
    assert shared["figure-memory"] == shared["figure-utilisation"] != shared["figure-loss"]
    assert gzip.decompress(b64decode(compress_text("é"))).decode() == "é"


def test_a_figure_of_one_layer_names_it(phased: tuple[Path, BeautifulSoup]) -> None:
    store = Store(phased[0])
    store.refresh()
    first = str(store.table("histograms")["layer"][0])
    (drawn,) = FigureBundle(light=True).draw_plots(store, [histogram])
    assert drawn.title == f"Gradient magnitudes of layer {first}"


def test_printing_without_a_browser_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.errors import ReportError

    run = make_fake_run(tmp_path / "run", steps=5)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ReportError, match="install one"):
        render(run, tmp_path / "out.html", pdf=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_dropped_records_are_counted_once_per_rank_also_of_a_paused_run(tmp_path: Path) -> None:
    """Each event holds the total of its rank so far: 5 of rank 0 and 5 of rank 1 are 10."""
    run = make_fake_run(tmp_path / "run", ranks=2, steps=10, state="running")
    for rank, totals in enumerate([(3, 5), (5,)]):
        with RankLogWriter(run, rank) as log:
            for total in totals:
                log.event(EventKind.LOG, "dropped", total)
            log.event(EventKind.STATE, "paused")
    (run / OWNER_FILE).write_text("{}")  # an owner that cannot be looked for is alive while its lease holds
    text = text_page(run).get_text()
    assert "10 records were dropped" in text
    assert "It was paused when this report was written." in text
    assert "The run had not ended when this report was written." in text


def test_an_interval_that_changes_often_is_one_row_of_the_events(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=4)
    with RankLogWriter(run, -1) as log:
        for number in range(30):
            log.event("monitor", "phases", 2 ** (number % 3), step=number)
    rows = [row.get_text(" ", strip=True) for row in text_page(run).select("section tr")]
    assert [row for row in rows if "every 4th step (last of 30)" in row] and sum(
        "phase timing" in row for row in rows
    ) == 1


def section_ids(page: BeautifulSoup) -> list[str]:
    return [section["id"] for section in page.select("main section[id]")]


def test_every_section_is_in_the_contents_and_long_ones_are_folded(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=20)
    page = text_page(run)
    links = [link["href"][1:] for link in page.select("nav.contents a")]
    assert links == section_ids(page) and {"summary", "ranks", "events", "environment", "rerun"} <= set(links)
    folds = {fold.section["id"]: fold.has_attr("open") for fold in page.select("details.card")}
    assert set(folds) == set(links) - {"summary"} and folds["controls"] and not folds["environment"]
    both = page_of(render([run, run], tmp_path / "both.html", figures=[], light=True))
    links = [link["href"][1:] for link in both.select("nav.contents a")]
    assert links[:3] == ["comparison", "run1-run", "run1-summary"]
    assert set(section_ids(both)) == set(links) - {"run1-run", "run2-run"}
    assert not both.select("details.card[open]"), "what is compared is read first"


def test_nothing_is_folded_in_print(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=20)
    (run / "cell.py").write_text("model = 1")
    data = [run_data.read(run)]
    for unfolded in (True, False):
        page = BeautifulSoup(document.render_html(data, [], light=True, unfolded=unfolded), "html.parser")
        assert bool(page.select("details:not([open])")) != unfolded and page.select("details[open]")


def test_a_failed_run_shows_its_traceback_first(tmp_path: Path) -> None:
    page = text_page(make_fake_run(tmp_path / "run", steps=20, state="failed"))
    first = page.find(id="summary").find("pre")
    assert "failure" in first["class"] and first.find_parent("details") is None
    assert not [tag for tag in first.find_all_previous() if tag.name in ("p", "dl") and tag.find_parent("section")]


def test_refused_commands_are_shown_once(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=20)
    with RankLogWriter(run, -1) as log:
        log.event("refused", "lr", {"value": 0.3, "reason": "no such rate"}, step=8)
    page = text_page(run)
    assert "no such rate" in page.find(id="controls").get_text() and page.get_text().count("no such rate") == 1


MONITORED = dict.fromkeys(("gradients", "histogram", "cosine", "noise"), "gradients") | {
    "traffic": "communication", "lag": "ranks", "memory": "ranks", "phase_bars": "ranks", "timeline": "timeline",
}  # fmt: skip
FIGURES = MONITORED | {"validation": "samples", "confusion": "samples", "own": "own"}


@pytest.mark.parametrize(
    ("ranks", "options", "said"),
    [
        (2, {}, dict.fromkeys(MONITORED, "The run logged no data.")),
        (1, {}, dict.fromkeys(MONITORED.keys() - {"traffic", "lag", "cosine", "noise"}, "The run logged no data.")),
        (2, {"monitor": MonitorSpec(level="off")}, dict.fromkeys(MONITORED, "without --monitor off")),
        (
            2,
            {"monitor": MonitorSpec(level="light")},
            dict.fromkeys(MONITORED, "The run logged no data.")
            | dict.fromkeys(("histogram", "cosine", "noise"), "with --monitor full"),
        ),
        (
            2,
            {"monitor": MonitorSpec(grad_every=0), "eval_every": 0},
            dict.fromkeys(MONITORED, "The run logged no data.")
            | dict.fromkeys(("gradients", "histogram", "cosine", "noise"), "without --grad-every 0")
            | dict.fromkeys(("validation", "confusion"), "with --eval-every N"),
        ),
    ],
)
def test_only_what_a_fault_or_an_option_leaves_out_is_said(
    tmp_path: Path, ranks: int, options: dict[str, Any], said: dict[str, str]
) -> None:
    run = make_fake_run(tmp_path / "run", ranks=ranks, steps=4)
    for log in [path for path in run.glob("rank-*/*") if path.stem not in ("steps", "events")]:
        log.unlink()
    write_spec(run, replace(fake_spec(ranks=ranks, steps=4), **options))
    data = run_data.read(run)
    told = {
        name: why_missing(data, ReportFigure(name=name, title=name, element_id=name, tab=tab, empty_text="own words"))
        for name, tab in FIGURES.items()
    }
    said = dict.fromkeys(FIGURES, "") | {"own": "own words"} | said
    assert {
        name: said[name] in text and bool(said[name]) == bool(text) for name, text in told.items()
    } == dict.fromkeys(FIGURES, True), told


def test_what_is_missing_is_named_once_for_each_reason(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=4)
    for log in run.glob("rank-*/devices.arrow"):
        log.unlink()
    page = page_of(render(run, figures=[utilisation, memory], light=True))
    assert [" ".join(each.get_text().split()) for each in page.select("p.empty")] == [
        "Not shown: Utilisation per rank; Memory per rank. The run logged no data."
    ]


def test_a_plan_that_hides_the_gradients_of_ranks_has_no_cosines(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=4, grad_every=2)
    for directory in run.glob("rank-*"):
        (directory / "gradients.arrow").unlink()
    with RankLogWriter(tmp_path / "other", 0) as log:
        log.append(gradient(0, "a", "reduced"))
    shutil.move(tmp_path / "other" / "rank-00000" / "gradients.arrow", run / "rank-00000" / "gradients.arrow")
    figure = ReportFigure(name="cosine", title="Cosine", element_id="c", tab="gradients")
    assert why_missing(run_data.read(run), figure) == ""
