# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Compressed gradients in DistributedDataParallel: handwritten digits, labels unlike on each rank.

    torchrun --nproc-per-node 2 examples/ddp_econtrol.py

On CPUs over gloo, or with a GPU for each process over NCCL. Needs scikit-learn for the data: pip
install scikit-learn.
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from largebatch.compression import EControl, TopK, traffic

BATCH, STEPS = 64, 300

gpu = torch.cuda.is_available()
dist.init_process_group("nccl" if gpu else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32, device=device)
labels = torch.tensor(labels, device=device)
order = torch.randperm(len(images)).to(device)
train, test = order[:1500], order[1500:]
mine = train[labels[train].argsort()].tensor_split(world)[rank]  # some of the digits only

model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)
ddp = DistributedDataParallel(model)

# One percent of each large tensor, in bf16, and what is left out is fed back. EControl tells the
# ranks' different data from errors, with momentum it averages the noise of the batches.
method = EControl(TopK(ratio=0.01, values="bfloat16"), momentum=0.1)
ddp.register_comm_hook(None, method.hook(model))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
if rank == 0:
    print(traffic(method, model.parameters(), world))

generator = torch.Generator().manual_seed(rank)
for step in range(1, STEPS + 1):
    batch = mine[torch.randint(len(mine), (BATCH,), generator=generator).to(device)]
    optimizer.zero_grad()
    loss = cross_entropy(ddp(images[batch]), labels[batch])
    loss.backward()
    optimizer.step()
    if step % 100 == 0 and rank == 0:
        with torch.no_grad():
            right = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
        print(f"step {step}  loss {loss.item():.3f}  accuracy of all digits {right:.1%}")
dist.destroy_process_group()
