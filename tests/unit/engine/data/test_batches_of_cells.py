"""What a cell's own batches are: how many tokens they hold, and whether a plan can cut them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from workbench.core.config import ParallelPlan, TrainSpec
from workbench.engine.data.batches import counts_tokens, tokens_in
from workbench.engine.frameworks.torch_common.cells.workload import workload_from_cell
from workbench.errors import ConfigError
from workbench.telemetry.derive import batch_of


@pytest.mark.parametrize(
    ("batch", "per_sample", "tokens", "counted"),
    [
        ({"input_ids": torch.zeros(4, 7)}, None, 28, True),
        ({"input_ids": torch.zeros(4), "labels": torch.zeros(4)}, None, 4, False),
        ((torch.zeros(4, 7), torch.zeros(4)), None, 4, False),
        (torch.zeros(4, 7), None, 4, False),
        ({"pixel_values": torch.zeros(4, 1, 8, 8)}, 1, 4, False),
        ({"input_ids": torch.zeros(4, 7)}, 7, 28, True),
    ],
)
def test_tokens_are_counted_in_the_batch(batch: Any, per_sample: int | None, tokens: int, counted: bool) -> None:
    assert (tokens_in(batch, per_sample), counts_tokens(batch, per_sample)) == (tokens, counted)


class Counted(Dataset):
    """A dataset that is expensive to read."""

    reads: list[int] = []

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.reads.append(index)
        return {"input_ids": torch.zeros(5, dtype=torch.long)}


HEAD = """
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = torch.nn.MSELoss()
"""


def build(tmp_path: Path, tail: str, **options: Any) -> Any:
    file = tmp_path / "cell.py"
    file.write_text(HEAD + tail)
    return workload_from_cell(file, TrainSpec.from_options({"batch_size": 0, **options}))


def test_a_dataset_is_not_read_before_its_first_batch_and_then_once(tmp_path: Path) -> None:
    Counted.reads.clear()
    tail = "from tests.unit.engine.data.test_batches_of_cells import Counted\ndataset = Counted()\n"
    work = build(tmp_path, tail, batch_size=4)
    assert Counted.reads == []
    assert tokens_in(next(work.data.batches(0, 1)), work.tokens_per_sample) == 20
    assert Counted.reads == [0, 1, 2, 3]


LOADER = "dataloader = DataLoader(TensorDataset(torch.zeros(64, 1)), batch_size={size}, sampler={sampler})\n"


@pytest.mark.parametrize(
    ("size", "plan", "accumulate"),
    [
        (8, ParallelPlan(ranks=4), 2),
        (8, ParallelPlan(ranks=2, plugin="hybrid", pp=2, micro_batches=4), 2),
    ],
)
def test_a_loaders_batch_that_can_be_cut(tmp_path: Path, size: int, plan: ParallelPlan, accumulate: int) -> None:
    options = {"ranks": plan.ranks, "plugin": plan.plugin, "pp": plan.pp, "micro_batches": plan.micro_batches}
    work = build(tmp_path, LOADER.format(size=size, sampler=None), accumulate=accumulate, **options)
    dp = plan.mesh.dp
    shares = [next(work.data.batches(replica, dp))[0] for replica in range(dp)]
    assert [len(share) for share in shares] == [size // dp] * dp
    assert size // dp % (accumulate * plan.micro_batches) == 0, "each share can be split into equal parts"


def test_a_loaders_batch_must_be_divisible_under_a_pipeline_only(tmp_path: Path) -> None:
    build(tmp_path, LOADER.format(size=6, sampler=None), ranks=2, accumulate=4)
    words = r"batches of 6 samples .* 4 equal parts .* batch_size=8"
    pipeline = {"ranks": 2, "plugin": "hybrid", "pp": 2, "micro_batches": 2}
    with pytest.raises(ConfigError, match=words) as caught:
        build(tmp_path, LOADER.format(size=6, sampler=None), accumulate=2, **pipeline)
    assert caught.value.field == "dataloader"


def test_a_loader_that_is_none_after_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dataloader is None"):
        build(tmp_path, "dataset = TensorDataset(torch.zeros(64, 1))\ndataloader = None\n")


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        ("model = None", "model is a NoneType: define a torch.nn.Module"),
        ("model = torch.nn.Linear", "model is the class Linear, not an instance"),
        ("criterion = 3", "criterion is a int: it must be a function criterion"),
        ("criterion = torch.nn.MSELoss", "criterion is the class MSELoss, not an instance: it must be a function"),
        ("loss_fn = 'mse'", "loss_fn is a str: it must be a function loss_fn"),
        ("loss_fn = torch.nn.MSELoss()", "loss_fn is torch's MSELoss, which takes outputs and targets"),
        ("loss_fn = torch.nn.functional.mse_loss", "loss_fn is torch's mse_loss, which takes outputs and targets"),
    ],
)
def test_what_a_cell_cannot_be_trained_with(tmp_path: Path, tail: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(tmp_path, f"dataset = TensorDataset(torch.zeros(8, 1), torch.zeros(8, 1))\n{tail}\n", batch_size=4)
    assert told in str(refused.value) and refused.value.field in tail


def test_what_a_log_says_of_its_batches_is_read_without_trust() -> None:
    def events(*values: str) -> dict[str, np.ndarray]:
        columns = {"kind": ["data"] * len(values), "name": ["batch"] * len(values), "value": values}
        found = {name: np.array(column, dtype=object) for name, column in columns.items()}
        return found | {name: np.zeros(len(values)) for name in ("time", "step", "rank")}

    assert batch_of(events()) == (0, "tokens")
    assert batch_of(events("[]", "broken", '{"samples": 32, "unit": "samples"}')) == (32, "samples")
