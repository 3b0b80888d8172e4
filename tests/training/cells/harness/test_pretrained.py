"""Cells that begin from a local directory: losses, gradients and weights are those of one process of transformers and
peft, and what ``save_pretrained`` writes is read by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.rank_pool import RankPool
from tests.training import directories
from tests.training.cells.harness.case import Case
from tests.training.cells.harness.trained import RANKS, train_case

DATA = """
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 64
dataset = [{"input_ids": i, "labels": i} for i in ids]
criterion = lambda outputs, batch: outputs.loss
"""
CELL = (
    """
import torch
pretrained = "{path}"
optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
"""
    + DATA
)
PLAIN = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(pretrained, torch_dtype=torch.float32, local_files_only=True).train()
{adapters}
optimizer = optimizer([p for p in model.parameters() if p.requires_grad])
losses, norms = train(globals())
torch.save({{n: p.detach() for n, p in {whole}.named_parameters()}}, "{path}/expected.pt")
"""
LORA = 'lora = {{"r": 4, "lora_alpha": 8, "target_modules": {targets}}}\n'
ADAPTERS = "import peft\nmodel = peft.get_peft_model(model, peft.LoraConfig(**lora))"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def case_of(path: Path, adapters: list[str] | None = None) -> Case:
    lora = LORA.format(targets=adapters) if adapters else ""
    plain = PLAIN.format(
        path=path,
        adapters=ADAPTERS if adapters else "",
        whole="model.merge_and_unload()" if adapters else "model",
    )
    return Case(cell=CELL.replace("{path}", str(path)) + lora, plain=plain)


def compare(pool: RankPool, case: Case, plan: str, path: Path, out: Path, **options: Any) -> Any:
    (right,) = pool.run(1, f"{RANKS}:plain", cell=case.cell, loop=case.plain, options=case.options("1 rank"))
    run, failure = train_case(pool, case, plan, final_checkpoint=True, **options)
    assert not failure
    assert run is not None
    np.testing.assert_allclose(run.metrics()["loss"], right["losses"], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(run.metrics()["grad_norm"], right["norms"], rtol=2e-3, atol=1e-6)
    assert right["losses"][-1] < right["losses"][0]
    expected = torch.load(path / "expected.pt", weights_only=True)
    again = AutoModelForCausalLM.from_pretrained(run.save_pretrained(out))
    found = dict(again.named_parameters())
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(
            found[name].detach(), wanted, rtol=2e-3, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    return run


@pytest.mark.parametrize("plan", ["1 rank", "ddp", "zero2", "torch ddp", "tp", "pp"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_directory_trains_as_one_process(kind: str, plan: str, pool: RankPool, tmp_path: Path) -> None:
    make = directories.llama if kind == "llama" else directories.gpt2
    path = make(
        tmp_path / "model", shards=plan in ("zero2", "tp"), dtype=torch.bfloat16 if plan == "pp" else torch.float32
    )
    compare(pool, case_of(path), plan, path, tmp_path / "out")


@pytest.mark.parametrize("plan", ["1 rank", "ddp", "zero1", "zero2", "torch ddp", "tp", "pp"])
def test_adapters_train_as_one_process_with_peft(plan: str, pool: RankPool, tmp_path: Path) -> None:
    path = directories.llama(tmp_path / "model")
    run = compare(pool, case_of(path, ALL), plan, path, tmp_path / "out")
    frozen = run.state_dict()["model.layers.0.self_attn.q_proj.base_layer.weight"]
    before = AutoModelForCausalLM.from_pretrained(path).model.layers[0].self_attn.q_proj.weight
    assert torch.equal(frozen, before), "only adapters are trained"
