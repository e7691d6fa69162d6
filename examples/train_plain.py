"""A loop of your own in PyTorch; all peers together go through the text, each row once an epoch.

python examples/train_plain.py           on the first machine; it prints an invite
python examples/train_plain.py INVITE    on the others
"""

import sys

import torch
from shakespeare import heldout_loss, rows, tiny_llama

import potluck

model, train = tiny_llama(), rows("train", 4_000)
before = heldout_loss(model)

if sys.argv[1:]:
    run = potluck.join(sys.argv[1], model)
else:
    recipe = potluck.Recipe(
        name="plain",
        data=potluck.Data(samples=len(train), block=16),
        rounds=potluck.Rounds(tokens=20_000),
        end=potluck.End(epochs=1),
    )
    run = potluck.host(recipe, model)
    print(run.invite, flush=True)

with run:
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=3e-3))
    for batch in run.batches(train):
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

print(f"held-out loss {before:.3f} before, {heldout_loss(model):.3f} after")
