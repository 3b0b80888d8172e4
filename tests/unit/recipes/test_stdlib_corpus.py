"""The encoded text is the same with and without its cache, whatever state the cache is in."""

from __future__ import annotations

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


def _assert_right(corpus: Corpus) -> None:
    """Against the encoding of one file after another, without windows or a cache."""
    text = stdlib_text.read_sources(stdlib_text.stdlib_directory(), 200_000)
    vocabulary = stdlib_text.Vocabulary.train(text.train, 512)
    for windows, files in ((corpus.train, text.train), (corpus.validation, text.validation)):
        tokens = [token for content in files for token in vocabulary.encode(content)]
        count = len(tokens) // 32
        assert torch.equal(windows, torch.tensor(tokens[: count * 32], dtype=torch.int64).view(count, 32))
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


def test_processes_that_start_together_share_one_file(cache: Path) -> None:
    program = (
        "from workbench.recipes.stdlib_corpus import load_corpus as l; "
        "print(l(max_bytes=200_000, vocabulary=512, length=32).train.sum().item())"
    )
    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    sums = {process.communicate(timeout=120)[0] for process in started}
    assert sums == {f"{_load().train.sum().item()}\n".encode()}
    assert len(list(cache.iterdir())) == 1
