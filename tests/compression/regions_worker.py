# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of four processes that exchange by region owners; started by test_regions_workers.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from largebatch import _comm
from largebatch.compression import DGC, EF21, BlockTopK, EControl, ErrorFeedback, TopK
from largebatch.compression.regions import Regions
from tests.compression.hook_setting import Training, error_of, network

WORLD = 4
METHODS = {
    "feedback": lambda: ErrorFeedback(TopK(ratio=0.05), min_numel=100),
    "feedback bucket": lambda: ErrorFeedback(TopK(ratio=0.05, scope="bucket"), min_numel=100),
    "ef21": lambda: EF21(BlockTopK(k=4, block=64), min_numel=100),
    "econtrol-m": lambda: EControl(TopK(ratio=0.1, values="bfloat16"), momentum=0.2, min_numel=100),
    "dgc": lambda: DGC(TopK(ratio=0.05), min_numel=100),
}


class Received:
    """Counts the bytes that the collectives of an exchange bring to this rank."""

    def __enter__(self):
        self.bytes = {"all_to_all": 0, "all_gather": 0}
        self._before = _comm.all_gather, dist.all_to_all_single

        def gather(payloads, payload, **options):
            self.bytes["all_gather"] += (dist.get_world_size() - 1) * payload.nbytes
            return self._before[0](payloads, payload, **options)

        def exchange(incoming, outgoing, **options):
            self.bytes["all_to_all"] += incoming.nbytes * (WORLD - 1) // WORLD
            return self._before[1](incoming, outgoing, **options)

        _comm.all_gather, dist.all_to_all_single = gather, exchange
        return self

    def __exit__(self, *_):
        _comm.all_gather, dist.all_to_all_single = self._before


def gradients(training, t, **options):
    """Take a step; return gradient, update, and state before and after, by name."""
    own, handles = {}, []
    for name, p in training.model.named_parameters():
        handles.append(p.register_hook(lambda g, name=name: own.update({name: g.clone()})))
    before = training.roles()
    training.step(t, **options)
    for handle in handles:
        handle.remove()
    update = {name: p.grad.clone() for name, p in training.model.named_parameters()}
    return own, update, before, training.roles()


def concentrated(rank):
    """Exchange elements that lie close together: more than one owner has room for, or keeps."""
    grad = torch.zeros(25_600)
    at = 4 * torch.arange(40) + 40 * (rank % 2) + rank // 2
    grad[at] = (1.0 + at) ** 4
    method = ErrorFeedback(TopK(k=40), min_numel=0)
    state = method.init([grad], rank=rank, world=WORLD)
    exchange, update = method._exchange(state, [grad]), torch.zeros_like(grad)
    Regions(exchange, None).run(exchange.encode([grad]), None, True, [update])
    return grad, update, state.errors[0]


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    results = {}
    for name, make in METHODS.items():
        training = Training(make(), rank, exchange="regions").steps(range(6))
        with Received() as seen:
            step = gradients(training, 6)
        training.hook.check_sync()
        results[name] = (*step, training.steps(range(7, 12)).result(), seen.bytes)
    training = Training(METHODS["feedback"](), rank, exchange="regions").steps(range(4))
    before = training.result()
    spoilt = training.model[4].weight
    handle = spoilt.register_hook(lambda g: g * torch.inf) if rank == 1 else None
    step = gradients(training, 4)
    if handle:
        handle.remove()
    results["skipped"] = (*step, before, training.result(), training.hook.nonfinite)
    losses = []
    for options in ({}, {"exchange": "regions"}):
        training = Training(METHODS["econtrol-m"](), rank, **options).steps(range(60))
        losses.append(sum(training.losses[-20:]) / 20)
    results["losses"] = losses
    groups = [dist.new_group([r]) for r in range(WORLD)]
    results["alone"] = [
        (
            Training(make(), rank, group=groups[rank], exchange="regions").steps(range(8)).result(),
            Training(make(), rank, group=groups[rank]).steps(range(8)).result(),
        )
        for make in METHODS.values()
    ]
    results["concentrated"] = concentrated(rank)
    results["refused"] = [
        error_of(lambda: EF21(TopK(k=1)).hook(network(), exchange="regions", checksum=True)),
        error_of(lambda: EF21(TopK(k=1)).hook(network(), exchange="ring")),
    ]
    dist.barrier()
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
