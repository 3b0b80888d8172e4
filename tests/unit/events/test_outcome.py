"""What a rank answers about its end, and which failure explains the others."""

import json
import queue
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from workbench.core.columns import Columns
from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.records import StepRecord
from workbench.errors import ConfigError, RunDirectoryError, RunError
from workbench.events.outcome import Outcome, failure, failure_of
from workbench.run import branching, session_log
from workbench.run.api import Run
from workbench.run.job import GRACE_S, INTERRUPTED_S, TrainingJob
from workbench.run.peer_watch import next_action
from workbench.rundir import directory as run_directory
from workbench.rundir.log import RankLogWriter


def events(*rows: tuple[float, int, str, str, object]) -> Columns:
    """Columns from (time, rank, kind, name, value)."""
    time, rank, kind, name, value = zip(*rows, strict=True) if rows else ((),) * 5
    text = [each if isinstance(each, str) else json.dumps(each) for each in value]
    columns = {"time": np.array(time, dtype=float), "step": np.full(len(time), 7), "rank": np.array(rank, dtype=int)}
    return {**columns, **{k: np.array(v, dtype=object) for k, v in (("kind", kind), ("name", name), ("value", text))}}


def test_an_answer_survives_its_way_through_a_cells_result() -> None:
    said = Outcome(state="failed", step=3, failure=failure("E", 'it\'s "quoted"\nand long' * 50, "trace\n"))
    assert Outcome.from_result(repr(said.to_text())) == said


@pytest.mark.parametrize("result", [None, "", "None", "'text'", "{broken", "'[1]'", repr(json.dumps({"odd": 1}))])
def test_any_other_result_is_no_answer(result: str | None) -> None:
    assert Outcome.from_result(result) is None


def test_no_failure() -> None:
    assert failure_of(events()) is None
    assert failure_of(events((1, 0, "state", "finished", None))) is None


def test_the_earliest_failure_that_is_about_no_peer_counts_with_all_that_had_it() -> None:
    first = failure_of(
        events(
            (1, 0, "state", "failed", failure("DistError", "closed", peer=True)),
            (2, 2, "state", "failed", failure("ValueError", "bad", "line 3")),
            (3, 1, "state", "failed", failure("ValueError", "bad", "line 3")),
            (4, 3, "state", "failed", failure("OSError", "other")),
        )
    )
    assert first is not None and (first.ranks, first.message, first.traceback) == ([1, 2], "ValueError: bad", "line 3")
    assert str(first) == "ranks 1-2: ValueError: bad\nline 3" and first.step == 7


def test_a_death_explains_what_others_saw_and_hostile_values_harm_nothing() -> None:
    first = failure_of(
        events(
            (1, 0, "state", "failed", failure("ValueError", "bad")),
            (2, -1, "rank", "died", "no json"),
            (3, -1, "rank", "died", {"rank": 1, "reason": "killed by signal 9"}),
        )
    )
    assert first is not None and str(first) == "rank 1: killed by signal 9"
    down = [(each, -1, "rank", "died", {"rank": each, "reason": "its session ended"}) for each in range(3)]
    assert str(failure_of(events(*down))) == "ranks 0-2: its session ended"
    assert failure_of(events((1, 0, "state", "failed", "[]"))) is not None


def test_peers_are_left_alone_then_interrupted_once_then_killed() -> None:
    assert next_action(None, interrupted=False) == ""
    assert next_action(GRACE_S - 0.1, interrupted=False) == ""
    assert next_action(GRACE_S + 0.1, interrupted=False) == "interrupt"
    assert next_action(GRACE_S + 0.2, interrupted=True) == ""
    assert next_action(GRACE_S + INTERRUPTED_S, interrupted=True) == "kill"
    assert GRACE_S + INTERRUPTED_S < 10


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    return Run(run_directory.create(TrainSpec(name="full", plan=ParallelPlan(ranks=2), steps=9)))


@pytest.fixture
def job(run: Run) -> TrainingJob:
    return TrainingJob(run)


LOST = Outcome(state="finished", step=9, log_failure="No space left on device (disk of /data)")


def test_logs_that_could_not_be_written_are_named_also_to_other_readers(run: Run, job: TrainingJob) -> None:
    job.end({0: LOST, 1: LOST}, {})
    for reader in (run, Run(run.path)):
        with pytest.raises(RunError, match=r"on ranks 0-1: LogLost: it finished after step 9.*No space left on device"):
            reader.wait(timeout=1)
        assert reader.status == "failed"


