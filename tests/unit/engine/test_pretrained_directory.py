"""A local Hugging Face directory that is not whole, or of another model, is refused by name; a whole one is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training import directories
from workbench.engine.pretrained.load import MappedWeights, load_pretrained
from workbench.engine.pretrained.lora import add_adapters
from workbench.errors import ConfigError


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


NORM = "model.norm.weight"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda path: (path / "config.json").unlink(), "cannot read .*config.json"),
    "broken config": (lambda path: (path / "config.json").write_text("{"), "is not valid JSON"),
    "another config": (lambda path: (path / "config.json").write_text("{}"), "it has no model_type"),
    "no architecture": (lambda path: edit_config(path, architectures=None), "must name one class"),
    "own code": (lambda path: edit_config(path, architectures=["MyModel"]), "has no model MyModel"),
    "another architecture": (lambda path: edit_config(path, architectures=["GPT2LMHeadModel"], model_type="gpt2"),
                             "tensors are not of a GPT2LMHeadModel"),
    "another size": (lambda path: edit_config(path, hidden_size=64), r"has the shape .* asks for"),
    "quantized": (lambda path: edit_config(path, quantization_config={"bits": 4}), "quantized"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "it has no weights"),
    "pickled weights": (lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"), "are pickled"),
    "cut weights": (cut, "is not a complete safetensors file"),
    "missing tensors": (lambda path: edit_weights(path, lambda w: w.pop(NORM)), f"are missing, such as {NORM}"),
    "extra tensors": (lambda path: edit_weights(path, lambda w: w.update(more=torch.ones(2))),
                      "1 tensors are not of a LlamaForCausalLM, such as more"),
    "whole numbers": (lambda path: edit_weights(path, lambda w: w.update({NORM: torch.ones(32, dtype=torch.int8)})),
                      "has the type I8"),
    "unknown type": (lambda path: edit_weights(path, lambda w: w.update({NORM: w[NORM].to(torch.float8_e4m3fn)})),
                     "has the type F8_E4M3"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_directory_that_cannot_be_trained_is_named(fault: str, tmp_path: Path) -> None:
    break_it, message = FAULTS[fault]
    path = directories.llama(tmp_path / "model")
    break_it(path)
    with pytest.raises(ConfigError, match=message) as raised:
        load_pretrained(path)
    assert raised.value.field == "pretrained"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = directories.llama(tmp_path / "model", shards=True)
    shard = sorted(path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ConfigError, match=f"names {shard.name}, which is not there"):
        load_pretrained(path)
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        load_pretrained("meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [directories.llama, directories.gpt2])
def test_weights_and_outputs_are_those_of_from_pretrained(
    make: Any, dtype: torch.dtype, split: bool, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    path = make(tmp_path / "model", dtype=dtype, shards=True)
    expected = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)
    model = load_pretrained(path, split=split)
    parameters = list(model.parameters())
    if split:
        MappedWeights(model).make_own(model, torch.float32)
    assert [id(p) for p in parameters] == [id(p) for p in model.parameters()]
    for (name, found), (other, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(found, wanted), name
    tokens = torch.arange(20).view(2, 10)
    logits = expected.eval()(tokens).logits
    del expected  # which may have views of the files itself
    for file in path.glob("*.safetensors"):  # nothing is a view of the file any more
        file.write_bytes(b"")
    assert torch.equal(model.eval()(tokens).logits, logits)


def test_the_body_alone_is_found_in_a_model_with_a_head(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Model

    whole = AutoModelForCausalLM.from_pretrained(directories.gpt2(tmp_path / "whole"))
    path = tmp_path / "body"
    whole.transformer.save_pretrained(path)
    assert isinstance(load_pretrained(path), GPT2Model)
    edit_config(path, architectures=["GPT2LMHeadModel"])
    model = load_pretrained(path)
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("q_proj", "lora is a str"),
        ({"rank": 4}, "LoraConfig refuses"),
        ({"r": 0}, "r.* should be a positive integer"),
        ({"target_modules": ["absent"]}, "absent"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save cannot be set"),
    ],
)
def test_adapters_that_cannot_be_made_are_named(lora: Any, message: str, tmp_path: Path) -> None:
    model = load_pretrained(directories.llama(tmp_path / "model"))
    with pytest.raises(ConfigError, match=message) as raised:
        add_adapters(model, lora)
    assert raised.value.field == "lora"


def test_adapters_are_added_once(tmp_path: Path) -> None:
    model = load_pretrained(directories.llama(tmp_path / "model"))
    add_adapters(model, {"r": 2})
    with pytest.raises(ConfigError, match="already has adapters"):
        add_adapters(model, {"r": 2})
