"""DeepSpeed's configuration file beside flags: what it sets, what contradicts, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.core.config import TrainSpec
from workbench.core.flags import FLAGS
from workbench.core.frameworks import framework
from workbench.engine.frameworks.deepspeed.checks import check_optimizer
from workbench.engine.frameworks.deepspeed.config_file import left, resolved
from workbench.errors import ConfigError
from workbench.report.words import command_line_flags
from workbench.run.resolve import Request, changed, resolve
from workbench.rundir import directory

CELL = "model = optimizer = dataset = criterion = None\n"
FILE = {
    "train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}},
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "eps": 1e-8}},
    "steps_per_print": 10,
    "tensorboard": {"enabled": False},
}
SAME = {
    "framework": "deepspeed",
    "plugin": "zero2",
    "batch_size": 16,
    "accumulate": 2,
    "clip": 1.0,
    "offload": True,
    "precision": "bf16",
    "lr": 0.01,
}


def asked(config: Any, **flags: Any) -> Request:
    return resolve({"ds_config": config, **flags}, cell=CELL, default_ranks=2)


def test_a_file_gives_the_spec_that_flags_give(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(FILE))
    found = asked(str(file))
    rest = json.loads(found.spec.plan.ds_config)
    assert rest == {
        "zero_optimization": {"overlap_comm": True},
        "optimizer": {"type": "AdamW", "params": {"eps": 1e-8}},
    }
    by_flags = resolve(SAME, cell=CELL, default_ranks=2).spec
    assert found.spec.replace(ds_config="") == by_flags
    assert asked(FILE).spec == found.spec, "in Python a dict"
    assert asked(str(file), plan="zero2 dp2", clip=1.0).spec == found.spec, "flags may say the same"
    assert "sets clip 1.0 (gradient_clipping)" in found.told[0]
    assert "gives the engine zero_optimization.overlap_comm;" in found.told[0]
    assert "steps_per_print is not used: the log has every step" in found.told[0]


def test_what_a_run_keeps_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    spec = asked(FILE).spec
    run = directory.create(spec, CELL)
    kept = json.loads((run / "ds_config.json").read_text())
    assert kept == resolved(spec)
    assert kept["train_batch_size"] == 16 and kept["train_micro_batch_size_per_gpu"] == 4
    assert kept["zero_optimization"]["overlap_comm"] and kept["zero_optimization"]["stage"] == 2
    assert kept["optimizer"] == {"type": "AdamW", "params": {"lr": 0.01, "eps": 1e-8}}
    assert resolve({}, config=run / "spec.toml", default_ranks=2).spec == spec, "without the file"
    assert changed(spec, {}, {"clip": 0.5}).plan.ds_config == spec.plan.ds_config
    assert changed(spec, {}, {"plan": "torch ddp2", "accumulate": 1}).plan.ds_config == ""
    words = command_line_flags(spec)
    assert words[words.index("--ds-config") + 1] == spec.plan.ds_config


def test_auto_leaves_a_value_to_the_flags() -> None:
    auto = {"train_batch_size": "auto", "gradient_clipping": "auto", "optimizer": {"type": "AdamW", "params": "auto"}}
    spec = asked(auto, batch_size=6, clip=0.5).spec
    assert (spec.batch_size, spec.clip, spec.plan.plugin) == (6, 0.5, "zero1")


def test_batches_are_those_of_deepspeed() -> None:
    micro = {"train_micro_batch_size_per_gpu": 4}
    assert asked({**micro, "gradient_accumulation_steps": 3}, ranks=2).spec.batch_size == 24
    assert asked({**micro, "train_batch_size": 24}, ranks=2).spec.accumulate == 3
    with pytest.raises(ConfigError, match=r"4 x gradient_accumulation_steps 2 x 2 ranks = 16 samples.*has 24"):
        asked({**micro, "train_batch_size": 24, "gradient_accumulation_steps": 2}, ranks=2)
    with pytest.raises(ConfigError, match="train_micro_batch_size_per_gpu 4 needs the number of ranks: pass -n"):
        asked(micro)
    with pytest.raises(ConfigError, match="train_batch_size, and the cell's dataloader has its own batch size"):
        resolve({"ds_config": {"train_batch_size": 8}}, cell=f"{CELL}dataloader = None\n", default_ranks=2)


ZERO = "zero_optimization"


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        ({"gradient_clipping": 1.0}, {"clip": 0.5}, r"gradient_clipping \(--clip 1.0\), and --clip says 0.5"),
        ({ZERO: {"stage": 2}}, {"plugin": "zero1"}, r"stage \(--plugin zero2\), and --plugin says zero1"),
        ({ZERO: {"stage": 2}}, {"plan": "zero1 dp2"}, r"stage \(--plugin zero2\), and --plugin says zero1"),
        ({"train_batch_size": 8}, {"batch_size": 16}, r"--batch-size 8\), and --batch-size says 16"),
        ({"gradient_accumulation_steps": 2}, {"accumulate": 1}, r"--accumulate 2\), and --accumulate says 1"),
        ({"optimizer": {"params": {"lr": 0.1}}}, {"lr": 0.2}, r"lr \(--lr 0.1\), and --lr says 0.2"),
        ({"fp16": {"enabled": True}}, {"precision": "bf16"}, r"fp16.enabled \(--precision fp16\), and --precision"),
        ({"fp16": {"enabled": False}}, {"precision": "fp16"}, "fp16.enabled is false, and --precision says fp16"),
        ({ZERO: {"offload_optimizer": {"device": "none"}}}, {"offload": True}, r"\(no --offload\), and --offload"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, {}, "enables both fp16 and bf16"),
        ({ZERO: {"stage": 0}}, {}, "ddp is not available with deepspeed: .* use --framework torch --plugin ddp"),
        ({ZERO: {"stage": 4}}, {}, "stage must be 1, 2 or 3, not 4"),
        ({ZERO: {"overlap_com": True}}, {}, "unknown key 'zero_optimization.overlap_com': did you mean 'overlap_comm'"),
        ({"gradient_cliping": 1}, {}, "unknown key 'gradient_cliping': did you mean 'gradient_clipping'"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "scheduler is not available: .* define lr_scheduler in the cell"),
        ({ZERO: {"offload_optimizer": {"device": "nvme"}}}, {}, "device must be .* not 'nvme': .* NVMe"),
        ({"tensorboard": {"enabled": True}}, {}, "tensorboard is not available: .* 'workbench export'"),
        ({"train_batch_size": "8"}, {}, "train_batch_size must be a whole number of at least 0, not '8'"),
        ({ZERO: {"overlap_comm": "yes"}}, {}, "zero_optimization.overlap_comm must be true or false, not 'yes'"),
        ({ZERO: {"reduce_bucket_size": 0}}, {}, "reduce_bucket_size must be a whole number of at least 1, not 0"),
        ({"fp16": {"min_loss_scale": 0.5}}, {}, "min_loss_scale must be a whole number of at least 1, not 0.5"),
        ({ZERO: True}, {}, "zero_optimization must be an object .* not True"),
        ({"gradient_clipping": 1.0}, {"framework": "torch"}, "not available with torch ddp: leave it out, or choose"),
    ],
)
def test_refused_files(config: dict[str, Any], flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(config, **flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ('{"a": 1,\n}', "is not valid JSON: .* line 2"),
        ('{"steps_per_print": 1, "steps_per_print": 2}', "the key 'steps_per_print' is there twice"),
        ('{"gradient_clipping": NaN}', "NaN is not a number"),
        ("[1]", "must hold an object .* not list"),
    ],
)
def test_broken_files(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "ds.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=f"--ds-config {file} {message}|--ds-config {file} is .*{message}"):
        asked(str(file))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"type": "SGD"}, r"optimizer.type SGD \(sgd\), and the optimizer is AdamW"),
        ({"type": "AdamW", "params": {"betas": [0.9, 0.95]}}, r"betas \[0.9, 0.95\], .* is \(0.9, 0.999\)"),
        ({"params": {"momentum": 0.9}}, "momentum 0.9, .* unknown to it"),
    ],
)
def test_an_optimizer_that_is_not_the_cells_is_refused(written: dict[str, Any], message: str) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    check_optimizer({"type": "AdamW", "params": {"eps": 1e-8, "betas": [0.9, 0.999]}}, optimizer)
    check_optimizer({"type": "Adam", "params": {"weight_decay": 0.01}}, optimizer)  # DeepSpeed's Adam decays as AdamW
    with pytest.raises(ConfigError, match=message):
        check_optimizer(written, optimizer)


def test_flags_take_a_file_and_a_spec_without_one_has_none() -> None:
    assert next(flag for flag in FLAGS if flag.option == "ds_config").names == ("--ds-config",)
    config = framework("deepspeed").config_file
    assert config is not None and config.option in framework("deepspeed").plugin("zero1").options
    assert left(TrainSpec.from_options({"framework": "deepspeed", "plugin": "zero1"})) == {}
