# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of two processes that hold half of every tensor; run by test_sharded.py.

    python -m tests.optim.sharded_worker <rank> <folder>

Reads nothing, writes what it ended with to <folder>/<rank>.pt.
"""

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from largebatch import ops
from largebatch.optim import LionK, kappa
from tests.conftest import OPTIMIZERS
from tests.helpers import ADAN_DEFAULTS, LAMB_DEFAULTS, LARS_DEFAULTS, problem

WORLD = 2
STEPS = 5
LAMB_OPTIONS = dict(lr=0.01, weight_decay=0.02, max_grad_norm=0.5)
LARS_OPTIONS = dict(lr=0.5, weight_decay=0.01, trust_coefficient=0.02)
ADAN_OPTIONS = dict(lr=0.01, weight_decay=0.02, max_grad_norm=0.5)
LION_OPTIONS = dict(lr=0.01, weight_decay=0.02)
LION_HYPER = dict(**LION_OPTIONS, betas=(0.9, 0.99), kappa="l1", maximize=False)

# For the split form: flat tensors and where the first rank's part ends.
FLAT_SHAPES = [(40000,), (7,), (1,), (50000,)]
CUTS = [16384 + 3, 2, 0, 50000]

# Of Lion-K: elements, tensors as a whole, groups that ranks hold whole and groups that they share.
LION_K = {
    "huber": dict(kappa=kappa.Huber(0.01)),
    "cautious": dict(cautious=True),
    "huber relative": dict(kappa=kappa.Huber(0.5, relative=True)),
    "l2": dict(kappa=kappa.L2()),
    "l_inf": dict(kappa=kappa.LInf()),
    "top_k": dict(kappa=kappa.TopK(5)),
    "nuclear": dict(kappa=kappa.Nuclear()),
    "entropy": dict(kappa=kappa.Entropy(0.01)),
    "entropy whole": dict(kappa=kappa.Entropy(0.01, axis=None)),
    "rows": dict(kappa=kappa.GroupLasso()),
    "columns": dict(kappa=kappa.GroupLasso("column")),
    "heads of whole": dict(kappa=kappa.GroupLasso(size=16)),
    "heads that are cut": dict(kappa=kappa.GroupLasso(size=64)),
    "l2_inf": dict(kappa=kappa.L2Inf()),
}
HEADS = [(64, 30), (64, 70)]  # where 64 divides the rows

# For DTensor: even, uneven and one-sided splits of the first dimension; the last is replicated.
GRID_SHAPES = [(64, 30), (7, 500), (1, 12), (33,), (20, 20)]


def parts(tensors, rank):
    """Return this rank's part of each flat tensor."""
    pieces = [t.split([cut, len(t) - cut]) for t, cut in zip(tensors, CUTS, strict=True)]
    return [piece[rank].clone() for piece in pieces]


def split_lamb(rank):
    data = problem(FLAT_SHAPES, STEPS)
    params = parts(data.params, rank)
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    steps = [torch.zeros(()) for _ in params]
    hyper = LAMB_DEFAULTS | LAMB_OPTIONS
    for full in data.grads:
        grads = parts(full, rank)
        total = ops.multi_tensor_sq_sum(grads).sum()
        dist.all_reduce(total)
        hyper["grad_sq_sum"] = total
        sums = ops.lamb_moments(params, grads, *moments, steps, **hyper)
        dist.all_reduce(sums)
        ops.lamb_apply(params, *moments, steps, sums, **hyper)
    return params, moments


def split_lars(rank):
    data = problem(FLAT_SHAPES, STEPS)
    params = parts(data.params, rank)
    buffers = [torch.zeros_like(p) for p in params]
    steps = [torch.zeros(()) for _ in params]
    for full in data.grads:
        grads = parts(full, rank)
        sums = ops.lars_norms(params, grads)
        dist.all_reduce(sums)
        ops.lars_apply(params, grads, buffers, steps, sums, **LARS_DEFAULTS | LARS_OPTIONS)
    return params, [buffers]


def split_adan(rank):
    data = problem(FLAT_SHAPES, STEPS)
    params = parts(data.params, rank)
    states = [[torch.zeros_like(p) for p in params] for _ in range(4)]
    steps = [torch.zeros(()) for _ in params]
    for full in data.grads:
        grads = parts(full, rank)
        total = ops.multi_tensor_sq_sum(grads).sum()
        dist.all_reduce(total)
        hyper = ADAN_DEFAULTS | ADAN_OPTIONS
        ops.adan_step(params, grads, *states, steps, grad_sq_sum=total, **hyper)
    return params, states


