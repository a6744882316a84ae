# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of four processes that train with AGVM; started by test_agvm_workers.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from largebatch.optim import AGVM
from tests.optim import agvm_setting as setting

WORLD, STEPS = 4, 5
OPTIONS = dict(anchor="body", interval=2, warmup=1, momentum=0.5)


def network():
    torch.manual_seed(5)
    sizes = {"body": (20, 30), "neck": (30, 9), "head": (9, 4)}
    return nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = network()

    def forward(self, x):
        for part in self.parts.values():
            x = part(x).tanh()
        return x


def samples(worker, step, micro):
    generator = torch.Generator().manual_seed(1000 * step + 10 * micro + worker)
    return torch.randn(8, 20, generator=generator), torch.randn(8, 4, generator=generator)


def loss(model, worker, step, micro):
    x, y = samples(worker, step, micro)
    return (model(x) - y).square().mean()


def result(agvm, params, history):
    return {
        "params": [p.detach().clone() for p in params],
        "factors": history,
        "variances": list(agvm.variances.values()),
    }


def workers(kind, group, micro=1):
    """Train a model in DDP on the workers of a group, `micro` backward passes to a step."""
    model = Net()
    ddp = DistributedDataParallel(model, process_group=group, bucket_cap_mb=0.001)
    make = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[kind]
    agvm = AGVM(make(model.parameters(), lr=0.05), dict(model.parts), **OPTIONS)
    ddp.register_comm_hook(None, agvm.hook(group))
    history = []
    for step in range(STEPS):
        for j in range(micro - 1):
            with ddp.no_sync():
                (loss(ddp, dist.get_rank(group), step, j) / micro).backward()
        (loss(ddp, dist.get_rank(group), step, micro - 1) / micro).backward()
        agvm.step()
        agvm.zero_grad()
        history.append(torch.stack(list(agvm.factors.values())))
    return result(agvm, list(model.parameters()), history)


def refusals():
    """Return what is said to one worker, to who calls both, and to who forgets the hook."""
    said = []
    params = setting.weights()
    agvm = AGVM(
        torch.optim.SGD(params, lr=0.1), setting.modules_of(params), anchor="body", warmup=0
    )
    alone = [dist.new_group([rank]) for rank in range(WORLD)][dist.get_rank()]
    for call in (lambda: agvm.hook(alone), agvm.hook, agvm.micro_batch, agvm.step):
        try:
            call()
        except (RuntimeError, ValueError) as error:
            said.append(str(error))
    return said


def bits():
    """Return the averages of a step that measures and of one that does not."""
    found = []
    for warmup in (0, 9):
        model = Net()
        ddp = DistributedDataParallel(model)
        agvm = AGVM(torch.optim.SGD(model.parameters(), lr=0.1), dict(model.parts), anchor="body",
                    warmup=warmup)  # fmt: skip
        ddp.register_comm_hook(None, agvm.hook())
        loss(ddp, dist.get_rank(), 0, 0).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    return found


def sharded(optimizer_type):
    """Train DTensors, split, replicated and uneven, by micro-batches whose gradients are whole."""
    mesh = init_device_mesh("cpu", (WORLD,))
    placements = [Shard(0), Shard(0), Shard(1), Replicate(), Shard(0), Replicate()]

    def distribute(tensors):
        return [
            distribute_tensor(t, mesh, [place])
            for t, place in zip(tensors, placements, strict=True)
        ]

    params = [nn.Parameter(p) for p in distribute([p.detach() for p in setting.weights()])]
    agvm = AGVM(optimizer_type(params, lr=0.01), setting.modules_of(params), **OPTIONS)
    given = [[distribute(grads) for grads in batch] for batch in setting.batches(STEPS)]
    found = [torch.tensor(mu) for mu in setting.train(agvm, params, given)]
    assert all(isinstance(p, DTensor) for p in params)
    return result(agvm, [p.full_tensor() for p in params], found)


def main(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    three = dist.new_group([0, 1, 2])
    results = {
        "four SGD": workers("SGD", dist.group.WORLD),
        "four Adam": workers("Adam", dist.group.WORLD),
        "four accumulating": workers("SGD", dist.group.WORLD, micro=3),
        "two": workers("SGD", pairs[rank // 2]),
        "three": workers("SGD", three) if rank < 3 else None,
        "sharded SGD": sharded(torch.optim.SGD),
        "sharded Adam": sharded(torch.optim.Adam),
        "bits": bits(),
        "refusals": refusals(),
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
