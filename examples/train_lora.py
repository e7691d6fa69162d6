"""LoRA by ``peft``: only the adapters are trained, so only they travel. The base must be the same everywhere.

python examples/train_lora.py           on the first machine; it prints an invite
python examples/train_lora.py INVITE    on the others
"""

import sys

from peft import LoraConfig, get_peft_model
from shakespeare import rows, tiny_llama
from transformers import Trainer, TrainingArguments

from potluck import End, Recipe, Rounds
from potluck.integrations.transformers import PotluckCallback

recipe = Recipe(name="lora", rounds=Rounds(tokens=20_000), end=End(rounds=12))

base = tiny_llama()  # as a rule: AutoModelForCausalLM.from_pretrained(...)
config = LoraConfig(r=8, lora_alpha=32, target_modules=["v_proj", "down_proj", "lm_head"])
model = get_peft_model(base, config)
model.print_trainable_parameters()

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="lora-out",
        max_steps=100_000,  # the run ends first
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
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
model.save_pretrained("adapters")
print(f"held-out loss {before:.3f} before, {after:.3f} after")
