"""The recipe ``causal-lm``: what data it reads, how they become sequences, and what it refuses before a rank starts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.training import directories
from workbench.core.config import TrainSpec
from workbench.core.recipe import check_plan, recipe
from workbench.errors import ConfigError
from workbench.recipes import causal_lm, stdlib_corpus
from workbench.run.resolve import resolve
from workbench.tokens import texts

TEXT = "The cat sat on the mat. Größe €\n" * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = directories.llama(tmp_path_factory.mktemp("made") / "model", vocab_size=257, max_position_embeddings=128)
    texts.byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "some.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def spec_of(model: Path | str, data: Path | str, **options: Any) -> TrainSpec:
    chosen = recipe("causal-lm").defaults[""]
    return TrainSpec.from_options({"recipe": "causal-lm", **chosen, "model": str(model), "data": str(data), **options})


def refusal(spec: TrainSpec) -> str:
    with pytest.raises(ConfigError) as raised:
        check_plan(spec)
        causal_lm.build(spec)
    return str(raised.value)


def test_bytes_come_back_from_their_tokens() -> None:
    tokenizer = texts.byte_tokenizer()
    assert len(tokenizer) == 257
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert len(tokenizer(TEXT)["input_ids"]) == len(TEXT.encode())
    assert set(tokenizer(TEXT)) == {"input_ids", "attention_mask"}, "what a causal model takes"


def test_texts_are_packed_with_an_end_after_each(tmp_path: Path) -> None:
    tokenizer = texts.byte_tokenizer()
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "line"}) + "\n\n" + json.dumps({"messages": chat}) + "\n")
    pq.write_table(pa.table({"id": [1, 2], "text": ["column", "two"]}), tmp_path / "c.parquet")
    files = texts.find_files(f"{tmp_path}/a.txt, {tmp_path}/[bc].*")
    tokens = texts.encode(files, tokenizer)
    expected = ["plain", "line", "user: Hi\nassistant: Ho\n", "column", "two"]
    assert tokenizer.decode(tokens.tolist()) == "".join(f"{each}<|end|>" for each in expected)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    again = tokenizer.decode(texts.encode([tmp_path / "b.jsonl"], tokenizer).tolist())
    assert again == "line<|end|>[user]Hi[assistant]Ho<|end|>"


def test_sequences_are_of_one_length_and_the_last_ones_validate(model: Path, text: Path) -> None:
    before = torch.get_rng_state()
    workload = causal_lm.build(spec_of(model, text, seq_len=32, lora_rank=2))
    assert torch.equal(before, torch.get_rng_state())
    count = (len(TEXT.encode()) + 1) // 32
    held_out = workload.evaluate.windows
    assert workload.data.dataset.shape == (count - count // 20, 32)
    assert held_out.shape == (count // 20, 32)
    tokens = texts.encode([text], workload.tokenizer)
    assert torch.cat([workload.data.dataset, held_out]).flatten().tolist() == tokens[: count * 32].tolist()
    trained = {name for name, p in workload.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == sum(len(group["params"]) for group in workload.optimizer.param_groups)


def test_a_run_that_counts_epochs_trains_every_sequence_with_a_rate_that_falls_to_its_end(
    model: Path, text: Path
) -> None:
    workload = causal_lm.build(spec_of(model, text, seq_len=32, lr=1.0, batch_size=4, steps=0, epochs=3))
    sequences = len(workload.data.dataset)
    assert sequences % 4, "the last batch of an epoch is a smaller one"
    assert workload.data.batches_through(1) == math.ceil(sequences / 4)
    steps = 3 * math.ceil(sequences / 4)
    warm_up = max(1, steps // 20)
    rates = []
    for _ in range(steps):
        rates.append(workload.lr_scheduler.get_last_lr()[0])
        workload.optimizer.step()
        workload.lr_scheduler.step()
    turns = np.pi * (np.arange(warm_up, steps) - warm_up) / (steps - warm_up)
    np.testing.assert_allclose(rates[warm_up:], 0.1 + 0.9 * (1 + np.cos(turns)) / 2)
    assert rates[0] == pytest.approx(1 / warm_up)


def test_a_configuration_gives_random_weights_and_single_bytes(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    spec = spec_of(tmp_path / "config.json", text)
    check_plan(spec)
    first, second = causal_lm.build(spec), causal_lm.build(spec)
    assert len(first.tokenizer) == 257
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert first.tokens_per_sample == 128, "what the model allows"


def test_relative_paths_mean_the_notebook_s_directory(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"recipe": "causal-lm", "model": str(model), "data": "some.txt,*.txt"}
    spec = resolve(options, default_ranks=1).spec
    assert spec.data == f"{text},{tmp_path}/*.txt"
    assert spec.name == "causal-lm"


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.txt", "is empty"),
        ("\n\n", "a.jsonl", "contains no text"),
        ('{"body": "x", "id": 1}', "a.jsonl", 'line 1 has no text: it needs "text", or "messages".* has body, id'),
        ('{"messages": [{"role": "user"}]}', "a.jsonl", "line 1 has no text"),
        ('{"text": "fine"}\n{"text": 3}', "a.jsonl", "line 2 has no text"),
        ('{"text": "fine"}\nnot json', "a.jsonl", "line 2 is not JSON"),
        ("[1]", "a.jsonl", "line 1 is a list"),
        ("PAR", "a.parquet", "is not a parquet file"),
        ("short", "a.txt", "has 6 tokens, too few for one sequence of 32"),
        ("x" * 40, "a.txt", "one sequence of --seq-len 32, and two are needed"),
        ("x" * 100, "a.txt", "cannot fill|batch"),
    ],
)
def test_data_that_cannot_be_trained_are_named(
    content: str, name: str, message: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        spec = spec_of(model, tmp_path / name, seq_len=32)
        check_plan(spec)
        causal_lm.build(spec)


def test_files_that_are_no_text_are_named(model: Path, tmp_path: Path) -> None:
    assert "there is no such file" in refusal(spec_of(model, tmp_path / "absent*.txt"))
    assert "is a directory" in refusal(spec_of(model, tmp_path))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in refusal(spec_of(model, tmp_path / "a.txt"))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "b.parquet")
    assert 'needs "text", or "messages"' in refusal(spec_of(model, tmp_path / "b.parquet"))


def test_models_and_lengths_that_cannot_be_trained_are_named(model: Path, text: Path, tmp_path: Path) -> None:
    assert "needs --model" in refusal(spec_of("", text))
    assert "needs --data" in refusal(spec_of(model, ""))
    assert "no such directory" in refusal(spec_of("meta-llama/absent", text))
    assert "the model has 128 positions" in refusal(spec_of(model, text, seq_len=129))
    assert "at least 2 tokens" in refusal(spec_of(model, text, seq_len=1))
    bare = directories.llama(tmp_path / "bare")
    assert "has no tokenizer" in refusal(spec_of(bare, text))
    texts.byte_tokenizer().save_pretrained(bare)
    assert "the tokenizer has 257 tokens" in refusal(spec_of(bare, text))
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    assert "no causal language model" in refusal(spec_of(bare, text))


def test_options_of_the_recipe_are_for_no_other(model: Path) -> None:
    with pytest.raises(ConfigError, match="--lora-rank is for the recipe causal-lm: recipe stdlib-llama brings"):
        resolve({"recipe": "stdlib-llama", "lora_rank": 4}, default_ranks=1)
    cell = "model = optimizer = dataset = loss_fn = None"
    with pytest.raises(ConfigError, match="--model is for the recipe causal-lm: a cell defines"):
        resolve({"model": str(model)}, cell=cell, default_ranks=1)
    with pytest.raises(ConfigError, match="leave out --size"):
        resolve({"recipe": "causal-lm", "size": "tiny", "model": "m", "data": "d"}, default_ranks=1)


def test_a_plan_is_checked_without_a_tensor_library(model: Path, text: Path) -> None:
    program = (
        "import sys; from workbench.run.resolve import resolve; "
        f"resolve({{'recipe': 'causal-lm', 'model': {str(model)!r}, 'data': {str(text)!r}}}, default_ranks=1); "
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], timeout=300).strip() == b"False"


@pytest.mark.parametrize(("max_bytes", "length"), [(1, 16), (200_000, 10**9)])
def test_too_little_text_of_the_standard_library_is_named(
    max_bytes: int, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"text in .* bytes of the standard library (is empty|has .* too few)"):
        stdlib_corpus.load_corpus(max_bytes=max_bytes, vocabulary=512, length=length)
