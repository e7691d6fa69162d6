"""A loop with ``accelerate``: what it prepared takes part, with its gradient accumulation and clipping.

python examples/train_accelerate.py           on the first machine; it prints an invite
python examples/train_accelerate.py INVITE    on the others
"""

import sys

import torch
from accelerate import Accelerator
from shakespeare import heldout_loss, rows, tiny_llama

import potluck

model = tiny_llama()
before = heldout_loss(model)

accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
loader = torch.utils.data.DataLoader(rows("train"), batch_size=8, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

if sys.argv[1:]:
    run = potluck.join(sys.argv[1], model)
else:
    recipe = potluck.Recipe(
        name="accelerate", rounds=potluck.Rounds(tokens=20_000), end=potluck.End(rounds=12)
    )
    run = potluck.host(recipe, model)
    print(run.invite, flush=True)

with run:
    optimizer = run.optimizer(optimizer)
    while True:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(input_ids=batch, labels=batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

print(f"held-out loss {before:.3f} before, {heldout_loss(model):.3f} after")
