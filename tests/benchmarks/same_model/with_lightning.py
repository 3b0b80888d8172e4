import lightning
import torch
from data import cnn, datasets
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = cnn()

    def train_dataloader(self):
        train, _ = datasets()
        return DataLoader(train, batch_size=32, sampler=DistributedSampler(train, shuffle=False))

    def val_dataloader(self):
        _, test = datasets()
        return DataLoader(test, batch_size=32, sampler=DistributedSampler(test, shuffle=False))

    def training_step(self, batch):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch):
        images, labels = batch
        right = (self.net(images).argmax(-1) == labels).float()
        self.log("accuracy", right.mean(), sync_dist=True, on_epoch=True, batch_size=len(labels))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(logger):
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        log_every_n_steps=1,
        logger=logger,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier())
