"""Each tab of the panel in chromium, in a bare page on runs that only pretend to train: fast, and at any size."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.static_page import StaticPanel
from tests.fake_records import straggler
from tests.fake_run import LiveFakeRun, make_fake_run
from widgets.page import wire
from workbench.core.records import SESSION_RANK, Event
from workbench.events.outcome import failure
from workbench.plots import throughput
from workbench.rundir.log import RankLogWriter

pytestmark = pytest.mark.browser

LOGGED = ["logged", "logged_second", "logged_third"]
FIGURES = {
    "overview": {"loss", "throughput", "learning_rate", "grad_norm", *LOGGED},
    "ranks": {"utilisation", "memory", "busy", "phase_bars", "lag"},
    "gradients": {"gradients", "cosine", "noise", "histogram", "update_ratio"},
    "inside": {"activations", "activation_gradients", "attention", "routers", "stable_rank"},
    "communication": {"traffic", "exposed", "bandwidth"},
    "timeline": {"timeline"},
    "samples": {"validation", "metrics", "confusion"},
}
#: tabs and titles of figures that do not fit: the tab list scrolls, a title is wider than its place
CUT = """(tab) => [...document.querySelectorAll(".dw-tabs")].filter((n) => n.scrollWidth > n.clientWidth)
  .map(() => "tabs").concat([...document.querySelectorAll(`.dw-tabpage[id$='-${tab}-page'] .dw-figure`)].map((box) => {
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = "bold 13px 'Liberation Sans', sans-serif";
    const room = box.clientWidth - (box.dwPlot.min_border_left ?? 0) - 12;
    return pen.measureText(box.dwPlot.title.text).width > room ? box.dwPlot.title.text : null;
  }).filter(Boolean))"""
DRAWN = (
    "(tab) => [...document.querySelectorAll(`.dw-tabpage[id$='-${tab}-page'] .dw-figure`)].map((f) => f.dataset.figure)"
)

#: of each figure, its range of x; figures keep their plot on their element
RANGES = """() => Object.fromEntries([...document.querySelectorAll(".dw-figure")].map((box) =>
  [box.dataset.figure, box.dwPlot]).filter(([, plot]) => plot).map(([name, plot]) =>
  [name, [plot.x_range.start, plot.x_range.end]]))"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {
        "two": make_fake_run(root / "two", steps=80, state="running"),
        "many": make_fake_run(root / "many", ranks=64, plugin="hybrid", pp=4, micro_batches=4, steps=30, layers=3),
        "failed": make_fake_run(root / "failed", ranks=3, steps=40, state="failed"),
        "old": make_fake_run(root / "old", steps=40),
    }


def ready(panel: StaticPanel) -> None:
    panel.pump("() => Number(document.querySelector('.dw')?.dataset.points) > 0")


def all_drawn(bare: Any, tab: str, figures: set[str]) -> Callable[[], bool]:
    """Whether a tab has just these figures: they are drawn one after the other, and only with rows."""
    return lambda: set(bare.evaluate(DRAWN, tab)) == figures


@pytest.mark.parametrize("name", ["two", "many"])
def test_every_tab_draws_its_figures_and_asks_for_nothing(bare: Any, runs: dict[str, Path], name: str) -> None:
    panel = StaticPanel(bare, runs[name], dark=name == "many")
    ready(panel)
    for tab, figures in FIGURES.items():
        panel.open(tab)
        shown = figures - {"busy"} if name == "two" else figures  # a heat map of many ranks
        panel.pump(all_drawn(bare, tab, shown))
        assert bare.evaluate("document.documentElement.scrollWidth") <= 900
        cut = bare.evaluate(CUT, tab)
        assert not cut, cut
    assert bare.locator(".dw").get_attribute("data-mode") == ("dark" if name == "many" else "light")
    bare.evaluate("() => document.body.classList.add('vscode-dark')")  # the front end changes its theme
    panel.pump("() => document.querySelector('.dw').dataset.mode === 'dark'")
    assert panel.errors == []
    assert [url for url in panel.requests if not url.startswith(("about:", "blob:", "data:"))] == []
    panel.close()


