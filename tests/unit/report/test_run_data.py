"""Reading a run directory for a report, also when parts of it are missing or damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.fake_run import make_fake_run
from workbench.errors import RunDirectoryError
from workbench.plots import plots
from workbench.report import run_data, words
from workbench.rundir.log import RankLogWriter


def test_a_whole_run(tmp_path: Path) -> None:
    found = run_data.read(make_fake_run(tmp_path, ranks=4, steps=60, plugin="hybrid", tp=2))
    assert found.status == "finished" and found.notes == []
    figures = found.summary()
    assert (figures["recipe"], figures["plugin"], figures["ranks"], figures["steps"]) == (
        "stdlib-llama",
        "hybrid",
        4,
        60,
    )
    assert figures["first_loss"] > figures["last_loss"] > 0
    tokens = 32 * 128  # a global batch of 8 samples a rank
    assert figures["tokens_per_second"] == pytest.approx(tokens / 0.128, rel=0.1)
    assert figures["seconds"] == pytest.approx(60 * 0.12, abs=0.01)
    assert [(r.rank, r.dp, r.tp, r.state) for r in found.ranks][2:] == [(2, 1, 0, "finished"), (3, 1, 1, "finished")]
    assert found.ranks[0].rss_bytes > 2**29


def test_equal_events_of_all_ranks_are_merged(tmp_path: Path) -> None:
    found = run_data.read(make_fake_run(tmp_path, ranks=3, steps=5))
    assert [(h.name, h.ranks) for h in found.events_of_kind("state")] == [
        ("starting", (0, 1, 2)),
        ("running", (0, 1, 2)),
        ("finished", (0, 1, 2)),
    ]


def test_a_run_whose_owner_is_gone_is_lost(tmp_path: Path) -> None:
    found = run_data.read(make_fake_run(tmp_path, steps=10, state="running"))
    assert found.status == "lost"
    assert "did not report an end" in " ".join(words.describe_run(found))


def test_a_truncated_log_is_read_and_noted(tmp_path: Path) -> None:
    log = make_fake_run(tmp_path, steps=40, grad_every=5) / "rank-00001" / "devices.arrow"
    log.write_bytes(log.read_bytes()[:-20])
    found = run_data.read(tmp_path)
    assert found.summary()["steps"] == 40
    assert any("log of rank 1 was not closed" in note for note in found.notes)


def test_a_missing_rank_is_noted(tmp_path: Path) -> None:
    make_fake_run(tmp_path, ranks=3, steps=10)
    for file in (tmp_path / "rank-00001").iterdir():
        file.unlink()
    found = run_data.read(tmp_path)
    notes = " ".join(found.notes)
    assert "There is no log of rank 1." in notes and "There are no steps of rank 1." in notes
    assert found.status == "finished" and [rank.state for rank in found.ranks] == ["finished", "no log", "finished"]
    own = {r: found.store.table("steps")["loss"][found.store.table("steps")["rank"] == r] for r in (0, 2)}
    assert found.metrics["loss"].tolist() == pytest.approx(((own[0] + own[2]) / 2).tolist())
    assert np.isnan(found.metrics["grad_norm"]).all()  # the part of one rank is not known
    assert found.summary()["tokens_per_second"] == pytest.approx(
        24 * 128 / 0.124, rel=0.1
    )  # the missing rank is assumed to be like the others
    loss, throughput = (next(p for p in plots() if name == p.NAME) for name in ("loss", "throughput"))
    assert (
        len(loss.columns(found.store, None)[0]["step"]) == len(throughput.columns(found.store, None)[0]["step"]) == 10
    )


@pytest.mark.parametrize("spec", [None, "not = [toml", 'surprise = "key"', "spec_version = 99", 'lr = "high"'])
def test_an_unreadable_spec_does_not_affect_the_rest(tmp_path: Path, spec: str | None) -> None:
    file = make_fake_run(tmp_path, steps=10) / "spec.toml"
    file.unlink()
    if spec is not None:
        file.write_text(spec)
    found = run_data.read(tmp_path)
    assert found.spec is None and found.summary()["steps"] == 10 and len(found.ranks) == 2
    assert any("spec could not be read" in note for note in found.notes)


def with_newer_schema(data: bytes) -> bytes:
    table = pa.ipc.open_stream(data).read_all().replace_schema_metadata({"schema_version": "99"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def with_damaged_batch(data: bytes) -> bytes:
    at = data.index(b"\xff\xff\xff\xff", len(data) // 2) + 8  # inside the header of a batch
    return data[:at] + b"\xff" * 60 + data[at + 60 :]


@pytest.mark.parametrize(
    ("damage", "note", "some_rows_remain"),
    [
        (with_newer_schema, "rank-00001/{}.arrow has schema version 99, this version reads up to", False),
        (with_damaged_batch, "damaged", True),
        (lambda _: b"\xff" * 4000, "log of rank 1 was not closed", False),
        (lambda data: data[: len(data) // 2], "log of rank 1 was not closed", True),
    ],
    ids=["newer", "damaged", "garbage", "truncated"],
)
@pytest.mark.parametrize("table", ["steps", "gradients", "events", "devices"])
def test_a_damaged_log_does_not_affect_the_others(
    tmp_path: Path, damage: Any, note: str, some_rows_remain: bool, table: str
) -> None:
    log = make_fake_run(tmp_path, steps=40, grad_every=5) / "rank-00001" / f"{table}.arrow"
    whole = run_data.read(tmp_path)
    log.write_bytes(damage(log.read_bytes()))
    found = run_data.read(tmp_path)
    assert any(note.format(table) in sentence for sentence in found.notes)
    for name in ("steps", "gradients", "events", "devices", "phases"):
        rank, before = found.store.table(name)["rank"], whole.store.table(name)["rank"]
        assert (rank == 0).sum() == (before == 0).sum() and rank.size
        if name != table:
            assert rank.size == before.size
        else:
            assert bool(0 < (rank == 1).sum() < (before == 1).sum()) is some_rows_remain
    assert found.summary()["steps"] > 0 and "The training loss fell" in " ".join(words.describe_run(found))


def test_ranks_that_died_for_the_same_reason_are_named_together(tmp_path: Path) -> None:
    path = make_fake_run(tmp_path, ranks=3, steps=10, state="running")
    with RankLogWriter(path, -1) as log:
        for rank, reason in ((2, "ended by signal 9 (killed)"), (1, "ended by signal 9 (killed)"), (0, "exit code 3")):
            log.event("rank", "died", {"rank": rank, "reason": reason})
    sentence = words.describe_run(run_data.read(path))[-1]
    assert sentence == "It failed on ranks 1-2: ended by signal 9 (killed). Rank 0 died: exit code 3."


def test_another_directory_raises(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunDirectoryError, match="is not a run directory"):
            run_data.read(path)


def test_the_flags_of_a_run_make_the_same_spec(tmp_path: Path) -> None:
    import argparse

    from workbench.core import flags, plan_grammar

    spec = run_data.read(make_fake_run(tmp_path, ranks=4, steps=10, plugin="hybrid", tp=2, pp=2, micro_batches=2)).spec
    parser = argparse.ArgumentParser()
    flags.add_to(parser)
    assert spec is not None
    given = plan_grammar.expanded(flags.options_of(parser.parse_args(words.command_line_flags(spec))))
    assert spec.replace(**given) == spec


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567.8, "1,234,568"), (0.00012346, "1.235e-4"), (3.0, "3"), (float("nan"), "nan"), (None, "\N{EN DASH}")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.format_number(value) == text


def test_durations() -> None:
    assert [words.format_duration(s) for s in (1.25, 75, 7260)] == ["1.25 s", "1 min 15 s", "2 h 1 min"]
