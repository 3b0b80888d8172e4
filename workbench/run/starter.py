"""What ``workbench new`` writes: a project that trains at once, to be changed from there."""

from __future__ import annotations

from pathlib import Path

import nbformat

from workbench.core.config import TrainSpec
from workbench.errors import RunDirectoryError
from workbench.rundir.directory import CELL_FILE

SPEC = """\
# What to train and how: `workbench train {name}/spec.toml`, or %dist_train in notebook.ipynb.
# Every key: `workbench train --help`, or %dist_train? in a notebook. Flags given beside this file win.
name = "{name}"
steps = 200
batch_size = 64     # global: samples per step over all ranks
lr = 3e-3
shuffle = true
seed = 1024

[plan]
ranks = 2           # processes; on GPUs one per GPU
plugin = "ddp"      # ddp, zero1, zero2; or hybrid with tp and pp, for models that it knows

[monitor]
level = "full"      # off, light, full
"""

CELL = '''\
"""The model file: runs on every rank, and is plain PyTorch.

It defines model, optimizer, dataset and criterion; lr_scheduler is optional. `dataset` is read in pieces by all ranks.
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
# cell.py stands beside the spec, so it runs on every rank and defines the model
run = %dist_train --config spec.toml --steps {steps} --lr {lr} -n {n} --wait"""


def write(folder: Path) -> list[Path]:
    """Make the project ``folder``, named after its last part; returns its files.

    Raises ``ConfigError`` for a name that a run cannot have, ``RunDirectoryError`` when the folder holds anything
    already or cannot be written: nothing is ever overwritten.
    """
    name = folder.absolute().name
    TrainSpec(name=name)  # the spec's own check of names
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirectoryError(f"{folder} is there already and not empty: choose another name, or move it away")
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
    """The project's notebook: train, look, compare, report."""
    parameters = nbformat.v4.new_code_cell("n = 2\nsteps = 200\nlr = 3e-3", metadata={"tags": ["parameters"]})
    cells = [
        nbformat.v4.new_markdown_cell(
            f"# {name}\n\nThe model is in `cell.py`, what to do with it in `spec.toml`. Run all cells; then change "
            "one of them and run the cell that trains again: both runs stay in `runs/`."
        ),
        parameters,
        nbformat.v4.new_code_cell("%load_ext workbench"),
        nbformat.v4.new_code_cell(_TRAIN),
        nbformat.v4.new_code_cell("run.metrics().tail()"),
        nbformat.v4.new_code_cell("%dist_runs"),
        nbformat.v4.new_markdown_cell("With two runs or more, `%dist_compare` lays the newest two over each other."),
        nbformat.v4.new_code_cell("%dist_report"),
        nbformat.v4.new_code_cell("%dist_down"),
    ]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"  # the same project is the same bytes
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)
