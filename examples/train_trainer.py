"""A usual script for ``transformers.Trainer``, and one line more: the callback.

python examples/train_trainer.py           on the first machine; it prints an invite
python examples/train_trainer.py INVITE    on the others
"""

import sys

from shakespeare import rows, tiny_llama
from transformers import Trainer, TrainingArguments

from potluck import End, Recipe, Rounds
from potluck.integrations.transformers import PotluckCallback

recipe = Recipe(name="trainer", rounds=Rounds(tokens=20_000), end=End(rounds=12))

trainer = Trainer(
    model=tiny_llama(),
    args=TrainingArguments(
        output_dir="trainer-out",
        max_steps=100_000,  # the run ends first
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        warmup_steps=5_000,  # 5 % of max_steps: of the run
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    ),
    train_dataset=[{"input_ids": row, "labels": row} for row in rows("train")],
    eval_dataset=[{"input_ids": row, "labels": row} for row in rows("test", 256)],
    callbacks=[PotluckCallback(sys.argv[1] if sys.argv[1:] else recipe)],
)
before = trainer.evaluate()["eval_loss"]
trainer.train()
after = trainer.evaluate()["eval_loss"]
print(f"held-out loss {before:.3f} before, {after:.3f} after")
