"""Plans are predicted for a cell's model, tried on two ranks, and the first choice is trained."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell

from workbench.cluster.session import Session
from workbench.errors import CellError, ConfigError
from workbench.run import api
from workbench.run.planning.plans import plans

#: a Llama of which no number of ranks divides the vocabulary, with a tied weight
CELL = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=67, hidden_size=16, intermediate_size=36, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=32, tie_word_embeddings=True, use_cache=False,
)
model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
tokens = torch.randint(0, 67, (64, 16))
dataset = [{"input_ids": each, "labels": each} for each in tokens]
criterion = lambda outputs, batch: outputs.loss
"""
OPTIONS = {"batch_size": 8, "seed": 3}
NO_DEVICE = "import torch\nmodel = torch.nn.Linear(2, 2).to('cuda')\n"


def test_every_plan_holds_and_sends_what_was_predicted(shell: InteractiveShell, two_ranks: Session) -> None:
    found = plans(OPTIONS, cell=CELL, tries=4)
    assert {each.name for each in found.forecasts} == {
        "ddp2",
        "zero1 dp2",
        "zero2 dp2",
        "tp2",
        "pp2",
        "torch ddp2",
        "fsdp2",
        "fsdp tp2",
        "torch hybrid tp2",
        "torch hybrid pp2",
        "context cp2",
    }
    for error in found.errors():
        what = f"{error.plan}: {error.what} {error.predicted} {error.measured}"
        if error.what in ("parameters", "optimizer state"):
            assert error.share == "exact", what
        elif error.what == "sent per step":
            assert error.values[0] == error.values[1], what
    rows = found.table().set_index("plan")
    assert (rows["measured_step_s"] > 0).all()
    assert rows.loc["pp2", "bubble_s"] > 0
    assert found.machine is not None
    assert found.why.startswith(found.forecasts[0].name)


def test_the_first_choice_is_trained(
    shell: InteractiveShell, two_ranks: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = {"plugin": "zero1", "tp": 1, "pp": 1}
    run = api.train({**OPTIONS, **alone, "plan": "auto", "steps": 1, "eval_every": 0}, cell=CELL)
    run.wait()
    assert run.plan.describe() == "zero1 dp2"
    assert "--plan auto: zero1 dp2: the only plan that can be predicted" in capsys.readouterr().out


def test_the_magic_shows_the_plans_that_are_left(shell: InteractiveShell, two_ranks: Session) -> None:
    found = shell.run_cell_magic("dist_plans", "-n 2 --batch-size 8 --plugin ddp --memory 1kB --no-calibrate", CELL)
    assert [each.name for each in found.forecasts] == ["ddp2", "torch ddp2"]
    assert not found.chosen.fits
    assert "no plan fits into 1 kB per rank" in found.why


def test_what_cannot_be_described_is_named(shell: InteractiveShell, two_ranks: Session) -> None:
    with pytest.raises(ConfigError, match="the cell does not define optimizer"):
        plans(OPTIONS, cell="model = 1")
    with pytest.raises(CellError, match=r"CUDA|NVIDIA"):
        plans(OPTIONS, cell=CELL + NO_DEVICE)
    with pytest.raises(ConfigError, match="this host has room for"):
        plans({**OPTIONS, "ranks": 1024, "batch_size": 1024}, cell=CELL, tries=4)
