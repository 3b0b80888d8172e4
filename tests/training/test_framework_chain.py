"""A training goes through frameworks, by checkpoints, as one run: weights, moments and data are read by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.environments import interpreter
from workbench import Run
from workbench.cluster.session import Session

LINE = "-n 2 --batch-size 8 --wait --quiet --save-every 10"
CELL = """
import torch, transformers

torch.manual_seed(0)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
ids = (torch.arange(128)[:, None] * 7 + torch.arange(16) * torch.arange(1, 129)[:, None]) % 64
dataset = [{"input_ids": row, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
"""
#: the way, and the last step of each part
WAY = (
    ("--framework deepspeed --plugin zero3", 20),
    ("--framework megatron --tp 2", 30),
    ("--framework colossal --plugin zero2", 40),
)


@pytest.fixture(autouse=True)
def no_ranks_stay(shell: InteractiveShell) -> Iterator[None]:
    for name in ("deepspeed", "megatron"):
        interpreter(name)
    yield
    current = Session.current()
    if current is not None:
        current.down()


def test_losses_are_those_of_one_run(shell: InteractiveShell) -> None:
    whole = f"{LINE} --framework torch --plugin ddp --steps {WAY[-1][1]} --name chain-whole"
    shell.run_cell_magic("dist_train", whole, CELL)
    expected = list(Run("chain-whole").metrics()["loss"])
    assert len(expected) == WAY[-1][1] and expected[-1] < expected[0]
    found: list[float] = []
    for part, (flags, steps) in enumerate(WAY):
        line = f"{LINE} {flags} --steps {steps} --name chain-{part}"
        if part:
            shell.run_line_magic("dist_train", f"{line} --resume chain-{part - 1}")
        else:
            shell.run_cell_magic("dist_train", line, CELL)
        run = Run(f"chain-{part}")
        assert run.status == "finished", f"{flags}: {run.status}"
        found += list(run.metrics()["loss"])
    assert found == pytest.approx(expected, abs=1e-5)
