"""The trainers of transformers, accelerate and Lightning, observed: ``observed_trainers.py MODE OUT``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments

import workbench
from tests.programs.observed_script import network

STEPS = 6


class Digits(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": cross_entropy(self.layers(x), labels)}


class Logged(TrainerCallback):
    """What the trainer says itself."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **unused: Any) -> None:
        if "loss" in logs:
            self.found.append({name: float(logs[name]) for name in ("loss", "grad_norm")})


def samples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(8, generator=generator), "labels": index % 4} for index in range(2 * 4 * STEPS)]


def by_trainer(out: Path) -> list[dict[str, Any]]:
    logged, callback = Logged(), workbench.WorkbenchCallback(name="trainer")
    arguments = TrainingArguments(
        output_dir=str(out / "trainer"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        logging_steps=1,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    Trainer(Digits(), arguments, train_dataset=samples(), callbacks=[logged, callback]).train()
    (out / "run-0").write_text(str(callback.run.path))
    return logged.found


def by_accelerate(out: Path) -> list[dict[str, Any]]:
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = Digits()
    loader = torch.utils.data.DataLoader(samples() * accelerator.num_processes, batch_size=4)  # type: ignore[arg-type]
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    found, losses = [], []
    with workbench.observe(model, optimizer, name="accelerate") as run:
        (out / "run-0").write_text(str(run.path))
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch)["loss"]
                losses.append(accelerator.gather(loss.detach()).mean().item())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                run.step()
                found.append({"loss": sum(losses) / 2, "grad_norm": float(norm)})
                losses.clear()
    return found


def by_lightning(out: Path) -> list[dict[str, Any]]:
    import lightning.pytorch as lightning

    found: list[dict[str, Any]] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.digits = Digits()

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.digits(**batch)["loss"]
            mean = self.all_gather(loss.detach()).mean().item()
            if index % 2:
                found[-1]["loss"] = (found[-1]["loss"] + mean) / 2
            else:
                found.append({"loss": mean})
            return loss

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            found[-1]["grad_norm"] = float(sum(each.double().square().sum() for each in gradients)) ** 0.5

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = workbench.WorkbenchCallback(name="lightning")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_steps=STEPS,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=out,
    )
    data = samples() * ranks
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=4))  # type: ignore[arg-type]
    (out / "run-0").write_text(str(callback.run.path))
    return found


if __name__ == "__main__":
    directory = Path(sys.argv[2])
    by = {"trainer": by_trainer, "accelerate": by_accelerate, "lightning": by_lightning}
    expected = by[sys.argv[1]](directory)
    if os.environ.get("RANK", "0") == "0":
        (directory / "expected.json").write_text(json.dumps(expected))
