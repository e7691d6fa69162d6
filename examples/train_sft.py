"""Supervised fine-tuning with TRL's ``SFTTrainer``: the callback of ``transformers.Trainer`` does.

python examples/train_sft.py           on the first machine; it prints an invite
python examples/train_sft.py INVITE    on the others
"""

import sys
from itertools import pairwise

from datasets import Dataset
from shakespeare import CONTEXT, lines, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from potluck import End, Recipe, Rounds
from potluck.integrations.transformers import PotluckCallback

recipe = Recipe(name="sft", rounds=Rounds(tokens=20_000), end=End(rounds=12))

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.train_from_iterator(
    lines("train")[:2_000],
    trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
pairs = [{"prompt": one + "\n", "completion": following} for one, following in pairwise(lines("train"))]
held = [{"prompt": one + "\n", "completion": following} for one, following in pairwise(lines("test"))]

trainer = SFTTrainer(
    model=tiny_llama(vocab=512),
    args=SFTConfig(
        output_dir="sft-out",
        max_length=CONTEXT,
        max_steps=100_000,  # the run ends first
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        bf16=False,
    ),
    processing_class=PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>"
    ),
    train_dataset=Dataset.from_list(pairs[:5_000]),
    eval_dataset=Dataset.from_list(held[:300]),
    callbacks=[PotluckCallback(sys.argv[1] if sys.argv[1:] else recipe)],
)
before = trainer.evaluate()["eval_loss"]
trainer.train()
after = trainer.evaluate()["eval_loss"]
print(f"held-out loss {before:.3f} before, {after:.3f} after")
