"""A model that is float16 already, with --precision fp16: torch's scaler would raise from inside."""

from tests.training.cells.harness.case import Case

PLANS = ("1 rank", "ddp", "zero1", "torch ddp")
CASE = Case(
    cell="""
import torch

model = torch.nn.Linear(4, 1).half()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs = torch.randn(64, 4)
dataset = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
criterion = torch.nn.MSELoss()
""",
    flags={"precision": "fp16"},
    plans=PLANS,
    refused=dict.fromkeys(PLANS, "Remove model.half()"),
)
