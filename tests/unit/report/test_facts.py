"""What a run directory tells, also when parts of it are missing or broken."""

from pathlib import Path

import pytest

from tests.fake_run import make_fake_run
from workbench.errors import RunDirectoryError
from workbench.report import facts, words


def test_a_whole_run(tmp_path: Path) -> None:
    found = facts.read(make_fake_run(tmp_path, ranks=4, steps=60, plugin="hybrid", tp=2))
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
    assert figures["seconds"] == pytest.approx(60 * 0.12, abs=5)
    assert [(r.rank, r.dp, r.tp, r.state) for r in found.ranks][2:] == [(2, 1, 0, "finished"), (3, 1, 1, "finished")]
    assert found.ranks[0].rss_bytes > 2**29


def test_an_event_of_all_ranks_is_one(tmp_path: Path) -> None:
    found = facts.read(make_fake_run(tmp_path, ranks=3, steps=5))
    assert [(h.name, h.ranks) for h in found.of_kind("state")] == [
        ("starting", (0, 1, 2)),
        ("running", (0, 1, 2)),
        ("finished", (0, 1, 2)),
    ]


def test_a_run_whose_owner_is_gone_is_lost(tmp_path: Path) -> None:
    found = facts.read(make_fake_run(tmp_path, steps=10, state="running"))
    assert found.status == "lost"
    assert "never reported an end" in " ".join(words.summary(found))


def test_a_truncated_log_is_read_and_said(tmp_path: Path) -> None:
    log = make_fake_run(tmp_path, steps=40) / "rank-00001" / "devices.arrow"
    log.write_bytes(log.read_bytes()[:-20])
    found = facts.read(tmp_path)
    assert found.summary()["steps"] == 40
    assert any("log of rank 1 was not closed" in note for note in found.notes)


def test_a_missing_rank_is_said(tmp_path: Path) -> None:
    make_fake_run(tmp_path, ranks=3, steps=10)
    for file in (tmp_path / "rank-00001").iterdir():
        file.unlink()
    notes = " ".join(facts.read(tmp_path).notes)
    assert "No log of rank 1 of 3." in notes and "No step was reported by all 3 ranks" in notes


@pytest.mark.parametrize("spec", [None, "not = [toml", 'surprise = "key"', "spec_version = 99", 'lr = "high"'])
def test_a_spec_that_cannot_be_read_leaves_the_rest(tmp_path: Path, spec: str | None) -> None:
    file = make_fake_run(tmp_path, steps=10) / "spec.toml"
    file.unlink()
    if spec is not None:
        file.write_text(spec)
    found = facts.read(tmp_path)
    assert found.spec is None and found.summary()["steps"] == 10 and len(found.ranks) == 2
    assert any("spec could not be read" in note for note in found.notes)


def test_garbage_in_a_log_is_said(tmp_path: Path) -> None:
    (make_fake_run(tmp_path, steps=10) / "rank-00001" / "gradients.arrow").write_bytes(b"\xff" * 4000)
    assert facts.read(tmp_path).spec is not None


def test_what_is_no_run_directory(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunDirectoryError, match="no run directory"):
            facts.read(path)


def test_the_flags_of_a_run_make_the_same_spec(tmp_path: Path) -> None:
    import argparse

    from workbench import flags

    spec = facts.read(make_fake_run(tmp_path, ranks=4, steps=10, plugin="hybrid", tp=2, pp=2, micro_batches=2)).spec
    parser = argparse.ArgumentParser()
    flags.add_to(parser)
    assert spec is not None
    assert spec.replace(**flags.options_of(parser.parse_args(words.flags(spec)))) == spec


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567.8, "1,234,568"), (0.00012346, "0.0001235"), (3.0, "3"), (float("nan"), "nan"), (None, "\N{EN DASH}")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


def test_durations() -> None:
    assert [words.duration(s) for s in (1.25, 75, 7260)] == ["1.2 s", "1 min 15 s", "2 h 1 min"]
