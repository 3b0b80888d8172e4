"""One model trained by HF Trainer, by Lightning and here, on two CPU ranks: lines of code, and whether curves agree.

The three programs stand in ``tests/benchmarks/same_model``. All read the same images in the same order, with a global
batch of 64; a plain loop of one process says which losses are right. Lightning is installed into a temporary folder
for as long as this runs.

    python tests/benchmarks/same_model.py
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "same_model"
EPOCHS, BATCH = 3, 64
sys.path[:0] = [str(ROOT), str(PROGRAMS)]

#: losses by step, and the accuracy after each epoch
Curves = tuple[list[float], list[float]]


def plain() -> Curves:
    """A loop of one process."""
    import torch
    from data import cnn, datasets  # type: ignore[import-not-found]

    train, test = datasets()
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, accuracies = [], []
    for _ in range(EPOCHS):
        for images, labels in torch.utils.data.DataLoader(train, batch_size=BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        images, labels = test.tensors
        with torch.no_grad():
            accuracies.append((model(images).argmax(-1) == labels).double().mean().item())
    return losses, accuracies


def of_transformers(folder: Path) -> Curves:
    """HF Trainer under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    _run([*launcher, __file__, "transformers", str(folder / "history.json")], folder)
    history: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    losses = [row["loss"] for row in history if "loss" in row]
    return losses, [row["eval_accuracy"] for row in history if "eval_accuracy" in row]


def of_lightning(folder: Path) -> Curves:
    """Lightning, which starts its second rank itself."""
    packages = folder / "packages"
    uv = ["uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(packages)]
    _run([*uv, "lightning==2.6.*", "lightning-utilities", "torchmetrics", "pytorch-lightning==2.6.*"], folder)
    _run([sys.executable, __file__, "lightning", str(folder)], folder, str(packages))
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows if row.get("loss")]
    return losses, [float(row["accuracy"]) for row in rows if row.get("accuracy")]


def of_workbench(folder: Path) -> Curves:
    """``%%dist_train``."""
    from IPython.core.interactiveshell import InteractiveShell

    os.environ["WORKBENCH_HOME"] = str(folder / "runs")
    os.environ["PYTHONPATH"] = str(PROGRAMS)
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "workbench")
    line = f"-n 2 --epochs {EPOCHS} --batch-size {BATCH} --eval-every 1ep --quiet"
    run: Any = shell.run_cell_magic("dist_train", line, (PROGRAMS / "with_workbench.py").read_text())
    run.wait()
    shell.run_line_magic("dist_down", "")
    accuracies = run.events().query("kind == 'validation' and name == 'accuracy' and step > 0")["value"]
    return run.metrics()["loss"].to_list(), [float(value) for value in accuracies]


def _run(command: list[str], folder: Path, path: str = "") -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)]))}
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-4000:]}")


def _lines(name: str) -> int:
    """Lines of the program that are not empty; of a cell the line of the magic counts too."""
    text = (PROGRAMS / f"with_{name}.py").read_text()
    return sum(bool(line.strip()) for line in text.splitlines()) + (name == "workbench")


def main() -> None:
    from tests.benchmarks.machine import describe_machine

    print(describe_machine())
    right, accuracies = plain()
    print(f"{'one process':13} {len(right)} steps, accuracy {accuracies[-1]:.4f}")
    for name, train in (("workbench", of_workbench), ("lightning", of_lightning), ("transformers", of_transformers)):
        with tempfile.TemporaryDirectory() as folder:
            losses, found = train(Path(folder))
        apart = np.abs(np.array(losses) - right).max() if len(losses) == len(right) else np.nan
        print(f"{name:13} {_lines(name)} lines, {len(losses)} steps, loss differs by at most {apart:.1e}, "
              f"accuracy {found[-1]:.4f}")  # fmt: skip


def as_program(name: str, place: Path) -> None:
    """What a rank of another system runs."""
    if name == "transformers":
        from with_transformers import main as train  # type: ignore[import-not-found]

        history = train()
        if os.environ["RANK"] == "0":
            place.write_text(json.dumps(history))
    else:
        from lightning.pytorch.loggers import CSVLogger  # type: ignore[import-not-found]
        from with_lightning import main as fit  # type: ignore[import-not-found]

        fit(CSVLogger(place, name="logs", version="", flush_logs_every_n_steps=1))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        as_program(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
