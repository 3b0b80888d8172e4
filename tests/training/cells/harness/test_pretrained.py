"""Cells that begin from a local directory: losses, gradients and weights are those of one process of transformers and
peft, and what ``save_pretrained`` writes is read by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.rank_pool import RankPool
from tests.training import directories
from tests.training.cells.harness.case import PLANS, Case
from tests.training.cells.harness.trained import RANKS, train_case
from workbench.core.config import TrainSpec
from workbench.core.records import EventKind
from workbench.events.decode import of_kind
from workbench.recipes import language_data
from workbench.recipes.stdlib_llama import learning_rate_factor
from workbench.run.resolve import resolve
from workbench.run.run import Run
from workbench.rundir import checkpoints
from workbench.rundir import directory as run_directory
from workbench.tokens import texts

DATA = """
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 64
dataset = [{"input_ids": i, "labels": i} for i in ids]
criterion = lambda outputs, batch: outputs.loss
"""
CELL = (
    """
import torch
from safetensors.torch import load_file
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
    from transformers import AutoModelForCausalLM

    (right,) = pool.run(1, f"{RANKS}:plain", cell=case.cell, loop=case.plain, options=case.options("1 rank"))
    run, failure = train_case(pool, case, plan, final_checkpoint=True, **options)
    assert not failure
    assert run is not None
    np.testing.assert_allclose(run.metrics()["loss"], right["losses"], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(run.metrics()["grad_norm"], right["norms"], rtol=2e-3, atol=1e-6)
    expected = torch.load(path / "expected.pt", weights_only=True)
    before = AutoModelForCausalLM.from_pretrained(path).state_dict()
    assert any(not torch.allclose(before[name], weight, rtol=0.01, atol=0.01) for name, weight in expected.items())
    again = AutoModelForCausalLM.from_pretrained(run.save_pretrained(out))
    found = dict(again.named_parameters())
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(
            found[name].detach(), wanted, rtol=2e-3, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    return run


@pytest.mark.parametrize("plan", ["1 rank", "ddp", "zero2", "torch ddp", "torch fsdp", "torch pp", "tp", "pp"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_directory_trains_as_one_process(kind: str, plan: str, pool: RankPool, tmp_path: Path) -> None:
    make = directories.llama if kind == "llama" else directories.gpt2
    path = make(
        tmp_path / "model", shards=plan in ("zero2", "tp"), dtype=torch.bfloat16 if plan == "pp" else torch.float32
    )
    compare(pool, case_of(path), plan, path, tmp_path / "out")


@pytest.mark.parametrize(
    "plan", ["1 rank", "ddp", "zero1", "zero2", "torch ddp", "torch fsdp", "torch pp", "torch tp", "tp", "pp"]
)
def test_adapters_train_as_one_process_with_peft(plan: str, pool: RankPool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = directories.llama(tmp_path / "model")
    run = compare(pool, case_of(path, ALL), plan, path, tmp_path / "out")
    frozen = run.state_dict()["model.layers.0.self_attn.q_proj.base_layer.weight"]
    before = AutoModelForCausalLM.from_pretrained(path).model.layers[0].self_attn.q_proj.weight
    assert torch.equal(frozen, before), "only adapters are trained"


#: layers of other families that have adapters
LAYERS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "opt": ["q_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "bloom": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "falcon": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}


@pytest.mark.parametrize(("family", "plan"), [*((family, "tp") for family in LAYERS), ("gpt2", "torch tp")])
def test_adapters_of_split_layers_are_those_of_one_process(
    family: str, plan: str, pool: RankPool, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    path = directories.gpt2(path) if family == "gpt2" else directories.of_family(family, path)
    compare(pool, case_of(path, LAYERS[family]), plan, path, tmp_path / "out")


def test_the_adapter_alone_is_read_by_peft(pool: RankPool, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    path = directories.llama(tmp_path / "model")
    run, failure = train_case(pool, case_of(path, ALL), "tp", final_checkpoint=True)
    assert not failure
    assert run is not None
    merged = AutoModelForCausalLM.from_pretrained(run.save_pretrained(tmp_path / "merged"))
    adapter = run.save_pretrained(tmp_path / "adapter", merge=False)
    assert sorted(file.name for file in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert peft.PeftConfig.from_pretrained(adapter).base_model_name_or_path == str(path)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), adapter)
    tokens = torch.arange(16).view(2, 8)
    torch.testing.assert_close(model.eval()(tokens).logits, merged.eval()(tokens).logits, rtol=1e-4, atol=1e-4)


OWN = """
import peft, torch
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained("{path}")
config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
"""
WAYS = {
    "get_peft_model": "model = peft.get_peft_model(base, config)\nbefore = list(model.parameters())",
    "lora": "model, lora = base, config",
}
OPTIMIZERS = {
    "get_peft_model": "optimizer = torch.optim.SGD([p for p in before if p.requires_grad], lr=0.1)",
    "lora": "optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
}


def own_cell(path: Path, way: str) -> Case:
    parts = (OWN.replace("{path}", str(path)), WAYS[way], OPTIMIZERS[way], DATA)
    return Case(cell="\n".join(parts))


@pytest.mark.parametrize("plan", ["ddp", "zero2"])
def test_a_model_of_get_peft_model_trains_as_the_same_adapters_by_name(
    plan: str, pool: RankPool, tmp_path: Path
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    path = directories.llama(tmp_path / "model")
    case = own_cell(path, "get_peft_model")
    (right,) = pool.run(1, f"{RANKS}:plain", cell=case.cell, loop="", options=case.options("1 rank"))
    weights = []
    for way in WAYS:
        run, failure = train_case(pool, own_cell(path, way), plan, final_checkpoint=True)
        assert not failure
        assert run is not None
        np.testing.assert_allclose(run.metrics()["loss"], right["losses"], rtol=2e-4)
        weights.append(AutoModelForCausalLM.from_pretrained(run.save_pretrained(tmp_path / way)).state_dict())
        run.save_pretrained(tmp_path / f"{way}-adapter", merge=False)
        peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), tmp_path / f"{way}-adapter")
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5)


REFUSED = {
    "two models": ("ddp", "model = torch.nn.Linear(1, 1)", "defines model and pretrained"),
    "an optimizer": ("ddp", "optimizer = torch.optim.SGD([torch.zeros(1)], lr=1)", "as a function of them"),
    "no path": ("ddp", "pretrained = 3", "pretrained is a int"),
    "no directory": ("tp", 'pretrained = "absent/model"', "no such directory"),
    "an embedding": ("tp", 'lora = {"target_modules": ["embed_tokens"]}', "LoRA adapters of embed_tokens"),
    "dropout under torch": ("torch tp", 'lora = {"r": 2, "lora_dropout": 0.1}', "set lora_dropout=0"),
    "dropout": ("tp", 'lora = {"r": 2, "lora_dropout": 0.1}', "set lora_dropout=0"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_trained_is_refused_before_a_step(fault: str, pool: RankPool, tmp_path: Path) -> None:
    plan, line, message = REFUSED[fault]
    path = directories.llama(tmp_path / "model")
    case = case_of(path)
    run, failure = train_case(pool, Case(cell=f"{case.cell}\n{line}\n"), plan)
    assert message in failure
    assert run is None or not run.last_step


def test_plans_that_split_refuse_a_model_of_get_peft_model(pool: RankPool, tmp_path: Path) -> None:
    _, failure = train_case(pool, own_cell(directories.llama(tmp_path / "llama"), "get_peft_model"), "tp")
    assert "without get_peft_model" in failure


def plain_recipe(spec: TrainSpec) -> list[float]:
    """Losses of a loop of transformers and peft over the recipe's sequences, in their order."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    tokens = texts.encode(texts.find_files(spec.data), tokenizer)
    windows = language_data.cut_windows(tokens, spec.seq_len, "", "")
    train, _ = language_data.split_validation(windows, spec.seq_len)
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_pretrained(spec.model).train()
        if spec.lora_rank:
            torch.manual_seed(spec.seed)
            config = peft.LoraConfig(r=spec.lora_rank, lora_alpha=2 * spec.lora_rank)
            model = peft.get_peft_model(model, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=spec.lr, betas=(0.9, 0.95), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, spec.steps))
        losses = []
        for step in range(spec.steps):
            batch = train[step * spec.batch_size : (step + 1) * spec.batch_size]
            loss = model(input_ids=batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, spec.clip)
            optimizer.step()
            schedule.step()
            losses.append(float(loss))
    return losses


@pytest.mark.parametrize(("plan", "rank"), [("ddp", 0), ("zero2", 4), ("tp", 4), ("pp", 0)])
def test_the_recipe_fine_tunes_as_a_loop_of_transformers(plan: str, rank: int, pool: RankPool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = directories.llama(tmp_path / "model", vocab_size=258, max_position_embeddings=64)
    texts.byte_tokenizer().save_pretrained(path)
    (tmp_path / "some.txt").write_text("the cat sat on the mat. " * 200)
    options = {"recipe": "causal-lm", "model": str(path), "data": str(tmp_path / "some.txt"), "seq_len": 32}
    options |= {"lora_rank": rank, "steps": 4, "lr": 0.01, "shuffle": False, **PLANS[plan]}
    spec = resolve(options, default_ranks=2).spec
    directory = run_directory.create(spec, None)
    pool.run(2, f"{RANKS}:train", run=str(directory))
    run = Run(directory)
    run.raise_if_failed()
    np.testing.assert_allclose(run.metrics()["loss"], plain_recipe(spec), rtol=2e-4)
    validation = {event.name: event.value for event in of_kind(run.store.table("events"), EventKind.VALIDATION)}
    out = run.save_pretrained(tmp_path / "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    held_out = _held_out(spec, tokenizer)
    with torch.no_grad():
        assert validation["loss"] == pytest.approx(float(model(input_ids=held_out, labels=held_out).loss), rel=1e-3)
    assert run.samples()[-1][1].startswith(tokenizer.decode(held_out[0, :16]))


def _held_out(spec: TrainSpec, tokenizer: Any) -> torch.Tensor:
    tokens = texts.encode(texts.find_files(spec.data), tokenizer)
    return language_data.split_validation(language_data.cut_windows(tokens, 32, "", ""), 32)[1]


@pytest.mark.parametrize("plan", ["tp", "pp", "zero2"])
def test_weights_of_half_precision_train_in_half_precision(plan: str, pool: RankPool, tmp_path: Path) -> None:
    case = case_of(directories.llama(tmp_path / "model", dtype=torch.bfloat16), ALL)
    (right,) = pool.run(1, f"{RANKS}:plain", cell=case.cell, loop=case.plain, options=case.options("1 rank"))
    run, failure = train_case(pool, case, plan, precision="bf16", final_checkpoint=True)
    assert not failure
    assert run is not None
    np.testing.assert_allclose(run.metrics()["loss"], right["losses"], rtol=3e-2)
    assert run.load_model().lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("plan", ["zero2", "torch fsdp", "tp", "pp"])
def test_a_checkpoint_of_adapters_leaves_out_the_weights_of_the_directory(
    plan: str, pool: RankPool, tmp_path: Path
) -> None:
    """It is resumed, and read by one process, as one that holds them."""
    path = directories.llama(tmp_path / "model")
    case = case_of(path, ["q_proj", "down_proj"])
    whole, failure = train_case(pool, case, plan, final_checkpoint=True, save_every=2)
    assert not failure and whole is not None
    first = checkpoints.directory(whole.path, 2)
    stored = {name for file in first.glob("*.safetensors") for name in load_file(file) if name.startswith("weights/")}
    assert stored and all("lora_" in name for name in stored)
    (told,) = [event for event in of_kind(whole.event_rows(), EventKind.CHECKPOINT) if event.name == "without_base"]
    assert told.value["directory"] == str(path) and told.value["base_bytes"] > 40_000
    rest, failure = train_case(pool, case, plan, final_checkpoint=True, resume=f"{whole.path}@2")
    assert not failure and rest is not None
    np.testing.assert_allclose(rest.metrics()["loss"], whole.metrics()["loss"][2:], rtol=1e-5)
    expected = whole.load_model().state_dict()
    for name, tensor in rest.load_model().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
    assert rest.state_dict().keys() == {name for name, _ in rest.load_model().named_parameters()}
