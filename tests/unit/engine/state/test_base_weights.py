"""Frozen weights that a checkpoint leaves out: which they are, and that their files are what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workbench.engine.pretrained.base import BaseTensor, fingerprint
from workbench.engine.state.base_weights import BaseWeights, check_files
from workbench.engine.state.layout import Place, RankState, Slot, Target
from workbench.errors import RunDirectoryError


def held_of(weights: dict[str, torch.Tensor], updated: list[torch.Tensor]) -> RankState:
    slots = [
        Slot(name, Target(weight, Place.whole(weight.shape)), (), weight, weight.shape[0], True)
        for name, weight in weights.items()
    ]
    return RankState(slots=slots, optimizer=torch.optim.SGD(updated, lr=1))


def test_what_an_optimizer_updates_is_kept_and_so_is_all_once_code_has_changed_a_frozen_weight(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    weights = {name: torch.zeros(4, 2) for name in ("frozen", "trained", "adapter")}
    base = BaseWeights({name: BaseTensor(file, name, (4, 2)) for name in ("frozen", "trained")})
    held = held_of(weights, [weights["trained"], weights["adapter"]])
    assert not base.are_unchanged(held), "nobody has said yet that they are those of the directory"
    base.watch(held)
    weights["trained"].add_(1)
    assert base.are_unchanged(held) and base.left_out(held) == {"frozen"}
    found = base.in_index({"weights/trained": {}, "weights/adapter": {}})
    assert list(found["tensors"]) == ["weights/frozen"] and found["files"] == {str(file): fingerprint(file)}
    weights["frozen"].mul_(2)
    assert not base.are_unchanged(held)


@pytest.mark.parametrize("size", [100, 1 << 20, 5_000_000])
def test_a_changed_or_absent_file_is_named(size: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    content = bytearray(torch.randint(256, (size,), dtype=torch.uint8).numpy().tobytes())
    file.write_bytes(content)
    known = {str(file): fingerprint(file)}
    check_files(tmp_path / "step-000001", known)
    file.write_bytes(bytes(255 - byte for byte in content[: size // 2]) + content[size // 2 :])
    with pytest.raises(RunDirectoryError, match=r"model\.safetensors holds other weights than those"):
        check_files(tmp_path / "step-000001", known)
    file.unlink()
    with pytest.raises(RunDirectoryError, match="which cannot be read"):
        check_files(tmp_path / "step-000001", known)
