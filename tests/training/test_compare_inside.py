"""Two runs of one model are the same inside under other plans, and a planted difference is named with its module."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell

import workbench
from tests.training.test_dist_train import CELL, train
from workbench.cluster.cells import CellError
from workbench.errors import ConfigError, RunDirectoryError
from workbench.run.api import Run

#: attention with dropout, whose elements depend on the plan
MODEL = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=32, attention_dropout=0.1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
ids = torch.randint(0, 64, (32, 8))
dataset = [{"input_ids": row, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
"""
#: what is planted -> the code, and whom the comparison has to name
PLANTED = {
    "scale": (
        "model.model.layers[1].self_attn.scaling *= 2",
        "model.layers.1.self_attn hands another input to model.layers.1.self_attn.o_proj, after "
        "model.layers.1.self_attn.v_proj, whose output is the same",
    ),
    "causal mask": (
        """
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as known
def free(module, query, key, value, mask, scaling, dropout=0.0, **_):
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights
known["free"] = free
model.config._attn_implementation = "free"
""",
        "model.layers.0.self_attn hands another input to model.layers.0.self_attn.o_proj",
    ),
    "eps": (
        "model.model.layers[0].post_attention_layernorm.variance_epsilon = 3e-6",
        "model.layers.0.post_attention_layernorm computes another output from the same input",
    ),
}


@pytest.fixture(scope="module")
def trained(shell: InteractiveShell) -> Run:
    return train(shell, "-n 2 --steps 2 --batch-size 8 --quiet --plugin ddp --name whole", MODEL).wait(timeout=300)


@pytest.mark.parametrize("plan", ["--plugin hybrid --tp 2", "--plugin hybrid --pp 2 --micro-batches 2"])
def test_another_plan_is_the_same_inside(shell: InteractiveShell, trained: Run, plan: str) -> None:
    train(shell, f"-n 2 --steps 1 --batch-size 4 --quiet {plan} --name split", MODEL).wait(timeout=300)
    found = shell.run_line_magic("dist_compare", "--inside whole split")
    assert found.first is None, found
    assert "same batch, weights of whole at step 2, without dropout" in str(found)
    assert "no output or gradient of" in str(found) and "spec: " in str(found)
    table = found.table().set_index(["layer", "what"])
    assert (
        not table["differs"].any()
        and (table["difference"] > 0).any() == ("--tp" in plan)
        and not (table["note"] != "").any()
    )
    leaves = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")]
    assert {(name, what) for name in leaves for what in ("output", "gradient")} <= set(table.index)


@pytest.mark.parametrize("name", PLANTED)
def test_the_first_module_that_differs_is_named(shell: InteractiveShell, trained: Run, name: str) -> None:
    code, told = PLANTED[name]
    other = train(shell, "-n 1 --steps 1 --batch-size 4 --quiet --name planted", MODEL + code).wait(timeout=300)
    found = workbench.compare_inside("whole@2", other)
    assert found.first is not None and told in found.origin, found
    assert found.first.difference > found.first.limit > 0 and "code" in str(found)


#: makes one rank compute a little otherwise, and takes that back
CHANGED = """
from transformers.models.llama.modeling_llama import LlamaRMSNorm
before = LlamaRMSNorm.forward
LlamaRMSNorm.forward = lambda self, values: 1.001 * before(self, values)
"""


def test_two_ranks_are_the_same_inside_until_one_computes_otherwise(shell: InteractiveShell, trained: Run) -> None:
    same = shell.run_line_magic("dist_compare", "--inside whole@2 --ranks 0 1")
    assert same.first is None and not same.table()["difference"].any(), same
    assert "whole on rank 0 and whole on rank 1, same batch, weights of whole at step 2" in str(same)
    shell.run_cell_magic("dist", "--targets 1", CHANGED)
    try:
        found = workbench.compare_inside("whole@2", ranks=(0, 1))
        assert "model.layers.0.input_layernorm computes another output from the same input" in found.origin, found
        assert workbench.compare_inside("whole@2", ranks=(1, 0)).origin == found.origin, "whoever is asked first"
    finally:
        shell.run_cell_magic("dist", "--targets 1", "LlamaRMSNorm.forward = before")
    with pytest.raises(ConfigError, match="two different ranks"):
        workbench.compare_inside(trained, ranks=(1, 1))
    with pytest.raises(RunDirectoryError, match="this takes 10 ranks, but 2 are up"):
        workbench.compare_inside(trained, ranks=(0, 9))


def test_runs_of_other_models_and_of_steps_of_their_own_are_refused(shell: InteractiveShell, trained: Run) -> None:
    other = train(shell, "-n 2 --steps 1 --quiet --name other", CELL).wait(timeout=300)
    with pytest.raises(CellError, match="has other weights than the run that it is compared with"):
        workbench.compare_inside(trained, other)
    with pytest.raises(ConfigError, match="--inside compares two runs, not 1"):
        from magics.runs import _compared_inside

        _compared_inside(["whole"])