def split_lion(rank):
    data = problem(FLAT_SHAPES, STEPS)
    params = parts(data.params, rank)
    momenta = [torch.zeros_like(p) for p in params]
    steps = [torch.zeros(()) for _ in params]
    for full in data.grads:
        random = dict(stochastic_rounding=True, seed=0)
        ops.lion_step(params, parts(full, rank), momenta, steps, **LION_HYPER, **random)
    return params, [momenta]


def distribute(tensors, mesh, dtype):
    placements = [[Shard(0)]] * (len(tensors) - 1) + [[Replicate()]]
    pairs = zip(tensors, placements, strict=True)
    return [distribute_tensor(t.to(dtype), mesh, placement) for t, placement in pairs]


def dtensors(family, dtype=torch.float32, **over):
    """Run an optimizer on distributed parameters; return them and their state, put together.

    After half of the steps another optimizer takes over, from parameters and a state_dict.
    """
    mesh = init_device_mesh("cpu", (WORLD,))
    data = problem(GRID_SHAPES, STEPS)
    params = [torch.nn.Parameter(p) for p in distribute(data.params, mesh, dtype)]
    optimizer = family.make(params, **over)
    for t, grads in enumerate(data.grads):
        if t == STEPS // 2:
            params = [torch.nn.Parameter(p.detach().clone()) for p in params]
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = family.make(params, **over)
            optimizer.load_state_dict(saved)
        for p, g in zip(params, distribute(grads, mesh, dtype), strict=True):
            p.grad = g
        optimizer.step()
    return {
        "params": [p.full_tensor().detach() for p in params],
        "state": [
            {
                name: value.full_tensor() if isinstance(value, DTensor) else value
                for name, value in optimizer.state[p].items()
            }
            for p in params
        ],
        "sharded": all(
            isinstance(value, DTensor) == (name != "step")
            for p in params
            for name, value in optimizer.state[p].items()
        ),
        "grad_norm": optimizer.grad_norm,
        "nonfinite": optimizer.nonfinite,
    }


def lion_k(name):
    """Return what LionK made of distributed parameters."""
    mesh = init_device_mesh("cpu", (WORLD,))
    data = problem(HEADS if "heads" in name else GRID_SHAPES, STEPS)
    params = [torch.nn.Parameter(p) for p in distribute(data.params, mesh, torch.float32)]
    optimizer = LionK(params, **LION_OPTIONS, **LION_K[name])
    for grads in data.grads:
        for p, g in zip(params, distribute(grads, mesh, torch.float32), strict=True):
            p.grad = g
        optimizer.step()
    return [p.full_tensor().detach() for p in params]


# Blocks of 128 end with a part or do not, and the second rank may have fewer of them.
LOW_SHAPES = [(640, 40), (7, 700), (4100,), (64, 64)]
LOW_OPTIONS = dict(**LION_OPTIONS, master_weights=False)


def low_precision(state_dtype):
    """Return this rank's parts of weights and momenta, and what it resumed with."""
    mesh = init_device_mesh("cpu", (WORLD,))
    data = problem(LOW_SHAPES, STEPS)
    params = [torch.nn.Parameter(p) for p in distribute(data.params, mesh, torch.bfloat16)]
    optimizer = LionK(params, **LOW_OPTIONS, state_dtype=state_dtype)
    twin = None
    for t, grads in enumerate(data.grads):
        if t == STEPS // 2:
            copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
            twin = LionK(copies, fused=False)
            saved = copy.deepcopy(optimizer.state_dict())
            saved["param_groups"][0]["fused"] = False
            twin.load_state_dict(saved)
        pairs = [(params, optimizer)] + ([] if twin is None else [(copies, twin)])
        for own, made in pairs:
            for p, g in zip(own, distribute(grads, mesh, torch.bfloat16), strict=True):
                p.grad = g
            made.step()
    return [locals_of(params, optimizer), locals_of(copies, twin)]


def locals_of(params, optimizer):
    found = []
    for p in params:
        state = optimizer.state[p]
        tensors = [p.detach(), *(state[name] for name in sorted(state) if name != "step")]
        assert all(isinstance(t, DTensor) for t in tensors)
        found.append([t.to_local() for t in tensors])
    return found


def main(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    results = {
        "split LAMB": split_lamb(rank),
        "split LARS": split_lars(rank),
        "split Adan": split_adan(rank),
        "split Lion": split_lion(rank),
    }
    for name in LION_K:
        results[f"LionK {name}"] = lion_k(name)
    for state_dtype in ("bfloat16", "int8"):
        results[f"Lion in {state_dtype}"] = low_precision(state_dtype)
    for family in OPTIMIZERS:
        options = family.limiting or {}
        results[f"{family} fused"] = dtensors(family, **options)
        results[f"{family} pure torch"] = dtensors(family, **options, fused=False)
        results[f"{family} bfloat16"] = dtensors(family, torch.bfloat16, **options)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
