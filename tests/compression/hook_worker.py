# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of two processes that train with a compression hook; started by test_hook_workers.py."""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from largebatch.compression import DGC, EF21, BlockTopK, EControl, ErrorFeedback, TopK

WORLD = 2
METHODS = {
    "econtrol": lambda: EControl(TopK(ratio=0.05), min_numel=100),
    "econtrol-m": lambda: EControl(TopK(ratio=0.1, values="bfloat16"), momentum=0.2, min_numel=100),
    "ef21": lambda: EF21(BlockTopK(k=4, block=64), min_numel=100),
    "feedback": lambda: ErrorFeedback(TopK(ratio=0.05, scope="bucket"), min_numel=100),
    "dgc": lambda: DGC(TopK(ratio=0.05), momentum=0.5, min_numel=100),
}


class Training:
    """A small network whose ranks see different data, in several buckets."""

    def __init__(self, method, rank, views=False, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(20, 60), nn.Tanh(), nn.Linear(60, 40), nn.Tanh(),
                                   nn.Linear(40, 1))  # fmt: skip
        self.ddp = DistributedDataParallel(
            self.model, bucket_cap_mb=0.006, gradient_as_bucket_view=views
        )
        self.hook = method.hook(self.model, **options)
        self.ddp.register_comm_hook(None, self.hook)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.rank, self.losses = rank, []

    def step(self, t, micro=1, spoil=False):
        generator = torch.Generator().manual_seed(10 * t + self.rank)
        self.optimizer.zero_grad()
        for m in range(micro):
            x = torch.randn(32, 20, generator=generator)
            loss = (self.ddp(x)[:, 0] - x[:, self.rank]).square().mean()
            if spoil:
                loss = loss * torch.inf
            with self.ddp.no_sync() if m < micro - 1 else nullcontext():
                loss.backward()
        self.losses.append(loss.item())
        if all(p.grad.isfinite().all() for p in self.model.parameters()):
            self.optimizer.step()

    def result(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    results = {}
    for name, make in METHODS.items():
        steps = 300 if name == "econtrol" else 20
        training = Training(make(), rank, views=name == "ef21")
        for t in range(steps):
            training.step(t, micro=1 + (name == "dgc"))
        states = [training.hook.state[p] for p in training.model.parameters()]
        mean = [own["mean"] for own in states if "mean" in own]
        results[name] = (training.result(), mean, training.losses)

    straight = Training(METHODS["econtrol-m"](), rank)
    for t in range(12):
        straight.step(t)
        if t == 5:
            saved = {k: v.clone() for k, v in straight.model.state_dict().items()}
            state = straight.hook.state_dict()
            torch.save(state, Path(folder) / f"state{rank}.pt")
    resumed = Training(METHODS["econtrol-m"](), rank)
    resumed.hook.load_state_dict(torch.load(Path(folder) / f"state{rank}.pt"))
    resumed.model.load_state_dict(saved)
    for t in range(6, 12):
        resumed.step(t)
    results["resumed"] = (straight.result(), resumed.result())
    wrong = state | {"rank": 5}
    results["wrong state"] = error_of(lambda: resumed.hook.load_state_dict(wrong))

    training = Training(METHODS["feedback"](), rank)
    for t in range(4):
        training.step(t)
    before = training.result()
    training.step(4, spoil=rank == 1)
    finite = all(t.isfinite().all() for own in training.hook.state.values() for t in own.values())
    results["skipped"] = (before, training.result(), finite, training.hook.nonfinite.tolist())

    training = Training(METHODS["feedback"](), rank, nonfinite="raise")
    for t in range(3):
        training.step(t)
    results["raised"] = error_of(lambda: training.step(3, spoil=rank == 1))

    different = ErrorFeedback(TopK(ratio=0.05 + 0.01 * rank), min_numel=100)
    training = Training(different, rank, start_step=1)
    training.step(0)
    results["different"] = error_of(lambda: training.step(1))

    # Rank 1 is lost: rank 0 goes on alone, its H the mean of what is left.
    training = Training(METHODS["econtrol"](), rank)
    for t in range(5):
        training.step(t)
    alone = dist.new_group([0])
    if rank == 0:
        hook = training.hook
        hook.rebuild(alone)
        results["rebuilt"] = [
            (own["mean"].clone(), own["shift"].clone()) for own in hook.state.values()
        ]
        training.ddp = DistributedDataParallel(training.model, process_group=alone)
        training.ddp.register_comm_hook(None, hook)
        for t in range(5, 8):
            training.step(t)
        results["after"] = training.result()
    dist.barrier()
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), sys.argv[2])
