"""The encoded text is the same with and without its cache, whatever state the cache is in."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.recipes import stdlib_corpus, stdlib_text
from workbench.recipes.stdlib_corpus import Corpus, load_corpus


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return stdlib_corpus.cache_directory()


def _load() -> Corpus:
    return load_corpus(max_bytes=200_000, vocabulary=512, length=32)


@functools.cache
def _encoded() -> tuple[stdlib_text.Vocabulary, torch.Tensor, torch.Tensor]:
    """One file after another, without windows or a cache: vocabulary, tokens to train with and to validate with."""
    text = stdlib_text.read_sources(stdlib_text.stdlib_directory(), 200_000)
    vocabulary = stdlib_text.Vocabulary.train(text.train, 512)
    train, validation = (
        torch.tensor([token for content in files for token in vocabulary.encode(content)])
        for files in (text.train, text.validation)
    )
    return vocabulary, train, validation


def _assert_right(corpus: Corpus) -> None:
    vocabulary, *texts = _encoded()
    for windows, tokens in zip((corpus.train, corpus.validation), texts, strict=True):
        count = len(tokens) // 32
        assert torch.equal(windows, tokens[: count * 32].view(count, 32))
    assert corpus.vocabulary.encode("import os") == vocabulary.encode("import os")
    assert corpus.vocabulary.size == 512


def test_the_second_load_reads_what_the_first_wrote(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _assert_right(_load())
    assert len(list(cache.iterdir())) == 1

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patched:
        patched.setattr(stdlib_corpus, "_encode", refuse)
        found = _load()
    _assert_right(found)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_a_damaged_file_is_replaced(cache: Path, content: bytes) -> None:
    _load()
    (file,) = cache.iterdir()
    file.write_bytes(content)
    _assert_right(_load())
    assert np.load(file)["vocabulary"].shape == ()


def test_other_sources_are_encoded_anew_and_replace_the_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _load()
    (before,) = cache.iterdir()
    read = stdlib_text.read_sources

    def changed(directory: Path, max_bytes: int) -> stdlib_text.Text:
        text = read(directory, max_bytes)
        return stdlib_text.Text(train=[*text.train, "x = 1\n"], validation=text.validation)

    monkeypatch.setattr(stdlib_text, "read_sources", changed)
    _load()
    (after,) = cache.iterdir()
    assert after.name != before.name


def test_without_a_directory_to_write_to_the_text_is_encoded_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _assert_right(_load())
    assert (tmp_path / "file").read_text() == ""


def test_a_disk_that_fills_up_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(file: object, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fill)
    _assert_right(_load())
    assert not list(cache.iterdir())


#: three processes that have imported everything load the text at the same time
TOGETHER = """
import os
from workbench.recipes.stdlib_corpus import load_corpus
ready, begin = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.close(begin)
        os.read(ready, 1)  # until the parent closes it
        os.write(1, f"{load_corpus(max_bytes=200_000, vocabulary=512, length=32).train.sum().item()}\\n".encode())
        os._exit(0)
os.close(begin)
for _ in range(3):
    assert os.wait()[1] == 0
"""


def test_processes_that_start_together_share_one_file(cache: Path) -> None:
    told = subprocess.run([sys.executable, "-c", TOGETHER], stdout=subprocess.PIPE, check=True).stdout.split()
    assert told == [f"{_load().train.sum().item()}".encode()] * 3
    assert len(list(cache.iterdir())) == 1
