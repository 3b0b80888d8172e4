"""One training moves from plan to plan, over frameworks, and to and from ``torch.distributed.checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import Case
from tests.training.cells.harness.trained import RANKS, train_case
from workbench.cli.main import main

#: tied, so that a weight has two names; of two parameter groups
CASE = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False, tie_word_embeddings=True,
))
def make(parameters):
    held = list(parameters)
    groups = [[p for p in held if p.dim() > 1], [p for p in held if p.dim() == 1]]
    return torch.optim.AdamW([{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "lr": 0.02}], lr=0.01)
optimizer = make(model.parameters())
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 64
dataset = [{"input_ids": row, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    flags={"shuffle": False, "final_checkpoint": True},
)
PLAIN = {"plugin": "ddp", "tp": 1, "pp": 1, "micro_batches": 1}
TP_PP = {**PLAIN, "ranks": 4, "plugin": "hybrid", "tp": 2, "pp": 2, "micro_batches": 2, "framework": "colossal"}
FSDP = {**PLAIN, "ranks": 2, "framework": "torch", "plugin": "fsdp"}
ONE = {**PLAIN, "ranks": 1, "framework": "torch"}
STEPS = 9


def _train(pool: RankPool, steps: int, plan: dict[str, Any], **options: Any) -> Any:
    run, failure = train_case(pool, CASE, "1 rank", steps=steps, **plan, **options)
    assert not failure
    return run


@pytest.fixture(scope="module")
def right(pool: RankPool) -> list[float]:
    """Losses of one process that is not interrupted."""
    options = CASE.options("1 rank") | {"steps": STEPS}
    return pool.run(1, f"{RANKS}:plain", cell=CASE.cell, loop="", options=options)[0]["losses"]


def test_losses_are_those_of_one_process_that_was_not_interrupted(
    pool: RankPool, right: list[float], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    first = _train(pool, 3, TP_PP)
    second = _train(pool, 6, FSDP, resume=f"{first.path}@3")
    third = _train(pool, STEPS, ONE, resume=f"{second.path}@6")
    found = np.concatenate([run.metrics()["loss"] for run in (first, second, third)])
    np.testing.assert_allclose(found, right, atol=1e-4)
    assert right[-1] < right[0] - 0.1
    for number, run in enumerate((first, third)):
        model = AutoModelForCausalLM.from_pretrained(run.save_pretrained(tmp_path / f"saved-{number}"))
        weights = dict(model.named_parameters())
        saved = run.state_dict()
        assert weights.keys() == {name for name in saved if not name.endswith("inv_freq")}
        assert all(torch.equal(weight, saved[name]) for name, weight in weights.items())

    out = tmp_path / "dcp"
    assert main(["export", str(first.path), "--to", "dcp", "-o", str(out)]) == 0
    bare = {"cell": CASE.cell, "saved": str(out), "start": 3, "steps": 3}
    for ranks in (1, 2):
        losses = pool.run(ranks, "tests.training.cells.harness.bare_dcp:go_on", **bare)[0]
        np.testing.assert_allclose(losses, right[3:6], atol=1e-4, err_msg=f"{ranks} ranks")


def _saved_by_torch(path: Path) -> list[float]:
    """Save what plain torch has after three steps; return the losses of the next three, with the data begun anew."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    torch.manual_seed(5)
    names: dict[str, Any] = {}
    exec(CASE.cell, names)
    model, optimizer, losses = names["model"], names["optimizer"], []
    for step in range(6):
        if step == 3:
            weights, moments = get_state_dict(model, optimizer)
            dcp.save({"app": {"model": weights, "optimizer": moments}}, checkpoint_id=path, no_dist=True)
        ids = names["ids"][step % 3 * 4 : step % 3 * 4 + 4]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[3:]


def test_a_run_begins_with_what_torch_saved_under_other_keys(pool: RankPool, tmp_path: Path) -> None:
    expected = _saved_by_torch(tmp_path / "dcp")
    for plan in (FSDP, TP_PP):
        begun = _train(pool, 3, plan, resume=f"dcp:{tmp_path / 'dcp'}")
        np.testing.assert_allclose(begun.metrics()["loss"], expected, atol=1e-4)
        assert "optimizer_state" not in set(begun.events()["name"]), "moments were found too"


def test_what_is_no_such_directory_is_refused(pool: RankPool, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    _, failure = train_case(pool, CASE, "1 rank", resume=f"dcp:{tmp_path}")
    assert "has no .metadata" in failure
    dcp.save({"model": {"other": torch.ones(2)}}, checkpoint_id=tmp_path / "other", no_dist=True)
    _, failure = train_case(pool, CASE, "1 rank", resume=f"dcp:{tmp_path / 'other'}")
    assert "has no model.embed_tokens.weight: it was written for another model" in failure
