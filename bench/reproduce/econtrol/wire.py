# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes that the loopback interface carries in a step, and those that `traffic` tells before.

Gloo processes train two layers of 1000 x 1000 under DistributedDataParallel: dense, with 1 % of
each layer sent by an all-gather, and by region owners. Counted is what the interface carries for
all ranks together, headers of TCP and acknowledgements included, in ten steps after the dense ones.

    python bench/reproduce/econtrol/wire.py 4
"""

import os
import sys
import tempfile

import common  # leads to shared, too
import shared
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch.nn.parallel import DistributedDataParallel

from largebatch.compression import TopK, traffic

WIDTH, BEFORE, STEPS = 1000, 4, 10
METHOD = common.methods(TopK(ratio=0.01))["EControl"]
EXCHANGES = {"dense": None, "all-gather": "all_gather", "regions": "regions"}


def measure(exchange):
    """Return (bytes carried in a step, bytes told)."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2)))
    ddp = DistributedDataParallel(model)
    if exchange is not None:
        ddp.register_comm_hook(None, METHOD.hook(model, exchange=exchange))
    x = torch.randn(8, WIDTH)
    for step in range(BEFORE + STEPS):
        if step == BEFORE:
            dist.barrier()
            before = shared.interface_bytes()
        ddp(x).square().mean().backward()
    dist.barrier()
    carried = (shared.interface_bytes() - before) / STEPS
    world = dist.get_world_size()
    told = traffic(METHOD, model.parameters(), world, exchange=exchange or "all_gather")
    return carried, world * (told.dense if exchange is None else told.compressed)


def child(rank, world, folder):
    """Measure as one of the ranks; the first prints."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    for name, exchange in EXCHANGES.items():
        carried, told = measure(exchange)
        if rank == 0:
            print(f"{name:12}{carried:>14,.0f} bytes carried{told:>14,} told", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(child, (ranks, folder), nprocs=ranks)
