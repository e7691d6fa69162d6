"""One peer on several GPUs by FSDP2 (without GPUs, on several processes), beside peers of one process.

torchrun --nproc-per-node 2 examples/fsdp.py           on the first machine; it prints an invite
torchrun --nproc-per-node 2 examples/fsdp.py INVITE    on another machine with several GPUs
python examples/fsdp.py INVITE                         on a machine with one, or none
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import potluck

device = "cuda" if torch.cuda.is_available() else "cpu"
if dist.is_torchelastic_launched():
    if device == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    dist.init_process_group("nccl" if device == "cuda" else "gloo")

inputs = torch.randn(4_000, 32, generator=torch.Generator().manual_seed(0))
targets = inputs.sin().sum(1, keepdim=True)
dataset = torch.utils.data.TensorDataset(inputs, targets)

torch.manual_seed(0)
layers = [torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128), torch.nn.ReLU()]
model = torch.nn.Sequential(*layers, torch.nn.Linear(128, 1)).to(device)
if dist.is_initialized():
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer)
    fully_shard(model)

if sys.argv[1:]:
    run = potluck.join(sys.argv[1], model)
else:
    recipe = potluck.Recipe(
        name="fsdp",
        data=potluck.Data(samples=len(dataset), block=32),
        rounds=potluck.Rounds(tokens=2_000),
        end=potluck.End(epochs=6),
    )
    run = potluck.host(recipe, model)

rank = dist.get_rank() if dist.is_initialized() else 0
if rank == 0:
    print(run.invite, flush=True)

with run:
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=3e-3))
    for x, y in run.batches(dataset):
        (model(x.to(device)) - y.to(device)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

with torch.no_grad():  # on all ranks, as each has a part of the model
    loss = (model(inputs.to(device)) - targets.to(device)).square().mean().item()
if rank == 0:
    print(f"round {run.round}, state {run.state.state[:12]}, loss {loss:.4f}: {run.over}", flush=True)
if dist.is_initialized():
    dist.destroy_process_group()
