"""What a lab says, of curves whose answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workbench.errors import ConfigError
from workbench.history.sources import ComparedRun
from workbench.run.lab.options import DEFAULT, read, read_frameworks
from workbench.run.lab.result import FRAMEWORK, Lab, Result, Trial, common_loss
from workbench.run.lab.step_cost import Sent, StepCost

STEPS = 200


def trial(algorithm: str, seed: int = 1, *, step_s: float, step_bytes: float, rate: float, floor: float = 0.0) -> Trial:
    """A loss that falls as exp(-rate * step) to ``floor``."""
    step = np.arange(1.0, STEPS + 1)
    curve = {"step": step, "time": step_s * step, "bytes": step_bytes * step, "loss": floor + np.exp(-rate * step)}
    run = ComparedRun(
        label=f"{algorithm}-{seed}",
        path=Path(algorithm or "ddp"),
        origin="run",
        state="finished",
        ranks=2,
        curve=curve | {"tps": step * math.nan, "grad_norm": step * math.nan, "tokens": step * math.nan},
        validation=(np.empty(0), np.empty(0)),
    )
    return Trial(choice=algorithm, seed=seed, run=run)


def lab(*groups: list[Trial], target: float | None = None) -> Lab:
    trials = [each for group in groups for each in group]
    results = tuple(Result(choice=group[0].choice, trials=tuple(group)) for group in groups)
    return Lab(results=results, target=common_loss(trials) if target is None else target)


WHOLE = {"step_s": 0.2, "step_bytes": 8e6, "rate": 0.05}
HALF = {"step_s": 0.1, "step_bytes": 4e6, "rate": 0.05}


def test_time_and_bytes_until_a_loss_are_those_of_the_closed_form():
    found = lab([trial("", **WHOLE)], [trial("bf16", **HALF)], target=0.1).table().set_index("algorithm")
    # the smoothed loss lags: s = 0.8 s + 0.2 exp(-rate t) beside 0.2 / (1 - 0.8 e^rate) exp(-rate t), from its start on
    lag = 0.2 / (1 - 0.8 * math.exp(0.05))
    steps = math.log(lag / 0.1) / 0.05
    for name, options in (("ddp", WHOLE), ("bf16", HALF)):
        row = found.loc[name]
        assert row["steps"] == pytest.approx(steps, abs=1)
        assert row["seconds"] == pytest.approx(row["steps"] * options["step_s"])
        assert row["bytes"] == pytest.approx(row["steps"] * options["step_bytes"])
        assert (row["step_s"], row["step_bytes"]) == pytest.approx((options["step_s"], options["step_bytes"]))


def test_the_sentence_names_the_first_and_the_cost_of_the_others():
    words = lab([trial("", **WHOLE)], [trial("bf16", **HALF)]).words()
    assert words[0].startswith("bf16 reached loss") and "first, in" in words[0]
    assert words[1] == "bf16 sent 2 times fewer bytes a step than ddp and took 0.50 times as long to the loss."
    assert words[2] == "There is one seed, so no spread is known: pass --seeds 3."


def test_the_target_is_the_lowest_loss_that_all_reach():
    stuck = trial("topk:0.01", step_s=0.1, step_bytes=1e5, rate=0.05, floor=0.3)
    found = lab([trial("", **WHOLE)], [stuck])
    assert found.target == pytest.approx(stuck.losses().min())
    assert all(math.isfinite(seconds) for seconds in found.table()["seconds"])
    words = lab([trial("", **WHOLE)], [stuck], target=0.1).words()
    assert words[0].startswith("ddp reached loss 0.1 first")
    assert words[1] == "topk:0.01 sent 80 times fewer bytes a step than ddp and did not reach loss 0.1."


def test_over_seeds_that_overlap_nobody_is_first_alone():
    close = [trial("bf16", seed, **{**HALF, "step_s": 0.19 + 0.02 * seed}) for seed in range(3)]
    whole = [trial("", seed, **WHOLE) for seed in range(3)]
    words = lab(whole, close).words()
    assert words[0].endswith("over the seeds it is not told apart from bf16.")
    assert not any("one seed" in line for line in words)
    apart = [trial("bf16", seed, **HALF) for seed in range(3)]
    assert "told apart" not in lab(whole, apart).words()[0]


def test_a_trial_that_failed_is_named_and_counts_as_never():
    failed = Trial(choice="int4", seed=1, run=None, failed="run 'x' failed at step 3")
    found = lab([trial("", **WHOLE)], [failed])
    assert found.words()[0].startswith("ddp reached loss")
    assert "int4, seed 1: run 'x' failed at step 3" in found.words()
    assert len(found.compared()) == 1 and found.figures() == []
    assert "int4" in repr(found) and "<table>" in found._repr_html_()


def test_frameworks_are_compared_by_their_steps_and_their_losses():
    slow = trial("torch", step_s=0.2, step_bytes=8e6, rate=0.05)
    fast = trial("colossal", step_s=0.1, step_bytes=8e6, rate=0.05)
    fast.run.curve["loss"][41] += 3e-6
    results = (
        Result(choice="torch", trials=(replace(slow, grown=4e6),)),
        Result(choice="colossal", trials=(replace(fast, grown=2e6),)),
        Result(choice="mpi", trials=(Trial(choice="mpi", seed=1, run=None, failed="it has no mpiexec"),)),
    )
    found = Lab(results=results, target=0.1, compares=FRAMEWORK)
    words = found.words()
    assert words[0] == "colossal took 100 ms a step; torch 2.00 times as long."
    assert words[1] == "In no step do two losses differ by more than 3e-6 (torch and colossal, seed 1, step 42)."
    assert words[2] == "mpi, seed 1: it has no mpiexec"
    table = found.table().set_index("framework")
    assert list(table["memory_bytes"])[:2] == [4e6, 2e6] and math.isnan(table["memory_bytes"]["mpi"])
    shown = repr(found).splitlines()
    assert any(line.split()[:2] == ["torch", "5"] for line in shown) and "4 MB" in repr(found)
    assert "<td>mpi</td>" in found._repr_html_()


def test_figures_are_over_time_bytes_and_steps():
    found = lab([trial("", **WHOLE)], [trial("bf16", **HALF)])
    titles = [figure.title.text for figure in found.figures()]
    assert titles == ["Loss over time", "Loss over bytes sent", "Loss over steps"]
    assert found.picture().startswith(b"\x89PNG")


def test_frameworks_are_read_once_each():
    assert read_frameworks("torch, colossal,torch") == ["torch", "colossal"]
    for text, message in (
        ("torch", "names one: two are"),
        (",", "names none: two or more are"),
        ("torch,colosal", "there is no framework 'colosal'; did you mean 'colossal'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_frameworks(text)


def test_algorithms_are_read_once_each():
    assert read("") == read(DEFAULT)
    assert read("ddp, ddp:bf16,bf16,topk+ef") == ["", "bf16", "topk:0.01+ef"]
    assert read(DEFAULT) == ["", "bf16", "topk:0.01+ef", "powersgd:4"]
    with pytest.raises(ConfigError, match="names none"):
        read(" , ")
    with pytest.raises(ConfigError, match="unknown algorithm 'bf17'"):
        read("ddp,bf17")


def test_what_other_links_would_do_is_predicted_and_said_so():
    """Whole gradients: 1 MB a step; a tenth of them costs twice the compute, and as many steps."""
    costs = {
        "": StepCost(ranks=2, compute_s=0.1, backward_s=0.05, sent=(Sent(kind="all_reduce", calls=1, bytes=1e6),)),
        "topk": StepCost(ranks=2, compute_s=0.2, backward_s=0.05, sent=(Sent(kind="all_reduce", calls=1, bytes=1e5),)),
    }
    groups = [[replace(trial(name, **WHOLE), cost=cost)] for name, cost in costs.items()]
    found = lab(*groups)
    steps = found.results[0].reached(found.target, "step")
    table = found.predicted(rates=[8e6], ranks=[2, 4], latency_s=0.01)
    assert list(table["algorithm"]) == ["ddp", "ddp", "topk", "topk"]
    assert list(table["step_s"]) == pytest.approx([0.1 + 1.02, 0.1 + 1.56, 0.2 + 0.12, 0.2 + 0.21])
    assert list(table["seconds"]) == pytest.approx([steps * step_s for step_s in table["step_s"]])
    words = next(line for line in found.words() if line.startswith("Predicted"))
    # 8 (1e6 - 1e5) bits take a tenth of a second at 72 Mbit/s
    assert words.startswith("Predicted (alpha-beta model, compute as measured here, 2 ranks, a latency of 0 ms): ")
    assert "before ddp by topk below 7" in words and words.endswith("Mbit/s.")
    titles = [figure.title.text for figure in found.figures()]
    assert titles[-1] == "Predicted time to the loss over the rate of a link" and len(titles) == 4
    measured = replace(found, network="8Mbit,10ms")
    assert measured.predicted(rates=[8e6])["latency_s"].tolist() == [0.01, 0.01]
    labels = [item.label.value for item in measured.figures()[-1].legend[0].items]
    assert labels == ["ddp, predicted", "ddp, measured", "topk, predicted", "topk, measured"]
    assert not any(line.startswith("Predicted") for line in lab([trial("", **WHOLE)], [trial("bf16", **HALF)]).words())


def test_local_steps_are_counted_on_average():
    one = trial("local-sgd:4", **WHOLE)
    assert one.run is not None
    one.run.curve["bytes"] = np.cumsum(np.where(np.arange(STEPS) % 4 == 3, 8e6, 0.0))
    assert one.step_bytes() == pytest.approx(8e6 * 50 / (STEPS - 1))
