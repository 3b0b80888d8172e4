"""Metrics of torchmetrics, whose values over all samples are no means of those of batches; ranks have uneven shares."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"eval_every": 2},
    plans=("1 rank", "ddp", "zero2", "torch ddp"),
    cell="""
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy, MulticlassAUROC, MulticlassConfusionMatrix, MulticlassF1Score, MulticlassRecall)
from torchmetrics.regression import PearsonCorrCoef

model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
inputs = torch.sin(torch.arange(132.0)).view(33, 4)
labels = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 0.5)
dataset = TensorDataset(inputs[:16], labels[:16])
eval_dataset = TensorDataset(inputs[16:], labels[16:])     # 17 samples in batches of 4
criterion = nn.CrossEntropyLoss()
score = lambda outputs, batch: (outputs.softmax(-1)[:, 0], batch[0][:, 0])
metrics = {
    "first": lambda outputs, batch: outputs[:, 0],
    "auroc": MulticlassAUROC(3),
    "class": MetricCollection({"f1": MulticlassF1Score(3, average="macro"), "accuracy": MulticlassAccuracy(3)}),
    "recall": MulticlassRecall(3, average=None),
    "confusion_matrix": MulticlassConfusionMatrix(3),
    "correlation": (PearsonCorrCoef(), score),
    "mse": (MeanSquaredError(), score),
}
""",
    plain="""
def validate():
    x, y = eval_dataset.tensors
    outputs = model(x)
    recall = MulticlassRecall(3, average=None)(outputs, y).tolist()
    return {
        "loss": float(criterion(outputs, y)),
        "first": float(outputs[:, 0].mean()),
        "auroc": float(MulticlassAUROC(3)(outputs, y)),
        "class_f1": float(MulticlassF1Score(3, average="macro")(outputs, y)),
        "class_accuracy": float(MulticlassAccuracy(3)(outputs, y)),
        **{f"recall_{turn}": value for turn, value in enumerate(recall)},
        "confusion_matrix": MulticlassConfusionMatrix(3)(outputs, y).tolist(),
        "correlation": float(PearsonCorrCoef()(*score(outputs, (x, y)))),
        "mse": float(MeanSquaredError()(*score(outputs, (x, y)))),
    }

losses, norms = train(globals(), validate)
""",
)
