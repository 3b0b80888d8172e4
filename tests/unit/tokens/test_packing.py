"""Packing: the tokens of every text once and in order, however the input is cut; going on; what is refused."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.tokens.packed import options, packed, write_lines
from workbench.errors import ConfigError, RunDirectoryError
from workbench.tokens import packing, texts
from workbench.tokens.packing import pack
from workbench.tokens.shards import check_sizes, check_sums, read_index

TEXTS = [f"text {number}: größe {'x' * (number % 37)}\n" for number in range(3000)]


def stored(directory: Path) -> list[str]:
    """The texts of a packed data set, read by hand."""
    tokenizer = texts.byte_tokenizer()
    found = []
    for shard in read_index(directory).shards:
        tokens = np.fromfile(directory / f"{shard.name}.tokens", dtype="<u2")
        ends = np.fromfile(directory / f"{shard.name}.ends", dtype="<i8")
        for part in np.split(tokens, ends[:-1]):
            assert part[-1] == tokenizer.eos_token_id
            found.append(tokenizer.decode(part[:-1]))
    return found


@pytest.mark.parametrize("unit_bytes", [1, 700, 10_000, 10**9])
def test_every_line_is_in_one_part_however_a_file_is_cut(tmp_path: Path, unit_bytes: int) -> None:
    file = write_lines(tmp_path / "a.jsonl", TEXTS[:100])
    parts = [part for unit in packing.cut([file], unit_bytes) for part in unit]
    assert [record for part in parts for record in texts.records(file, part)] == TEXTS[:100]


def test_lines_that_begin_at_an_edge_are_read_once(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", ["a", "bb", "c"])
    size = file.stat().st_size
    for edge in range(1, size):
        parts = [texts.Part(str(file), 0, edge), texts.Part(str(file), edge, size)]
        assert [record for part in parts for record in texts.records(file, part)] == ["a", "bb", "c"], edge


def test_all_kinds_of_files_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MB", 1000)
    lines = write_lines(tmp_path / "a.jsonl", TEXTS[:1000])
    text = tmp_path / "b.txt"
    text.write_text(TEXTS[1000])
    parquet = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pandas(pd.DataFrame({"text": TEXTS[1001:2000]})), parquet, row_group_size=100)
    small = [write_lines(tmp_path / f"d{number}.jsonl", [TEXTS[2000 + number]]) for number in range(5)]
    zipped = tmp_path / "e.jsonl.gz"
    zipped.write_bytes(gzip.compress(write_lines(tmp_path / "e", TEXTS[2005:2500]).read_bytes()))
    zstd = tmp_path / "f.jsonl.zst"
    with pa.output_stream(str(zstd), compression="zstd") as file:
        file.write(write_lines(tmp_path / "f", TEXTS[2500:]).read_bytes())
    index = pack(options(tmp_path / "out", lines, text, parquet, *small, zipped, zstd, shard_mb=5))
    assert stored(tmp_path / "out") == TEXTS
    assert len(index.shards) > 10
    assert index.texts == len(TEXTS) and index.dtype == "uint16" and index.vocabulary == 257
    assert index.tokens == sum(len(text.encode()) + 1 for text in TEXTS)
    assert not check_sums(tmp_path / "out", index)


def test_several_processes_pack_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_lines(tmp_path / "a.jsonl", TEXTS)
    monkeypatch.setattr(packing, "_MB", 1000)
    one = pack(options(tmp_path / "one", file, shard_mb=40))
    told: list[packing.Progress] = []
    two = pack(options(tmp_path / "two", file, shard_mb=40, processes=2), told.append)
    assert two.shards == one.shards and len(two.shards) > 2
    assert [each.done for each in told] == list(range(len(two.shards) + 1))


def test_equal_texts_are_packed_once_the_first_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MB", 1000)
    wanted = TEXTS[:200]
    file = write_lines(tmp_path / "a.jsonl", [*wanted, *reversed(wanted), wanted[3]])
    index = pack(options(tmp_path / "out", file, shard_mb=2, drop_duplicates=True))
    assert stored(tmp_path / "out") == wanted
    assert index.duplicates == 201


def test_a_packing_that_was_ended_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MB", 1000)
    file = write_lines(tmp_path / "a.jsonl", TEXTS)
    wanted = options(tmp_path / "out", file, shard_mb=40)

    def interrupted(progress: packing.Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(wanted, interrupted)
    with pytest.raises(ConfigError, match="its packing has not ended: run workbench data pack again"):
        read_index(tmp_path / "out")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tokens")}
    assert len(times) == 2
    (tmp_path / "out" / "shard-00002.tokens").write_bytes(b"begun")
    told: list[packing.Progress] = []
    pack(wanted, told.append)
    assert told[0].kept == 2
    assert stored(tmp_path / "out") == TEXTS
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in times.items())
    pack(wanted, told.append)
    assert told[-1].kept == told[-1].units, "all of it was there"
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_names_of_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    directory = packed(tmp_path, ["hello <|end|> world"])
    tokens = np.fromfile(directory / "shard-00000.tokens", dtype="<u2").tolist()
    end = texts.byte_tokenizer().eos_token_id
    assert len(tokens) == len("hello <|end|> world") + 1
    assert tokens.count(end) == 1 and tokens[-1] == end


def test_texts_and_chats_keep_their_order(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "b"}]
    file = tmp_path / "a.jsonl"
    lines = [{"text": "a"}, {"messages": chat}, {"text": "c"}, {"text": "d"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pack(options(tmp_path / "out", file))
    assert stored(tmp_path / "out") == ["a", "user: b\n", "c", "d"]


def test_a_tokenizer_that_splits_otherwise_is_another(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    file = write_lines(tmp_path / "a.jsonl", ["some words"])
    for name, split in (("one", False), ("two", True)):
        tokenizer = texts.byte_tokenizer()
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
        tokenizer.save_pretrained(tmp_path / name)
    pack(options(tmp_path / "out", file, tokenizer=str(tmp_path / "one")))
    with pytest.raises(ConfigError, match="holds another data set"):
        pack(options(tmp_path / "out", file, tokenizer=str(tmp_path / "two")))


def test_another_data_set_is_not_overwritten(tmp_path: Path) -> None:
    directory = packed(tmp_path, TEXTS[:10])
    other = write_lines(tmp_path / "other.jsonl", TEXTS[:5])
    with pytest.raises(ConfigError, match="holds another data set"):
        pack(options(directory, other))
    (directory / "index.json").unlink()
    with pytest.raises(ConfigError, match="holds part of another data set"):
        pack(options(directory, other))
    with pytest.raises(ConfigError, match="is a file"):
        pack(options(other, other))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\nno json\n', "a.jsonl: line 2 is not JSON"),
        ('{"text": "a"}\n\n[1]\n', "a.jsonl: line 3 is a list"),
        ('{"body": "a"}\n', 'line 1 has no text: it needs "text"'),
        ('{"text": ""}\n', None),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: str, message: str | None) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    if message is None:
        assert pack(options(tmp_path / "out", file)).tokens == 1, "an empty text is its end alone"
        return
    with pytest.raises(ConfigError, match=message):
        pack(options(tmp_path / "out", file))
    assert not (tmp_path / "out" / "index.json").exists()


def test_bad_input(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(ConfigError, match="there is no such file"):
        pack(options(tmp_path / "out", tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="there is no such directory"):
        pack(options(tmp_path / "out", file, tokenizer=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="at least 1"):
        pack(options(tmp_path / "out", file, shard_mb=0))
    damaged = tmp_path / "b.jsonl.gz"
    damaged.write_bytes(gzip.compress(os.urandom(5000))[:3000])
    with pytest.raises(ConfigError, match=r"b\.jsonl\.gz"):
        pack(options(tmp_path / "out", damaged))


def test_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_lines(tmp_path / "a.jsonl", ["a"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "write_whole", full)
    with pytest.raises(RunDirectoryError, match="No space left on device; the same command goes on from here"):
        pack(options(tmp_path / "out", file))


def test_damage_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MB", 1000)
    directory = packed(tmp_path, TEXTS[:500], shard_mb=10)
    index = read_index(directory)
    with (directory / "shard-00001.tokens").open("r+b") as file:
        file.write(b"\xff")
    assert not check_sizes(directory, index)
    assert check_sums(directory, index) == {
        "shard-00001": "shard-00001.tokens is damaged: its checksum is another than when it was written"
    }
    (directory / "shard-00000.ends").unlink()
    (directory / "shard-00001.tokens").write_bytes(b"")
    assert {name: why.split()[1] for name, why in check_sizes(directory, index).items()} == {
        "shard-00000": "is",
        "shard-00001": "has",
    }


@pytest.mark.parametrize("content", ["[]", "{}", "no", json.dumps({"version": 99}), json.dumps({"version": 1})])
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ConfigError, match=r"index\.json"):
        read_index(tmp_path)
    with pytest.raises(ConfigError, match="workbench data pack makes one"):
        read_index(tmp_path / "none")
