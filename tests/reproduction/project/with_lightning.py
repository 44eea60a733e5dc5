"""A small network; wide enough that threads share its sums."""

import data
import lightning
import torch

from tachograph.callbacks import LightningCallback

lightning.seed_everything(data.SEED, verbose=False)
(x, y), (x_val, y_val) = data.load()


def loader(x, y, repeat):
    """Each row several times, in one batch or a few."""
    tensors = torch.from_numpy(x).repeat(repeat, 1), torch.from_numpy(y).repeat(repeat)
    dataset = torch.utils.data.TensorDataset(*tensors)
    return torch.utils.data.DataLoader(dataset, batch_size=80 * repeat, shuffle=True)


class Net(lightning.LightningModule):
    """One hidden layer."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(4, 64), torch.nn.Linear(64, 1)

    def loss(self, batch):
        """Squared error, and the size of what is hidden."""
        hidden = torch.tanh(self.hidden(batch[0]))
        error = ((self.out(hidden).squeeze(-1) - batch[1]) ** 2).mean()
        return error + 0.01 * (hidden**2).sum() / len(hidden)

    def training_step(self, batch, _):
        """Log the loss."""
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True)
        return loss

    def validation_step(self, batch, _):
        """Log the loss."""
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        """Adam."""
        return torch.optim.Adam(self.parameters(), 0.1 * data.RATE)


trainer = lightning.Trainer(
    max_epochs=6,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[LightningCallback()],
)
trainer.fit(Net(), loader(x, y, 100), loader(x_val, y_val, 1))
