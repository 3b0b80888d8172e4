"""The starter project of ``workbench new``: a spec file, a cell and a notebook that train without changes."""

from __future__ import annotations

from pathlib import Path

import nbformat

from workbench.core.config import TrainSpec
from workbench.errors import RunDirectoryError
from workbench.rundir.directory import CELL_FILE

SPEC = """\
# What to train and how: `workbench train {name}/spec.toml`, or %dist_train in notebook.ipynb.
# All options: `workbench train --help`, or %dist_train? in a notebook. Flags override this file.
name = "{name}"
steps = 200
batch_size = 64     # global: samples per step over all ranks
lr = 3e-3
shuffle = true
seed = 1024

[plan]
ranks = 2           # number of processes; with GPUs, one per GPU
plugin = "ddp"      # ddp, zero1, zero2, gemini; or hybrid with tp and pp, for the models that it supports

[monitor]
level = "full"      # off, light, full
"""

CELL = '''\
"""The model, in plain PyTorch. This file runs on every rank.

It defines model, optimizer, dataset and criterion; lr_scheduler is optional. Each rank reads its share of `dataset`.
"""

import torch
from sklearn.datasets import load_digits

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
dataset = torch.utils.data.TensorDataset(images, labels)

model = torch.nn.Sequential(
    torch.nn.Linear(64, 128),
    torch.nn.GELU(),
    torch.nn.Linear(128, 10),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
criterion = torch.nn.CrossEntropyLoss()
'''

_TRAIN = """\
# cell.py is in the folder of the spec, so it runs on every rank and defines the model
run = %dist_train --config spec.toml --steps {steps} --lr {lr} -n {n} --wait"""


def write(folder: Path) -> list[Path]:
    """Write the project into ``folder``, whose last part is its name, and return the paths of its files.

    Raises ``ConfigError`` for a name that a run cannot have, and ``RunDirectoryError`` when the folder is not empty or
    cannot be written. Never overwrites a file.
    """
    name = folder.absolute().name
    TrainSpec(name=name)  # the spec's own check of names
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirectoryError(f"{folder} already exists and is not empty: choose another name, or move it away")
    texts = {
        "spec.toml": SPEC.format(name=name),
        CELL_FILE: CELL,
        "notebook.ipynb": nbformat.writes(notebook(name)) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            with (folder / file).open("x", encoding="utf-8") as written:
                written.write(text)
    except OSError as error:
        raise RunDirectoryError(f"cannot write the project {folder}: {error.strerror}") from error
    return [folder / file for file in texts]


def notebook(name: str) -> nbformat.NotebookNode:
    """Return the project's notebook, which trains, shows metrics, lists runs and writes a report."""
    parameters = nbformat.v4.new_code_cell("n = 2\nsteps = 200\nlr = 3e-3", metadata={"tags": ["parameters"]})
    cells = [
        nbformat.v4.new_markdown_cell(
            f"# {name}\n\nThe model is in `cell.py`, the options of the training are in `spec.toml`. Run all cells. "
            "Then change one of the two files and run the training cell again: both runs are kept in `runs/`."
        ),
        parameters,
        nbformat.v4.new_code_cell("%load_ext workbench"),
        nbformat.v4.new_code_cell(_TRAIN),
        nbformat.v4.new_code_cell("run.metrics().tail()"),
        nbformat.v4.new_code_cell("%dist_runs"),
        nbformat.v4.new_markdown_cell("With two or more runs, `%dist_compare` compares the newest two."),
        nbformat.v4.new_code_cell("%dist_report"),
        nbformat.v4.new_code_cell("%dist_down"),
    ]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"  # fixed ids, so that equal projects have equal bytes
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)
