"""The bytes of parameters that are predicted for a split model are those that each rank holds."""

from __future__ import annotations

import pytest

from tests.engine.rank_pool import RankPool
from tests.engine.test_split_models import ADAPTED, LM, PLANS, SETTINGS
from workbench.engine.frameworks.colossal.families import FAMILIES

TORCH = {axis: {"framework": "torch", **options} for axis, options in PLANS.items()}
RANKS = "tests.engine.planned_ranks"


@pytest.mark.parametrize("axis", PLANS)
def test_every_family_holds_what_was_predicted(axis: str, pool: RankPool) -> None:
    cases = [*((*case, {}, {}) for case in LM), *((*case, {}) for case in SETTINGS)]
    cases += [(*case, {"lora": list(FAMILIES[case[0]].adapted)}) for case in ADAPTED]
    for found in pool.run(2, f"{RANKS}:parameters", cases=cases, options=PLANS[axis]):
        for case, (predicted, held) in zip(cases, found, strict=True):
            assert predicted == held, case


@pytest.mark.parametrize("axis", TORCH)
def test_so_it_does_under_torch(axis: str, pool: RankPool) -> None:
    """But for models with two lists of blocks, which its pipelines refuse."""
    cases = [(*case, {}, {}) for case in LM if axis == "tp" or case[0] not in ("t5", "whisper")]
    for found in pool.run(2, f"{RANKS}:parameters", cases=cases, options=TORCH[axis]):
        for case, (predicted, held) in zip(cases, found, strict=True):
            assert predicted == held, case
