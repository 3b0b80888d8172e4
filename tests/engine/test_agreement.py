"""Any stream of commands, however it comes: all ranks apply the same ones at the same steps, and what does not change
training does not change it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.test_steering import TRAIN, column

STEPS = 8
PLANS: dict[str, tuple[int, dict[str, Any]]] = {
    "2-ddp-accumulate": (2, {"plugin": "ddp", "accumulate": 2}),
    "2-pp": (2, {"plugin": "hybrid", "pp": 2, "micro_batches": 2}),
    "3-zero1": (3, {"plugin": "zero1", "batch_size": 6}),
    "4-tp-pp-accumulate": (4, {"plugin": "hybrid", "tp": 2, "pp": 2, "micro_batches": 2, "accumulate": 2}),
}
#: as in a run, where the guard's sum of each step tells ranks of several hosts what is agreed
SEVERAL_HOSTS = {"one_host": False, "guarded": True}
ALSO_BETWEEN_HOSTS = ("3-zero1", "4-tp-pp-accumulate")


def burst(commands: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[dict[str, list[Any]]]:
    """Which commands are written while which step is under way, up to five at once."""
    steps = st.integers(1, STEPS).map(str)
    return st.dictionaries(steps, st.lists(commands, min_size=1, max_size=5), min_size=1, max_size=4)


#: bursts of anything: changes, checkpoints, going back, nonsense; what would end or hold the run is left to the others
ANYTHING = st.sampled_from([
    ["lr", 1e-3], ["lr", "x0.5"], ["lr", "schedule"], ["clip", 0.1], ["clip", 0], ["clip", -1], ["weight_decay", 0.2],
    ["log_every", 2], ["log_every", 1], ["evaluate", None], ["sample", None], ["checkpoint", None],
    ["freeze", "embed"], ["unfreeze", "."], ["nonsense", {"a": [1]}], ["accumulate", 1], "no json\n", "{}\n",
])  # fmt: skip
HARMLESS = st.sampled_from([
    ["checkpoint", None], ["pause", None], ["resume", None], ["evaluate", None], ["log_every", 1], ["step", 3],
])  # fmt: skip
SLOW = st.dictionaries(st.sampled_from(["0", "1"]), st.sampled_from([0.01, 0.03]), max_size=1)
FEW = settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def told(rank: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a rank's log says of commands, in order. That a checkpoint is there, or removed, only rank 0 says."""
    kinds = ("control", "refused", "warning", "checkpoint", "state")
    rows = [(e["step"], e["kind"], e["name"], str(e["value"]), str(e["old"])) for e in rank["events"]]
    return [row for row in rows if row[1] in kinds and row[2] not in ("saved", "removed")]


@pytest.mark.parametrize("plan", PLANS)
def test_every_rank_applies_the_same_commands_at_the_same_steps(run_kept, plan: str) -> None:
    ranks, options = PLANS[plan]

    @FEW
    @given(script=burst(ANYTHING), slow=SLOW)
    def check(script: dict[str, list[Any]], slow: dict[str, float]) -> None:
        arguments = {"model": "llama", "options": options, "steps": STEPS, "script": script, "slow": slow}
        found = run_kept(ranks, TRAIN, **arguments)
        far = run_kept(ranks, TRAIN, **SEVERAL_HOSTS, **arguments) if plan in ALSO_BETWEEN_HOSTS else []
        assert all(told(rank) == told(found[0]) for rank in [*found, *far])
        asked = sum(len(commands) for step, commands in script.items())
        answered = [e for e in found[0]["events"] if e["kind"] in ("control", "refused") or e["name"] == "bad_command"]
        assert len(answered) == asked, "each is answered, also one that came too late"

    check()


@pytest.mark.parametrize(
    ("plan", "hosts"),
    [("2-ddp-accumulate", {}), ("2-ddp-accumulate", SEVERAL_HOSTS), ("4-tp-pp-accumulate", {})],
    ids=["2-ddp-accumulate", "2-ddp-accumulate between hosts", "4-tp-pp-accumulate"],
)
def test_pauses_and_checkpoints_change_nothing(run_kept, plan: str, hosts: dict[str, Any]) -> None:
    ranks, options = PLANS[plan]
    free = run_kept(ranks, TRAIN, model="llama", options=options, steps=STEPS)

    @FEW
    @given(script=burst(HARMLESS), slow=SLOW)
    def check(script: dict[str, list[Any]], slow: dict[str, float]) -> None:
        arguments = {"options": options, "steps": STEPS, "script": {**script, "paused": []}, "slow": slow}
        found = run_kept(ranks, TRAIN, model="llama", **hosts, **arguments)
        assert all(told(rank) == told(found[0]) for rank in found)
        for rank in range(ranks):
            for name in ("step", "loss", "lr", "grad_sq"):
                assert column(found, name, rank) == column(free, name, rank)

    check()