def test_a_run_without_the_newer_tables_says_so(bare: Any, runs: dict[str, Path]) -> None:
    for table in ("phases", "collectives", "histograms", "weights", "gradients"):
        for file in runs["old"].glob(f"rank-*/{table}.arrow"):
            file.unlink()
    panel = StaticPanel(bare, runs["old"])
    ready(panel)
    for tab, text in (("timeline", "No phases were recorded"), ("gradients", "No reduced gradients yet")):
        panel.open(tab)
        assert text in bare.locator(f".dw-tabpage[id$='-{tab}-page'] .dw-nothing").inner_text()
        assert bare.evaluate(DRAWN, tab) == []
    assert panel.errors == []
    panel.close()


def test_a_tab_shows_only_what_the_run_has(bare: Any, tmp_path: Path) -> None:
    """A language model has no accuracy, a classifier no text, one replica no cosine; no box stands in their place."""
    text = make_fake_run(tmp_path / "text", steps=40, plugin="hybrid", tp=2, measures=("text",))
    panel = StaticPanel(bare, text)
    ready(panel)
    panel.open("samples")
    panel.pump("() => document.querySelector('.dw-said').innerText.includes('self')")
    assert bare.evaluate(DRAWN, "samples") == [] and not bare.locator(".dw-nothing").is_visible()
    assert bare.locator(".dw").bounding_box()["height"] < 450, "no empty space below a short tab"
    panel.open("gradients")
    panel.pump(all_drawn(bare, "gradients", {"gradients", "histogram", "update_ratio"}))
    panel.close()
    classes = make_fake_run(tmp_path / "classes", steps=40, measures=("accuracy", "confusion_matrix"))
    panel = StaticPanel(bare.context.new_page(), classes)
    ready(panel)
    panel.open("samples")
    panel.pump(all_drawn(panel.page, "samples", {"validation", "confusion"}))
    assert not panel.page.locator(".dw-said").is_visible()
    panel.close()
    panel.page.close()