def test_even_when_the_sessions_own_log_has_no_room(
    run: Run, job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: RankLogWriter, taken: list) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RankLogWriter, "_write", full)
    job.end({0: LOST, 1: Outcome(state="failed", step=4, failure=failure("ValueError", "bad", "line 3"))}, {})
    monkeypatch.undo()
    assert run.status == "failed"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(session_log, "_logs", {})
        assert Run(run.path).status == "starting", "another process knows only what was written"
    with pytest.raises(RunError, match="No space left on device"):
        run.wait(timeout=1)
    assert run.events()["rank"].tolist() == [0, 1]


def test_a_rank_dies_at_the_step_that_it_had_finished(run: Run, job: TrainingJob) -> None:
    with RankLogWriter(run.path, 1) as log:
        for step in (1, 2, 3):
            about = {"loss": 1.0, "lr": 0.1, "grad_sq": 1.0, "tokens": 1, "step_time_ms": 1.0, "data_wait_ms": 0.0}
            log.append(StepRecord(time=float(step), step=step, rank=1, **about))
    job.rank_died(1, "ended by signal 9 (killed)")
    job.ranks_ended([0], "it waited for rank 1")
    job.end({0: None, 1: None}, {})
    events = run.events()
    assert events[["kind", "name", "step"]].to_numpy().tolist() == [["rank", "died", 3], ["state", "failed", 0]]


def test_a_rank_that_logged_its_end_is_not_told_of_again(run: Run, job: TrainingJob) -> None:
    for rank in (0, 1):
        with RankLogWriter(run.path, rank) as log:
            log.event("state", "finished", step=9)
    job.end({rank: Outcome(state="finished", step=9) for rank in (0, 1)}, {})
    assert run.wait(timeout=1).events()["name"].tolist() == ["finished", "finished"]


