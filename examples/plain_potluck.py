"""``plain.py`` with Potluck.

python examples/plain_potluck.py OUT.safetensors           on the first machine; it prints an invite
python examples/plain_potluck.py OUT.safetensors INVITE    on the others
"""

import sys

import torch
from safetensors.torch import save_file

import potluck

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

with potluck.join(sys.argv[2], model) if sys.argv[2:] else potluck.host(potluck.Recipe(), model) as run:
    print(run.invite, flush=True)
    optimizer = run.optimizer(optimizer)
    for step in range(4_000):
        x = torch.randn(64, 8)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}, loss {loss.item():.4f}")

save_file(model.state_dict(), sys.argv[1])