def test_a_figure_comes_in_its_place_with_its_first_rows(
    bare: Any, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = throughput.columns
    has_rows = threading.Event()

    def later(store: Any, cursor: Any) -> Any:
        rows, after = columns(store, cursor)
        return (rows, after) if has_rows.is_set() else ({name: values[:0] for name, values in rows.items()}, None)

    monkeypatch.setattr(throughput, "columns", later)
    panel = StaticPanel(bare, runs["two"])
    ready(panel)
    panel.pump(lambda: bare.evaluate(DRAWN, "overview") == ["loss", "learning_rate", "grad_norm", *LOGGED])
    has_rows.set()
    panel.pump(
        lambda: bare.evaluate(DRAWN, "overview") == ["loss", "throughput", "learning_rate", "grad_norm", *LOGGED], 60
    )
    alone = "[...document.querySelectorAll('.dw-alone')].map((box) => box.dataset.figure)"
    panel.pump(lambda: bare.evaluate(alone) == [LOGGED[-1]], 60)  # of seven: the last has the row for itself
    last, first = (bare.locator(f".dw-figure[data-figure={name}]") for name in (LOGGED[-1], "loss"))
    assert last.bounding_box()["width"] > 1.9 * first.bounding_box()["width"]
    panel.close()


def test_a_brush_in_one_figure_is_the_range_of_all(bare: Any, runs: dict[str, Path]) -> None:
    panel = StaticPanel(bare, runs["two"])
    ready(panel)
    panel.open("ranks")  # figures over time
    panel.open("overview")
    box = bare.locator(".dw-figure[data-figure=loss] canvas").first.bounding_box()
    y = box["y"] + box["height"] * 0.6
    bare.mouse.move(box["x"] + box["width"] * 0.4, y)
    bare.mouse.down()
    bare.mouse.move(box["x"] + box["width"] * 0.6, y, steps=4)
    bare.mouse.up()
    chip = bare.locator(".dw-chip")
    panel.pump("() => !document.querySelector('.dw-chip').hidden")
    first, last = (float(word) for word in chip.inner_text().replace("steps", "").replace("✕", "").split("to"))
    assert 1 < first < last < 48
    ranges = bare.evaluate(RANGES)
    for figure in ("throughput", "learning_rate", "grad_norm", "lag"):
        assert ranges[figure] == pytest.approx(ranges["loss"], rel=1e-3), figure
    low, high = ranges["utilisation"]
    assert 0 < low < high < 4.5  # the same steps, in seconds
    chip.click()
    panel.pump(f"() => ({RANGES})().throughput[1] > 45")
    assert chip.is_hidden()
    panel.open("ranks")
    panel.pump(f"() => ({RANGES})().utilisation[1] > 4.5")
    panel.close()


def test_tabs_are_reached_by_keyboard(bare: Any, runs: dict[str, Path]) -> None:
    panel = StaticPanel(bare, runs["two"])
    ready(panel)
    bare.get_by_role("tab", name="Overview").focus()
    bare.keyboard.press("ArrowRight")
    panel.pump("() => document.querySelector('.dw').dataset.tab === 'ranks'")
    assert bare.get_by_role("tab", name="Ranks").get_attribute("aria-selected") == "true"
    panel.pump("() => document.querySelectorAll('.dw-rank').length === 2")
    listbox = bare.get_by_role("listbox", name="Ranks")
    listbox.focus()
    bare.keyboard.press("ArrowRight")
    assert bare.locator(".dw-rank[aria-selected=true]").get_attribute("aria-label").startswith("rank 0 on cpu")
    panel.close()


def test_the_straggler_is_marked(bare: Any, runs: dict[str, Path]) -> None:
    panel = StaticPanel(bare, runs["two"])
    ready(panel)
    panel.pump("() => document.querySelector('.dw-verdict').innerText.includes('is lost to it')")
    height, room = bare.evaluate(
        "(({ scrollHeight: a, clientHeight: b }) => [a, b])(document.querySelector('.dw-verdict'))"
    )
    assert height <= room, "the sentence is not cut off"
    panel.open("ranks")
    panel.pump("() => document.querySelector('.dw-rank[data-slow=true]')")
    assert bare.locator(".dw-rank[data-slow=true] .dw-rank-name").inner_text() == f"rank {straggler(2)}"
    panel.close()


def test_a_straggler_that_is_paused_says_so(bare: Any, tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=80, state="running")
    with RankLogWriter(run, SESSION_RANK) as log:  # in another file than the rank's own events
        log.append(Event(time=time.time(), step=48, rank=straggler(2), kind="state", name="paused"))
    panel = StaticPanel(bare, run)
    ready(panel)
    panel.open("ranks")
    panel.pump("() => document.querySelector('.dw-rank[data-slow=true]')")
    panel.pump("() => document.querySelector('.dw-rank[data-slow=true] .dw-rank-state').innerText === 'paused'")
    panel.close()


def test_events_stand_in_order_of_time_and_intervals_are_one_entry(bare: Any, tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=40, grad_every=0)
    with RankLogWriter(run, SESSION_RANK) as log:  # is read after the ranks' logs, and tells of the time before
        for number in range(40):
            about = {"kind": "monitor", "name": "phases", "value": str(1 + number % 2), "step": number}
            log.append(Event(time=time.time() - 2 + number / 100, rank=0, **about))
        death = {"kind": "rank", "name": "died", "value": json.dumps({"rank": 1, "reason": "killed"}), "step": 33}
        log.append(Event(time=time.time() + 60, rank=SESSION_RANK, **death))
    panel = StaticPanel(bare, run)
    ready(panel)
    panel.pump("() => document.querySelectorAll('.dw-events li').length > 3")
    times = bare.evaluate("[...document.querySelectorAll('.dw-events li')].map((line) => Number(line.dataset.time))")
    assert times == sorted(times, reverse=True)
    lines = bare.locator(".dw-events li").all_inner_texts()
    assert "died: killed" in lines[0] and "step 33" in lines[0]
    assert sum("phase" in line and "40 times" in line for line in lines) == 1
    panel.close()


def test_one_of_many_ranks_is_chosen_by_a_click(bare: Any, runs: dict[str, Path]) -> None:
    panel = StaticPanel(bare, runs["many"])
    ready(panel)
    panel.open("ranks")
    bare.locator(".dw-square").nth(17).click()
    chosen = "() => document.querySelector('.dw-figure[data-figure=utilisation]').dwPlot.document"
    chosen += ".get_model_by_name('rows').data.cpu_chosen.some((value) => value > 0)"
    panel.pump(chosen)
    panel.pump("() => document.querySelector('.dw-chosen').innerText.startsWith('rank 17 on cpu')")
    panel.close()


def test_another_layer_has_another_histogram(bare: Any, runs: dict[str, Path]) -> None:
    panel = StaticPanel(bare, runs["two"])
    ready(panel)
    panel.open("gradients")
    layer = "() => document.querySelector('.dw-figure[data-figure=histogram]').dwPlot.document"
    layer += ".get_model_by_name('rows').data.layer[0]"
    assert bare.evaluate(layer) == "model.embed_tokens"
    bare.get_by_label("Layer of the histogram").select_option("lm_head")
    panel.pump(f"() => ({layer})() === 'lm_head'")
    panel.close()


def test_what_failed_is_said_once_with_its_traceback(bare: Any, tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "broken", ranks=2, steps=20, state="starting")
    value = failure("ValueError", "bad", "Traceback (most recent call last):\n  line 3\nValueError: bad\n")
    with RankLogWriter(run, SESSION_RANK) as log:
        for rank in (0, 1):
            log.append(Event(time=9e9, step=0, rank=rank, kind="state", name="failed", value=json.dumps(value)))
    panel = StaticPanel(bare, run)
    panel.open("overview")
    summary = bare.locator(".dw-failure summary")
    assert summary.inner_text() == "ranks 0-1: ValueError: bad"
    assert bare.locator(".dw-tile:visible .dw-label").all_inner_texts() == ["Ranks"], "it has no other value"
    assert bare.evaluate(DRAWN, "overview") == []
    trace = bare.locator(".dw-failure pre")
    assert trace.is_visible() and trace.inner_text().count("Traceback") == 1
    summary.click()
    assert not trace.is_visible(), "it can be folded"
    panel.close()


def test_a_dead_rank_is_told(bare: Any, runs: dict[str, Path]) -> None:
    panel = StaticPanel(bare, runs["failed"])
    ready(panel)
    assert bare.locator(".dw-failure summary").inner_text() == "rank 2: ended by signal 9 (killed)"
    assert bare.locator(".dw-events li", has_text="rank 2 died: ended by signal 9").count() == 1
    panel.close()


def test_console_folds_filters_and_searches(bare: Any, runs: dict[str, Path]) -> None:
    panel = StaticPanel(bare, runs["many"])
    ready(panel)
    panel.open("console")
    panel.pump("() => document.querySelectorAll('.dw-line').length > 3")
    first = bare.locator(".dw-line").first
    assert first.inner_text().split("\n")[0] == "0-63"
    visible = "() => [...document.querySelectorAll('.dw-line:not([hidden])')].map((line) => line.innerText)"
    bare.get_by_label("Search").fill("MY LOSS")
    assert all("my loss" in text for text in bare.evaluate(visible))
    bare.get_by_placeholder("all, or 0-3,7").fill("4")
    lines = bare.evaluate(visible)
    assert lines and all(text.split("\n")[0] == "4" for text in lines)
    panel.close()


def test_controls_are_sent_checked_and_answered(bare: Any, runs: dict[str, Path]) -> None:
    asked: list[tuple[str, Any]] = []

    def control(name: str, value: Any) -> str | None:
        asked.append((name, value))
        return "clip is refused" if name == "clip" else None

    panel = StaticPanel(bare, runs["two"], on_control=control, status=lambda: "running")
    ready(panel)
    bare.get_by_role("button", name="Pause training").click()
    panel.open("controls")
    field = bare.get_by_role("textbox", name="Gradient clipping")
    field.fill("eleven")
    bare.get_by_role("button", name="Set clip").click()
    assert "eleven is not a number of at least 0" in bare.locator(".dw-control", has=field).inner_text()
    field = bare.get_by_role("textbox", name="Learning rate")
    field.fill("x0.5")
    field.press("Enter")
    bare.get_by_role("textbox", name="Gradient clipping").fill("2")
    bare.get_by_role("button", name="Set clip").click()
    bare.get_by_role("button", name="Evaluate").click()
    panel.pump(lambda: len(asked) == 4)
    assert asked == [("pause", None), ("lr", "x0.5"), ("clip", 2), ("evaluate", None)]
    panel.pump("() => document.querySelector('.dw').innerText.includes('clip is refused')")
    unnamed = "() => [...document.querySelectorAll('.dw button, .dw input, .dw select')].filter((node) =>"
    unnamed += " node.offsetParent && !(node.getAttribute('aria-label') || node.innerText.trim()"
    unnamed += " || node.labels?.length)).length"
    assert bare.evaluate(unnamed) == 0
    bare.set_viewport_size({"width": 640, "height": 1000})  # what JupyterLab leaves of a window of 900 px
    help_text = bare.locator(".dw-control", has=field).locator(".dw-said-here")
    assert help_text.bounding_box()["width"] > 500
    assert bare.locator(".dw-names").bounding_box()["width"] > 500
    panel.close()


def test_a_control_is_in_one_place_and_says_when_the_ranks_have_done_it(bare: Any, tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=4000, step_s=0.1)
    panel = StaticPanel(bare, run.path, on_control=run.control, status=lambda: run.status)
    ready(panel)
    panel.open("controls")
    names = [
        text
        for text in bare.locator(".dw button:not([role=tab]):visible").all_inner_texts()
        if text not in ("Set", "Go", "")
    ]
    assert names == ["Pause", "Checkpoint", "Stop", "Evaluate", "Sample"]
    save = bare.get_by_role("button", name="Write a checkpoint now")
    save.click()
    assert save.inner_text() == "Saving…" and save.is_disabled()
    panel.pump(lambda: save.inner_text() == "Checkpoint" and save.is_enabled())
    bare.get_by_role("button", name="Evaluate").click()
    answer = bare.locator(".dw-acts .dw-answer")
    panel.pump(lambda: answer.inner_text().startswith("Evaluate: done after step"))
    panel.pump(lambda: answer.inner_text() == "")
    bare.get_by_role("button", name="Pause training").click()
    panel.pump(lambda: bare.get_by_role("button", name="Resume training").is_visible())
    assert not bare.get_by_role("button", name="Pause training").is_visible()
    run.control("stop")
    panel.pump("() => document.querySelector('.dw-pill').innerText === 'stopped'")
    assert bare.locator(".dw button:not([role=tab]):visible").all_inner_texts() == []
    assert "The run has ended" in bare.locator(".dw-controls").inner_text()
    panel.close()


def test_two_runs_side_by_side(bare: Any, runs: dict[str, Path]) -> None:
    panel = StaticPanel(bare, runs["two"], runs["failed"])
    ready(panel)
    panel.pump("() => !document.querySelector(\".dw-tab[id$='-compare']\").hidden")
    panel.open("compare")
    length = "(run) => document.querySelector('.dw-figure[data-figure=compare_loss]').dwPlot.document"
    length += ".get_model_by_name(run).get_length()"
    panel.pump(f"() => ({length})('run0') === 48 && ({length})('run1') === 24")
    bare.get_by_label("Align runs by").select_option("tokens")
    axis = "() => document.querySelector('.dw-figure[data-figure=compare_loss]').dwPlot.below[0].axis_label"
    assert bare.evaluate(axis) == "tokens (all ranks)"
    bare.get_by_label("Align runs by").select_option("time")
    assert bare.evaluate(axis) == "seconds since the first sample"
    units = axis.replace("compare_loss", "compare_tps").replace("below", "left")
    assert bare.evaluate(units) == "tokens / s / device"
    bare.get_by_label("Run that is shown").select_option("failed")
    panel.pump("() => document.querySelector('.dw-name').innerText === 'failed'")
    panel.open("overview")
    panel.pump("() => Number(document.querySelector('.dw').dataset.points) === 24")
    assert panel.errors == []
    panel.close()


def test_after_a_lost_message_everything_comes_anew(bare: Any, tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=100_000, step_s=0.03)
    panel = StaticPanel(bare, run.path)
    ready(panel)
    panel.lose(1)
    steps = "() => document.querySelector('.dw-figure[data-figure=loss]')?.dwPlot?.document"
    steps += "?.get_model_by_name('rows').data.step"
    panel.pump(lambda: [content["kind"] for content, _ in panel.messages].count("full") == 2)
    panel.pump(f"() => ({steps})()?.length > 60")
    shown = bare.evaluate(steps)
    assert shown == list(range(1, len(shown) + 1))
    run.stop()
    run.wait(300)
    panel.close()


#: ``dwPass(seconds)``: they pass at once, with what is to happen in each. (Playwright has one clock for all pages.)
PASSING = """
(() => {
  const [now, repeat, acts] = [Date.now.bind(Date), globalThis.setInterval.bind(globalThis), []];
  let ahead = 0;
  Date.now = () => now() + ahead;
  globalThis.setInterval = (act, ms) => { acts.push(act); return repeat(act, ms); };
  globalThis.dwPass = (seconds) => {
    for (let second = 0; second < seconds; second++) { ahead += 1000; for (const act of acts) act(); }
  };
})()
"""


def test_a_kernel_that_says_nothing_any_more_is_noticed_and_so_is_its_return(bare: Any, tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=100_000, step_s=0.03)
    bare.evaluate(PASSING)
    panel = StaticPanel(bare, run.path, on_control=lambda name, value: None, status=lambda: run.status)
    ready(panel)
    buttons = bare.locator(".dw-quick button")
    assert [button.is_enabled() for button in buttons.all()] == [True] * 3
    bare.evaluate("dwPass(30)")  # nothing is delivered meanwhile
    assert bare.locator(".dw-pill").inner_text() == "no kernel"
    assert "The kernel does not respond" in bare.locator(".dw-notice").inner_text()
    assert [button.is_enabled() for button in buttons.all()] == [False] * 3
    panel.pump("() => document.querySelector('.dw-pill').innerText === 'running'")
    assert [button.is_enabled() for button in buttons.all()] == [True] * 3
    assert panel.errors == []
    run.stop()
    run.wait(300)
    panel.close()


def test_an_output_that_is_attached_late_is_drawn(bare: Any, runs: dict[str, Path]) -> None:
    """As after a page was loaded again: the content is there before the front end puts the output into the page."""
    panel = StaticPanel(bare, runs["two"])
    ready(panel)
    bare.evaluate("() => { window.late = document.createElement('div'); window.render(window.late); }")
    panel.pump("() => late.querySelector('.dw-count').textContent")  # filled in, as far as it can be
    panel.pump(timeout_s=0.4, fails=False)
    bare.evaluate("() => document.body.prepend(late)")
    panel.pump("() => Number(late.querySelector('.dw').dataset.points) > 0")
    assert not panel.errors
    panel.close()


def test_only_the_tab_that_is_looked_at_is_fed(bare: Any, runs: dict[str, Path]) -> None:
    panel = StaticPanel(bare, runs["two"])
    ready(panel)
    panel.pump(timeout_s=1.5, fails=False)
    sent = {name for content, _ in panel.messages for name in content.get("columns", {})}
    assert sent == FIGURES["overview"] | {"spine"}
    panel.close()


def test_a_figure_that_fails_says_so_in_its_place(
    bare: Any, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose module raises in the kernel, and one that Bokeh cannot draw in the page."""

    def fails(*_: Any) -> Any:
        raise KeyError("tokens of tomorrow")

    def without_item(plot: Any, columns: Any) -> dict[str, Any]:
        made = figure_item(plot, columns)
        return {**made, "item": {}} if plot.NAME == "learning_rate" else made

    figure_item = wire.figure_item
    monkeypatch.setattr(throughput, "columns", fails)
    monkeypatch.setattr(wire, "figure_item", without_item)
    panel = StaticPanel(bare, runs["two"])
    ready(panel)
    drawn = "() => [...document.querySelectorAll('.dw-figure')].filter((n) => n.dwPlot).map((n) => n.dataset.figure)"
    panel.pump(lambda: set(bare.evaluate(drawn)) == {"loss", "grad_norm", *LOGGED})
    panel.pump("() => document.querySelectorAll('.dw-figure[data-failed=true]').length === 2")
    texts = {
        name: bare.locator(f".dw-figure[data-figure={name}]").inner_text() for name in ("throughput", "learning_rate")
    }
    assert texts["throughput"].split("\n") == [
        throughput.TITLE,
        "This figure cannot be drawn: KeyError: 'tokens of tomorrow'",
    ]
    assert "This figure cannot be drawn: " in texts["learning_rate"]
    panel.close()
