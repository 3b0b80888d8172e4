"""What is read from the source of a cell without running it."""

import pytest

from workbench.core.user_code.cell_source import check_cell
from workbench.errors import ConfigError

CELL = """
import torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = [(torch.zeros(2), torch.zeros(1))]
criterion = torch.nn.MSELoss()
"""


@pytest.mark.parametrize(
    "cell",
    [
        CELL,
        "from mine import *",
        CELL.replace("criterion = ", "def loss_fn(model, batch):\n    return 0\nx = "),
        CELL.replace("model =", "if True:\n    model ="),
        CELL.replace("criterion =", "loss_fn = criterion ="),  # a loss_fn may call a criterion
    ],
)
def test_a_cell_that_defines_everything(cell: str) -> None:
    assert check_cell(cell) is None, "it is not refused"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("optimizer =", "optimiser =", r"does not define optimizer \(optimiser\?\):"),
        ("dataset =", "data =", "does not define dataset or dataloader"),
        ("criterion =", "loss =", "does not define loss_fn or criterion"),
        ("model =", "def build():\n    model =", "does not define model"),
    ],
)
def test_a_cell_that_lacks_a_name(old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_cell(CELL.replace(old, new))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (
            "import torch\nmodel = = 1",
            r"line 2 of the cell is not valid Python: invalid syntax\n  model = = 1\n          \^$",
        ),
        ("model = (", r"line 1 of the cell is not valid Python: '\(' was never closed\n  model = \(\n          \^$"),
    ],
)
def test_a_cell_with_a_syntax_error_is_shown_where(cell: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_cell(cell)
