import torch
from data import cnn, datasets

dataset, eval_dataset = datasets()
model = cnn()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
criterion = torch.nn.CrossEntropyLoss()
metrics = {"accuracy": lambda logits, batch: (logits.argmax(-1) == batch[1]).float().mean()}
