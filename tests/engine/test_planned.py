"""The bytes of parameters that are predicted for a split model are those that each rank holds."""

from __future__ import annotations

import pytest

from tests.engine.rank_pool import RankPool
from tests.engine.test_split_models import LM, PLANS, SETTINGS

RANKS = "tests.engine.planned_ranks"


@pytest.mark.parametrize("axis", PLANS)
def test_every_family_holds_what_was_predicted(axis: str, pool: RankPool) -> None:
    cases = [*((*case, {}, {}) for case in LM), *((*case, {}) for case in SETTINGS)]
    for found in pool.run(2, f"{RANKS}:parameters", cases=cases, options=PLANS[axis]):
        for case, (predicted, held) in zip(cases, found, strict=True):
            assert predicted == held, case


@pytest.mark.parametrize("axis", PLANS)
def test_every_family_of_torch_holds_what_was_predicted(axis: str, torch_pool: RankPool) -> None:
    known = ("llama", "mistral", "qwen2", "mixtral", "gpt2", "vit")
    cases = [(*case, {}, {}) for case in LM if case[0] in known or (axis == "pp" and case[0] in ("opt", "bert"))]
    tied = ("llama", "LlamaForCausalLM", {"tie_word_embeddings": True, "num_hidden_layers": 3}, {})
    options = {"framework": "torch", **PLANS[axis]}
    for found in torch_pool.run(2, f"{RANKS}:parameters", cases=[*cases, tied], options=options):
        for case, (predicted, held) in zip([*cases, tied], found, strict=True):
            assert predicted == held, case
