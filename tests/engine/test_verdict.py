"""One rank is slow, really: the verdict names it and what it is slow in, although the others wait just as long."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.frames import columns
from workbench.core.mesh import Mesh
from workbench.telemetry.phases import posting_time
from workbench.telemetry.verdict import verdict

TP = {"plugin": "hybrid", "tp": 2}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 4}
#: ranks, plan, mesh, the slow rank, where it sleeps and for how long, the phase to be named
CASES = [
    pytest.param((2, {"plugin": "ddp"}, Mesh(dp=2), 1, "data", 0.06, "data"), id="data-ddp"),
    pytest.param((2, {"plugin": "zero1"}, Mesh(dp=2), 1, "network", 0.03, "communication"), id="network-zero1"),
    pytest.param((2, {"plugin": "zero2"}, Mesh(dp=2), 0, "network", 0.03, "communication"), id="network-zero2"),
    pytest.param((2, TP, Mesh(tp=2), 0, "network", 0.004, "communication"), id="network-tp"),
    pytest.param((2, PP, Mesh(pp=2), 1, "network", 0.02, "communication"), id="network-pp"),
    pytest.param((2, {"plugin": "ddp"}, Mesh(dp=2), 1, "network", 0.06, "backward"), id="network-ddp"),
    pytest.param((4, TP, Mesh(dp=2, tp=2), 2, "optimizer", 0.12, "optimizer"), id="optimizer-dp-tp"),
    pytest.param((4, {"plugin": "ddp"}, Mesh(dp=4), 3, "forward", 0.12, "forward"), id="forward-ddp-4"),
]


@pytest.mark.parametrize("case", CASES)
def test_the_slow_rank_and_its_phase_are_named(run_kept, case: tuple[Any, ...]) -> None:
    """DDP hands its reductions over within the backward pass, so there a slow network shows in that.

    The planted delay has to stand out from what else the machine does: on a busy one it is planted longer.
    """
    ranks, options, mesh, rank, where, delay_s, phase = case
    for factor in (1, 4, 16):
        slow = (rank, where, delay_s * factor)
        results = run_kept(
            ranks, "tests.engine.watched:train", options=options, slow=slow, steps=20 if where == "network" else 12
        )
        found = verdict(columns(results, "phases"), mesh, posting_time(columns(results, "collectives")))
        stands_out = found.waiting_share > 0.1 or phase == "communication"  # which holds up all alike
        named = found.straggler
        loses = named is not None and named.lost_ms > 0.6 * slow[2] * 1e3 and named.lost_share <= 1
        if named is not None and (named.rank, named.phase) == (rank, phase) and loses and stands_out:
            break
    assert found.straggler is not None
    assert (found.straggler.rank, found.straggler.phase) == (rank, phase)
    assert f"Rank {rank} is slow in" in found.sentence
    assert loses and stands_out, found
