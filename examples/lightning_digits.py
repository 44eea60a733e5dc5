"""A PyTorch Lightning model that reads handwritten digits.

The only line for the record is ``callbacks=[LightningCallback()]``.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

from tachograph.callbacks import LightningCallback


class Digits(lightning.LightningModule):
    """Two layers from 64 pixels to ten digits."""

    def __init__(
        self, hidden: int = 64, learning_rate: float = 0.003, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10)
        )

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """The loss of a batch."""
        pixels, digits = batch
        loss = functional.cross_entropy(self.network(pixels), digits)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Loss and accuracy on digits that were not trained on."""
        pixels, digits = batch
        logits = self.network(pixels)
        self.log("loss", functional.cross_entropy(logits, digits))
        self.log("accuracy", (logits.argmax(1) == digits).float().mean())

    def configure_optimizers(self) -> Any:
        """Adam, with a learning rate that falls along a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), self.hparams["learning_rate"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        return [optimizer], [schedule]


def main() -> None:
    """Train for twenty epochs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    lightning.seed_everything(7, verbose=False)
    data = load_digits()
    images = TensorDataset(
        torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    )
    training, validation = random_split(images, [1500, len(images) - 1500])
    trainer = lightning.Trainer(
        max_epochs=20,
        accelerator="cpu",
        callbacks=[LightningCallback(name="digits, two layers")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Digits(),
        DataLoader(training, batch_size=64, shuffle=True),
        DataLoader(validation, batch_size=256),
    )


if __name__ == "__main__":
    main()
