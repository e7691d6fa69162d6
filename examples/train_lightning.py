"""A usual module for Lightning, and its Trainer with the callback.

python examples/train_lightning.py           on the first machine; it prints an invite
python examples/train_lightning.py INVITE    on the others
"""

import sys

import lightning
import torch
from shakespeare import rows, tiny_llama

from potluck import End, Recipe, Rounds
from potluck.integrations.lightning import PotluckCallback

recipe = Recipe(name="lightning", rounds=Rounds(tokens=20_000), end=End(rounds=12))


class Writer(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.llama = tiny_llama()

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.llama(input_ids=batch, labels=batch).loss

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("loss", self.llama(input_ids=batch, labels=batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


writer = Writer()
train = torch.utils.data.DataLoader(rows("train"), batch_size=8, shuffle=True)
test = torch.utils.data.DataLoader(rows("test", 256), batch_size=64)
trainer = lightning.Trainer(
    callbacks=[PotluckCallback(sys.argv[1] if sys.argv[1:] else recipe)],
    max_epochs=-1,  # the run ends
    accumulate_grad_batches=2,
    gradient_clip_val=1.0,
    limit_val_batches=4,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
[before] = trainer.validate(writer, test, verbose=False)
trainer.fit(writer, train)
[after] = trainer.validate(writer, test, verbose=False)
print(f"held-out loss {before['loss']:.3f} before, {after['loss']:.3f} after")
