"""Parts of the panel in the kernel, each on its own: pace, events, history, verdict, bundle."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake_records import straggler
from tests.fake_run import fake_spec, make_fake_run, write_spec
from widgets.page import bundle
from widgets.page.pace import ACK_TIMEOUT_S, GONE_S, HIDDEN_PERIOD_S, PERIOD_S, SHARE, Pace
from widgets.panel import compare, control_set
from widgets.panel.control_set import History
from widgets.panel.event_list import EventList
from widgets.panel.rank_table import RankTable
from widgets.panel.summary import Facts
from widgets.panel.verdict import VerdictTracker
from workbench.core import controls
from workbench.core.columns import Columns
from workbench.core.records import CollectiveRecord, Command, Event, PhaseRecord, StepRecord, columns_of
from workbench.plots import phase_bars
from workbench.report.run_data import read
from workbench.report.words import verdict_sentence
from workbench.run.api import Run
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.progress import snapshot
from workbench.telemetry.store import Store
from workbench.telemetry.verdict import WINDOW


def opened(path: Path) -> Store:
    store = Store(path)
    store.refresh()
    return store


def test_a_message_waits_until_the_last_one_is_drawn() -> None:
    pace = Pace()
    assert pace.ready(0.0)
    first = pace.sending(0.0)
    assert not pace.ready(0.5)
    pace.heard(0.6, first)
    assert pace.ready(0.6)
    pace.sending(1.0)
    assert not pace.ready(1.0 + ACK_TIMEOUT_S / 2)
    assert pace.ready(1.0 + ACK_TIMEOUT_S)  # it may be a kernel that cannot hear


def test_the_rate_falls_where_nobody_looks_or_nobody_can_be_heard() -> None:
    pace = Pace()
    assert pace.period_s(0.0, False) == PERIOD_S
    pace.heard(0.0, visible=False)
    assert (pace.state(0.0, False), pace.period_s(0.0, False)) == ("hidden", HIDDEN_PERIOD_S)
    pace.heard(0.0, visible=True)
    pace.sending(0.0)
    assert pace.state(ACK_TIMEOUT_S / 2, True) == "open"
    assert pace.state(2 * ACK_TIMEOUT_S, True) == "blind"
    assert PERIOD_S < pace.period_s(2 * ACK_TIMEOUT_S, True) <= 2.0  # figures still move
    assert pace.state(GONE_S + 1, False) == "gone"


def test_the_feed_spends_no_more_than_its_share_of_a_core() -> None:
    pace = Pace()
    for cost in (0.03, 0.04, 0.03):
        pace.spent(cost)
    assert 0.03 / pace.period_s(0.0, False) <= SHARE * 1.02


def events(*given: Event) -> Columns:
    return {
        name: np.array([getattr(event, name) for event in given], dtype=object if kind == "U" else kind)
        for name, kind in columns_of("events").items()
    }


def event(
    kind: str, name: str, value: Any = None, old: Any = None, *, rank: int = 0, step: int = 5, command: int = 0
) -> Event:
    return Event(
        command=command,
        time=100.0 + rank,
        step=step,
        rank=rank,
        kind=kind,
        name=name,
        value=json.dumps(value),
        old_value=json.dumps(old),
    )


def test_happenings_fold_ranks_and_mark_what_was_set() -> None:
    logged_events = EventList()
    logged_events.take(events(*(event("control", "lr", 0.1, 0.2, rank=rank) for rank in range(4))), 90.0)
    logged_events.take(events(event("sample", "text", "quiet")), 90.0)
    assert [(e["ranks"], e["text"]) for e in logged_events.news()] == [("0-3", "learning rate 0.2 → 0.1")]
    assert logged_events.marks() == [{"step": 5, "time": 10.0, "label": "step 5: learning rate 0.2 → 0.1"}]
    assert logged_events.marks() is None


def test_what_was_set_in_steps_that_were_taken_back_has_no_mark() -> None:
    """Rank 1's events come after rank 0's, as two files are read one after the other."""
    logged_events = EventList()
    for rank in range(2):
        told = [
            event("control", "clip", 1.0, 0.0, rank=rank, step=3),
            event("control", "lr", 0.1, 0.2, rank=rank, step=9),
        ]
        back = event("control", "rollback", 4, 9, rank=rank, step=4)
        again = event("control", "lr", 0.3, 0.2, rank=rank, step=9)
        later = [replace(each, time=each.time + after) for after, each in ((5.0, back), (9.0, again))]
        logged_events.take(events(*told, *later), 90.0)
    labels = [mark["label"] for mark in logged_events.marks() or []]
    assert labels == [
        "step 3: gradient clipping off → 1",
        "step 4: rolled back to step 4, from 9",
        "step 9: learning rate 0.2 → 0.3",
    ]


def test_history_joins_what_was_asked_with_what_took_effect(tmp_path: Path) -> None:
    history = History(tmp_path)
    control = tmp_path / "control.jsonl"
    asked = [("ada", 0.1, 71), ("bob", 0.2, 5), ("ada", -3, 40), ("", 0.2, 6)]
    lines = [Command(time=float(at), name="lr", value=v, who=who, id=id) for at, (who, v, id) in enumerate(asked)]
    control.write_text("".join(line.to_line() for line in lines))
    refusal = {"value": -3, "reason": "too low"}
    history.take(
        events(
            *(event("control", "lr", 0.1, 0.3, rank=rank, step=7, command=71) for rank in range(2)),
            event("refused", "lr", refusal, step=7, command=40),
            event("control", "lr", 0.2, 0.1, step=8, command=6),  # the other of the two that look alike
        )
    )
    rows = history.rows()
    assert rows is not None
    assert [(row["who"], row["old"], row["value"], row["step"], row["refused"]) for row in rows] == [
        ("ada", 0.3, 0.1, 7, ""),
        ("bob", None, 0.2, None, ""),
        ("ada", None, -3, 7, "too low"),
        ("", 0.1, 0.2, 8, ""),
    ]
    assert history.rows() is None
    history.take(events(event("control", "lr", 0.2, 0.2, step=9, command=5), event("control", "loss", 1, step=9)))
    again = history.rows()
    assert again is not None and again[1]["step"] == 9 and (again[4]["name"], again[4]["who"]) == ("loss", "")


def test_an_interval_that_changes_often_is_one_event() -> None:
    listed = EventList()
    for number in range(1, 84):
        listed.take(events(event("monitor", "phases", 2 ** (number % 3), step=number)), 0.0)
    listed.take(events(event("checkpoint", "saved", {"path": "step-90"}, step=90)), 0.0)
    assert [(e["name"], e["step"], e["count"]) for e in listed.all()] == [("phases", 83, 83), ("saved", 90, 1)]


def test_without_a_device_sample_times_count_from_the_first_event(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=1))
    with RankLogWriter(tmp_path, 0) as writer:
        writer.append(Event(time=1.8e9, step=0, rank=0, kind="state", name="starting"))
        writer.append(Event(time=1.8e9 + 5, step=0, rank=0, kind="checkpoint", name="saved", value='"step-1"'))
    store = opened(tmp_path)
    facts = Facts(store)
    listed = EventList()
    listed.take(facts.update(), facts.began)
    assert [entry["time"] for entry in listed.all()] == [0.0, 5.0]


def test_pauses_count_neither_as_elapsed_nor_in_the_time_that_is_left(tmp_path: Path) -> None:
    """100 steps of a second each; a pause of an hour after step 30 of 50."""
    write_spec(tmp_path, fake_spec(ranks=1, steps=100))
    about = {"loss": 1.0, "lr": 0.1, "grad_sq": 1.0, "tokens": 1, "step_time_ms": 1000.0, "data_wait_ms": 1.0}
    begin = 1.8e9

    def state(writer: RankLogWriter, name: str, at: float, step: int) -> None:
        writer.append(Event(time=begin + at, step=step, rank=0, kind="state", name=name))

    with RankLogWriter(tmp_path, 0) as writer:
        state(writer, "running", 0.0, 0)
        for step in range(1, 51):
            late = 3600.0 if step > 30 else 0.0
            writer.append(StepRecord(time=begin + step + late, step=step, rank=0, **about))
            if step == 30:
                state(writer, "paused", 30.0, 30)
                state(writer, "running", 3630.0, 30)
        state(writer, "paused", 3650.0, 50)
    store = opened(tmp_path)
    facts = Facts(store)
    facts.update()
    now = facts.now(status="running", can_control=False, clock=begin + 5000)
    assert (now["elapsed"], now["eta"]) == (50, 50), "the second pause goes on"
    assert snapshot(store).eta_s == pytest.approx(50)


def test_the_straggler_is_named(tmp_path: Path) -> None:
    facts = Facts(opened(make_fake_run(tmp_path / "run", ranks=8, steps=30)))
    facts.update()
    now = facts.now(status="finished", can_control=False, clock=0.0)
    assert now["straggler"] == straggler(8)
    assert f"rank {straggler(8)}, for which the others wait" in now["verdict"]


def test_card_bars_verdict_and_report_name_one_rank_over_one_window(tmp_path: Path) -> None:
    path = make_fake_run(tmp_path / "run", ranks=4, steps=120)
    facts = Facts(store := opened(path))
    facts.update()
    now = facts.now(status="finished", can_control=False, clock=0.0)
    bars, _ = phase_bars.columns(store, None)
    whole = Run(path).verdict()
    assert bars["rank"][~np.isnan(bars["slow"])].tolist() == [now["straggler"]] == [whole.straggler.rank]
    assert now["verdict"] == whole.sentence == verdict_sentence(read(path))
    assert whole.count == WINDOW and whole.window in whole.sentence.lower()


def test_mfu_is_the_models_operations_over_what_the_devices_can_do(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=2))
    for rank in range(2):
        with RankLogWriter(tmp_path, rank) as writer:
            writer.event("peak", "flops", {"flops_per_s": 1e6, "precision": "fp32", "source": "told"})
            writer.event("peak", "model", {"flops_per_token": 9000, "parameters": 1500, "formula": "6 N"})
    mfu = VerdictTracker(opened(tmp_path)).judge(tokens_per_second=40.0).mfu
    assert mfu == pytest.approx(9000 * 40 / (2 * 1e6))


def test_phases_and_collectives_sum_up_to_the_runs_own_sentence(tmp_path: Path) -> None:
    """The panel reads on as the log grows; the run reads it whole."""
    write_spec(tmp_path, fake_spec(ranks=2))
    store = opened(tmp_path)
    judge, seen = VerdictTracker(store), []
    about = {"loss": 1.0, "lr": 0.1, "grad_sq": 1.0, "tokens": 1, "step_time_ms": 100.0, "data_wait_ms": 1.0}
    parts = {"data": 10.0, "forward": 30.0, "backward": 35.0, "communication": 20.0, "optimizer": 5.0}
    call = {"kind": "all_reduce", "group": "dp", "group_size": 2, "bytes": 4, "start_ms": 75.0, "duration_ms": 20.0}
    with RankLogWriter(tmp_path, 0) as first, RankLogWriter(tmp_path, 1) as second:
        for step in range(1, 23):
            for rank, writer in enumerate((first, second)):
                where = {"step": step, "rank": rank}
                writer.append(StepRecord(time=float(step), **where, **about))
                for phase, length in parts.items():
                    place = {"phase": phase, "micro_batch": -1, "start_ms": 0.0, "duration_ms": length}
                    writer.append(PhaseRecord(**where, **place))
                if step % 10 == 0:
                    writer.append(CollectiveRecord(**where, **call, exposed_ms=20.0, post_ms=0.1 + 15.0 * rank))
                writer.flush()
            store.refresh()
            seen.append(judge.judge(None).sentence)
        for writer in (first, second):
            writer.event("state", "finished", step=22)
    store.refresh()
    seen.append(judge.judge(None).sentence)
    run = Run(tmp_path).verdict()
    assert seen[-1].startswith("Compute-bound: 70% of a 100 ms step computes on rank 1")
    assert seen[-1] == run.sentence and "its network" in seen[-1]
    assert seen[4] == "Verdict after 8 measured steps (3 so far)." and "No rank stands out" in seen[12], (
        "one recorded step names nobody"
    )


def test_rank_table_keeps_the_newest_and_the_worst() -> None:
    table = RankTable(2)
    for rank, state in ((0, "running"), (1, "running"), (1, "died"), (1, "finished")):
        table.take_state(rank, state, 3)
    assert (table.state_of(0), table.state_of(1), table.logged_state) == ("running", "died", "failed")
    table = RankTable(2)
    for rank, state in ((0, "running"), (1, "restarting")):
        table.take_state(rank, state, 3)
    assert table.logged_state == "restarting"
    table.take_state(1, "starting", 3)
    assert table.logged_state == "running"


def test_a_rank_whose_gpu_is_slowed_says_by_what(tmp_path: Path) -> None:
    devices = opened(make_fake_run(tmp_path / "run", ranks=2, steps=5)).table("devices")
    devices = {**devices, "gpu_throttle": np.where(devices["rank"] == 1, 0x1 | 0x4 | 0x40, 0x1)}
    table = RankTable(2)
    table.take_devices(devices)
    assert table.columns()["throttle"].tolist() == ["", "power cap, temperature (hardware)"]


def test_the_bundle_is_one_module_without_names_that_clash() -> None:
    text = bundle.script()
    assert not re.search(r"^import ", text, re.MULTILINE)
    assert text.count("export default") == 1 and text.count("\nexport ") == 1
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", text, re.MULTILINE)
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
    assert "http" not in text.replace("http://www.w3.org", "")


def test_scripts_and_styles_stay_readable() -> None:
    for path in bundle.STATIC.glob("*.*"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name


def test_controls_have_what_a_form_needs(tmp_path: Path) -> None:
    declared = control_set.declared(opened(make_fake_run(tmp_path / "run", steps=2)))
    assert {control["widget"] for control in declared} == {"button", "number", "text", "choice"}
    assert all(control["states"] and control["help"] for control in declared)
    json.dumps(declared)


def test_the_head_of_the_panel_has_a_button_for_each_state(tmp_path: Path) -> None:
    declared = control_set.declared(opened(make_fake_run(tmp_path / "run", steps=2)))
    buttons = [control for control in declared if control["button"]]
    places = dict.fromkeys(control["button"]["place"] for control in buttons)
    assert list(places) == ["pause", "checkpoint", "stop"]
    for state in controls.LIVE:
        able = [control["button"]["place"] for control in buttons if state in control["states"]]
        assert sorted(able) == sorted(places), f"one control of each place can be done while {state}"
    assert all(control["setting"] is False for control in buttons), "a button has no value to set"


def test_values_in_force_stand_beside_the_controls_that_set_or_alter_them() -> None:
    values = {
        "lr": 0.00123456,
        "clip": 0.0,
        "grad_every": "auto",
        "interval": 20,
        "grad_layers": "",
        "temperature": 2.0,
    }
    assert control_set.current_value_words(values | {"frozen": []}) == {
        "lr": "0.001235",
        "clip": "off",
        "grad_every": "auto: 20",
        "grad_layers": "all",
        "temperature": "2",
        "freeze": "none",
        "unfreeze": "none",
    }
    shown = control_set.current_value_words({"grad_every": 5, "interval": 20, "frozen": ["a", "b"]})
    assert shown == {"grad_every": "5", "freeze": "a, b", "unfreeze": "a, b"}


def test_compared_runs_have_a_source_each() -> None:
    items = compare.figures(["one", "two"])
    assert [item["tab"] for item in items] == ["compare"] * 3
    assert all('"run1"' in json.dumps(item["item"]) for item in items)