@pytest.fixture
def restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainingJob, queue.Queue]:
    """A job of a run that trained two steps and may be restarted once, and what it is restarted with."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    run = Run(run_directory.create(TrainSpec(name="again", plan=ParallelPlan(ranks=2), steps=9, max_restarts=1)))
    for rank in (0, 1):
        with RankLogWriter(run.path, rank) as log:
            about = {"loss": 1.0, "lr": 0.1, "grad_sq": 1.0, "tokens": 1, "step_time_ms": 1.0, "data_wait_ms": 0.0}
            log.append(StepRecord(time=1.0, step=2, rank=rank, **about))
    begun: queue.Queue = queue.Queue()
    return TrainingJob(run, begun.put), begun


WAITED = Outcome(state="restarting", step=2, failure=failure("DistError", "closed", peer=True))


def test_ranks_that_died_are_replaced_as_often_as_was_asked(restarted: tuple, capsys: pytest.CaptureFixture) -> None:
    job, begun = restarted
    job.rank_died(1, "out of memory")
    assert job.run.status == "restarting" and not job.run.ended()
    job.end({0: WAITED, 1: None}, {1: "out of memory"})
    again = begun.get(timeout=300)
    assert job.run.status == "restarting" and "restart 1 of 1): rank 1: out of memory" in capsys.readouterr().err
    assert not again.failed_ranks(), "those of before are forgotten"
    again.rank_died(1, "out of memory")
    again.end({0: Outcome(state="failed", step=2, failure=WAITED.failure), 1: None}, {1: "out of memory"})
    assert begun.empty() and job.run.ended()
    with pytest.raises(RunError, match="failed at step 2 on rank 1: out of memory"):
        job.run.wait(timeout=1)


def test_a_death_that_is_known_last_explains_what_others_saw_of_it(
    restarted: tuple, capsys: pytest.CaptureFixture
) -> None:
    job, begun = restarted
    closed = failure("RuntimeError", "connection closed")
    with RankLogWriter(job.path, 0, append=True) as log:
        log.event("state", "restarting", closed)
    job.end({0: Outcome(state="restarting", step=2, failure=closed), 1: None}, {1: "out of memory"})
    begun.get(timeout=300)
    assert "restart 1 of 1): rank 1: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "dead"),
    [
        (Outcome(state="failed", step=0, failure=failure("ConfigError", "no such layer")), {}),
        (Outcome(state="finished", step=9), {}),
        (WAITED, {}),
        (None, {}),
    ],
    ids=["refused", "finished", "interrupted", "said nothing"],
)
def test_what_a_restart_would_not_mend_fails(other: Outcome | None, dead: dict, restarted: tuple) -> None:
    job, begun = restarted
    with RankLogWriter(job.path, 0, append=True) as log:
        log.event("state", "restarting", WAITED.failure)
    job.end({0: WAITED, 1: other}, dead)
    assert begun.empty() and job.run.status == "failed" and job.run.ended()


def test_a_restart_that_cannot_be_made_leaves_the_failure(restarted: tuple, capsys: pytest.CaptureFixture) -> None:
    job, _ = restarted

    def no_place(_job: TrainingJob) -> None:
        raise RunError("no ranks")

    job._restart = no_place
    job.rank_died(1, "out of memory")
    job.end({0: WAITED, 1: None}, {1: "out of memory"})
    with pytest.raises(RunError, match="on rank 1: out of memory"):
        job.run.wait(timeout=300)
    assert "run 'again' could not be restarted: RunError: no ranks" in capsys.readouterr().err


def test_ranks_that_were_ended_do_not_explain_the_failure(run: Run, job: TrainingJob) -> None:
    with RankLogWriter(run.path, 1) as log:
        log.event("state", "failed", failure("KeyError", "'x'"))
    for rank in (2, 0):  # one after another
        job.ranks_ended([rank], "ended by the session")
    job.end({0: None, 1: Outcome(state="failed", step=1)}, {0: "killed by signal 9 (SIGKILL)"})
    with pytest.raises(RunError, match=r"on rank 1: KeyError: 'x'; ranks 0, 2 waited for it and were ended: run "):
        run.wait(timeout=1)


def test_the_job_of_a_deleted_run_counts_as_one_that_logged_nothing(run: Run, job: TrainingJob) -> None:
    with RankLogWriter(run.path, 1) as log:
        log.event("state", "failed", failure("KeyError", "'x'"))
    assert job.failed_ranks() == {1} and job.is_over and not job.is_deleted
    shutil.rmtree(run.path)
    assert job.is_deleted and job.is_over
    assert job.step_of(0) is None and job.failed_ranks() == set()
    job.end({0: LOST, 1: None}, {})
    with pytest.raises(RunDirectoryError, match="Was it moved or deleted"):
        run.wait(timeout=1)
    assert not run.path.exists()


def test_a_run_that_stopped_for_a_branch_starts_it_when_its_ranks_are_free(
    run: Run, job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: queue.Queue[dict] = queue.Queue()

    def start(options: dict) -> Path:
        assert session_log.log_of(run.path).ranks_are_free.is_set()
        asked.put(options)
        return run.path

    monkeypatch.setattr(branching, "_launchers", [start])
    for rank in (0, 1):
        with RankLogWriter(run.path, rank) as log:
            log.event("control", "branch", {"lr": 1e-4}, step=7)
            log.event("state", "stopped", step=7)
    job.end({rank: Outcome(state="stopped", step=7) for rank in (0, 1)}, {})
    assert asked.get(timeout=300) == {"name": "full-branch", "lr": 1e-4, "resume": f"{run.path}@7"}


def test_a_branch_that_does_not_start_is_said_to_who_waits_for_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(options: dict) -> Path:
        raise ConfigError("no such plan")

    monkeypatch.setattr(branching, "_launchers", [start])
    known: list[str] = []

    class Failures(dict):
        def __setitem__(self, parent: Path, reason: str) -> None:
            known.append(capsys.readouterr().err)
            super().__setitem__(parent, reason)

    monkeypatch.setattr(branching, "_failures", Failures())
    branching.launch_in_thread(run.path, {})
    with pytest.raises(RunError, match=r"the branch of .* did not start: no such plan"):
        branching.wait_for_branch(run.path, [run.path])
    assert "did not start: no such plan" in known[0], "it is said before the wait ends"


def test_importing_run_from_the_package_says_how_branches_are_started() -> None:
    code = "from workbench import Run; from workbench.run import branching; print(len(branching._launchers))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "1\n"


def test_without_a_launcher_the_import_to_make_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branching, "_launchers", [])
    with pytest.raises(RuntimeError, match="import Run from workbench"):
        branching.launch({})
