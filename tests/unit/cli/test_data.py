"""``workbench data``: pack, check and look, as typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.tokens.packed import write_lines
from workbench.cli.main import main


def test_pack_check_and_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path / "a.jsonl", [f"a text of its own, number {number}" for number in range(50)] * 2)
    out = tmp_path / "tokens"
    command = ["data", "pack", str(file), "--tokenizer", "bytes", "--out", str(out), "--drop-duplicates"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "looking for duplicates: 1 of 1\npacking units: 1 of 1\n" in told
    assert f"{out}: 1,440 tokens of 50 texts in 1 shard (uint16), 50 duplicates left out" in told
    assert main(["data", "check", str(out)]) == 0
    assert "1 of 1 shards are as they were written" in capsys.readouterr().out
    assert main(["data", "look", str(out), "--length", "20", "--samples", "2"]) == 0
    told = capsys.readouterr().out
    assert "1,440 tokens of 50 texts, 29 per text\n72 sequences of 20; vocabulary of 257\n" in told
    assert told.count("\nsequence ") == 2 and "number" in told
    (out / "shard-00000.tokens").write_bytes(b"\0" * 2880)
    assert main(["data", "check", str(out)]) == 1
    assert "shard-00000.tokens is damaged" in capsys.readouterr().out


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "look", str(tmp_path)]) == 2
    assert "is no packed data set (index.json is missing): workbench data pack makes one" in capsys.readouterr().err
    assert main(["data", "pack", str(tmp_path), "--tokenizer", "bytes", "--out", str(tmp_path / "o")]) == 2
    assert "is a directory: name its files" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data"])
