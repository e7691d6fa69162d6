"""``torch.compile``: peers that compile their model and peers that don't are in one run.

python examples/train_compiled.py                   on the first machine; it prints an invite
python examples/train_compiled.py INVITE            on another
python examples/train_compiled.py INVITE compile    on one that compiles
"""

import sys

import torch
from shakespeare import rows

import potluck

BYTES = 16  # from which the next one is guessed

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Embedding(256, 32),
    torch.nn.Flatten(),
    torch.nn.Linear(32 * BYTES, 256),
    torch.nn.GELU(),
    torch.nn.Linear(256, 256),
)
if sys.argv[2:] == ["compile"]:
    model = torch.compile(model, backend="aot_eager")  # or any other backend

if sys.argv[1:]:
    run = potluck.join(sys.argv[1], model)
else:
    recipe = potluck.Recipe(
        name="compiled", rounds=potluck.Rounds(tokens=400_000), end=potluck.End(rounds=20)
    )
    run = potluck.host(recipe, model)
    print(run.invite, flush=True)


def loss_of(text: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(text[:, :BYTES]), text[:, BYTES])


train, test = rows("train"), rows("test", 256)
with torch.no_grad():
    before = loss_of(test).item()

with run:
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=2e-3))
    while True:
        start = int(torch.randint(train.shape[1] - BYTES, ()))
        batch = train[torch.randint(len(train), (256,)), start : start + BYTES + 1]
        loss_of(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

with torch.no_grad():
    print(f"held-out loss {before:.3f} before, {loss_of(test).item():.3f} after")
