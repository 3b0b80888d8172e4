"""The files of a checkpoint: who computes checksums, and what these find."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.core.config import ParallelPlan
from workbench.errors import RunDirectoryError
from workbench.rundir import checkpoints


def test_each_rank_computes_the_checksum_of_its_own_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0, which all others wait for, reads descriptions only when it makes the checkpoint."""
    import torch

    from workbench.engine.state.checkpoint_files import ShardWriter, rank_file, write_index
    from workbench.engine.state.layout import Place

    path = tmp_path / "step-000001"
    path.mkdir()
    for rank in (0, 1):
        writer = ShardWriter(path, rank)
        writer.add("weights/w", torch.full((2, 3), float(rank)), Place((4, 3), 0, ((2 * rank, 2),)))
        writer.write({})
    read: list[str] = []
    digest = checkpoints.digest
    monkeypatch.setattr(checkpoints, "digest", lambda file: (read.append(file.name), digest(file))[1])
    write_index(path, step=1, ranks=2, plan=ParallelPlan(ranks=2), state={}, asked=False)
    assert read == [rank_file(0, "json"), rank_file(1, "json")]
    names = sorted(file.name for file in path.iterdir() if file.name != checkpoints.INDEX_FILE)
    assert list(checkpoints.read_index(path)["files"]) == names
    checkpoints.verify(path)
    tensors = path / rank_file(1, "safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    with pytest.raises(RunDirectoryError, match=r"rank-00001\.safetensors"):
        checkpoints.verify(path)
