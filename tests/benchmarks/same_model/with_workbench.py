import torch
from data import cnn, datasets
from torch import nn

dataset, eval_dataset = datasets()
model = cnn()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
criterion = lambda logits, batch: nn.functional.cross_entropy(logits, batch[1])  # noqa: E731
metrics = {"accuracy": lambda logits, batch: (logits.argmax(-1) == batch[1]).float().mean()}
