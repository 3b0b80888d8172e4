"""What recipes declare is what they build, and what is missing is said."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workbench.core.config import TrainSpec
from workbench.core.recipe import check_plan, recipe, recipes
from workbench.errors import ConfigError
from workbench.recipes import digits_vit, stdlib_llama, stdlib_text

EVERY_SIZE = [(name, size) for name, found in recipes().items() for size in found.sizes]


@pytest.mark.parametrize(("name", "size"), EVERY_SIZE)
def test_the_declared_shape_is_the_model_s(name: str, size: str) -> None:
    import transformers

    module = importlib.import_module(f"workbench.recipes.{name.replace('-', '_')}")
    config = module.make_config(size)
    shape = recipe(name).shape(size)
    kind = transformers.LlamaForCausalLM if name == "stdlib-llama" else transformers.ViTForImageClassification
    with torch.device("meta"):
        model = kind(config)
    assert config.num_hidden_layers == shape.layers
    assert config.hidden_size == shape.hidden
    assert config.num_attention_heads == shape.heads
    assert getattr(config, "num_key_value_heads", config.num_attention_heads) == shape.kv_heads
    if name == "stdlib-llama":
        assert model.lm_head.weight.shape == (shape.vocabulary, shape.hidden)
        assert config.max_position_embeddings == shape.sequence_length
        assert shape.vocabulary % (64 * 4) == 0, "Colossal-AI would pad it at --tp 4"
    else:
        assert model.classifier.weight.shape == (shape.vocabulary, shape.hidden)
        assert model.vit.embeddings.position_embeddings.shape[1] == shape.sequence_length
    for count in (shape.heads, shape.kv_heads, shape.layers):
        assert count % 4 == 0


def test_sizes_are_what_their_names_say() -> None:
    import transformers

    counts = {}
    for size in recipe("stdlib-llama").sizes:
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(stdlib_llama.make_config(size))
        counts[size] = sum(p.numel() for p in model.parameters())
    assert counts["tiny"] < 3e6 < counts["small"] < 1e8
    assert 0.95e9 < counts["1b"] < 1.1e9


@pytest.mark.parametrize(("name", "size"), EVERY_SIZE)
def test_defaults_make_a_spec_on_one_two_and_four_ranks(name: str, size: str) -> None:
    chosen = recipe(name)
    for ranks in (1, 2, 4):
        options = {"recipe": name, "size": size, "ranks": ranks, **chosen.defaults[size]}
        check_plan(TrainSpec.from_options(options))
    assert chosen.default_size in chosen.sizes


def test_the_same_weights_and_data_each_time_and_no_global_state() -> None:
    spec = TrainSpec.from_options({"recipe": "stdlib-llama", **recipe("stdlib-llama").defaults["tiny"]})
    before = torch.get_rng_state()
    first, second = stdlib_llama.build(spec), stdlib_llama.build(spec)
    assert torch.equal(before, torch.get_rng_state())
    for (name, one), two in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    batch, again = next(first.data.batches(0, 1)), next(second.data.batches(0, 1))
    assert torch.equal(batch["input_ids"], again["input_ids"])
    assert batch["input_ids"].shape == (8, 128)


def test_another_process_makes_the_same_vocabulary() -> None:
    program = (
        "from workbench.recipes import stdlib_text as s; t = s.read_sources(s.stdlib_directory(), 300_000); "
        "v = s.Vocabulary.train(t.train, 1024); print(hash(tuple(v.encode(t.train[0]))))"
    )
    found = {subprocess.check_output([sys.executable, "-c", program], timeout=300) for _ in range(3)}
    assert len(found) == 1


def test_text_comes_back_from_tokens() -> None:
    text = stdlib_text.read_sources(stdlib_text.stdlib_directory(), 200_000)
    vocabulary = stdlib_text.Vocabulary.train(text.train, 1024)
    sample = 'class Größe:\n    def add(self, x=1):\n        return "€" + x\n'
    tokens = vocabulary.encode(sample)
    assert vocabulary.decode(tokens) == sample
    assert max(tokens) < 1024
    windows = torch.from_numpy(vocabulary.encode_files(text.train)[:6400].astype("int64")).view(100, 64)
    assert 1.5 < stdlib_text.measure_bytes_per_token(vocabulary, windows) < 5


def test_validation_files_are_others_than_training_files() -> None:
    text = stdlib_text.read_sources(stdlib_text.stdlib_directory(), 3_000_000)
    assert not {t for t in text.train if t} & {t for t in text.validation if t}
    share = sum(map(len, text.validation)) / sum(map(len, text.train))
    assert 0.01 < share < 0.25


def test_files_are_few_kinds_and_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("a.py", "json/b.py", "site-packages/c.py", "test/d.py", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    assert sorted(stdlib_text.list_source_files(tmp_path)) == ["a.py", "json/b.py"]


def test_a_standard_library_without_sources_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdlib_text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match=rf"{tmp_path} of .* has only 0 bytes"):
        recipe("stdlib-llama").check_data()


def test_digits_without_scikit_learn_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise digits_vit.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(digits_vit.importlib.metadata, "distribution", missing)
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        recipe("digits-vit").check_data()


def test_digits_are_scikit_learn_s() -> None:
    from sklearn.datasets import load_digits

    images, digits = digits_vit.load_digits()
    expected = load_digits()
    assert torch.equal((images.view(-1, 8, 8) + 1) * 8, torch.tensor(expected.images, dtype=torch.float32))
    assert digits.tolist() == expected.target.tolist()


@pytest.mark.parametrize("learning_rate_factor", [stdlib_llama.learning_rate_factor, digits_vit.learning_rate_factor])
@pytest.mark.parametrize("steps", [1, 2, 20, 500])
def test_the_learning_rate_rises_then_falls(learning_rate_factor, steps: int) -> None:
    values = [learning_rate_factor(step, steps) for step in range(steps + 1)]
    peak = values.index(max(values))
    assert all(0 <= value <= 1 for value in values)
    assert values[0] > 0
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_reading_recipes_imports_no_torch() -> None:
    program = (
        "import sys; from workbench.core.recipe import recipes; "
        "[r.check_data() for r in recipes().values()]; print('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], timeout=300).strip() == b"False"
