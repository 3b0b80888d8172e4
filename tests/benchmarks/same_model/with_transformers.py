import torch
from data import cnn, datasets
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = cnn()

    def forward(self, images, labels=None):
        logits = self.net(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class InOrder(Trainer):
    def _get_train_sampler(self):
        return SequentialSampler(self.train_dataset)


def collate(samples):
    images, labels = zip(*samples, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


def accuracy(found):
    return {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()}


def main():
    train, test = datasets()
    model = Classifier()
    arguments = TrainingArguments(
        "out",
        num_train_epochs=3,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=1,
        max_grad_norm=0.0,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = InOrder(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=test,
        data_collator=collate,
        compute_metrics=accuracy,
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), None),
    )
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 1.0)
    trainer.train()
    return trainer.state.log_history
