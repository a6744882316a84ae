# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Three modules, micro-batches of gradients whose noise is known, and AGVM by its definition."""

import torch

from largebatch.reference import agvm as reference
from tests.helpers import leaves

# Module of each parameter, in the order in which the optimizer has them: "neck" comes twice.
SHAPES = [(40, 30), (300,), (70, 70), (33,), (17, 3), (0,)]
OWNERS = ["body", "neck", "body", "neck", "head", "head"]
NAMES = ["body", "neck", "head"]
NOISE = {"body": 1.0, "neck": 0.4, "head": 3.0}


def modules_of(params):
    return {
        name: [p for p, owner in zip(params, OWNERS, strict=True) if owner == name]
        for name in NAMES
    }


def weights(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return leaves([torch.randn(s, generator=generator).to(device, dtype) for s in SHAPES])


def batches(steps, micro=4, device="cpu", dtype=torch.float32, seed=0):
    """Return the gradients [steps][micro][T] of micro-batches, each a share of the batch's."""
    generator = torch.Generator().manual_seed(seed)

    def gaussian(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    means = [gaussian(s) for s in SHAPES]
    return [
        [
            [
                ((mean + NOISE[owner] * gaussian(mean.shape)) / micro).to(device, dtype)
                for mean, owner in zip(means, OWNERS, strict=True)
            ]
            for _ in range(micro)
        ]
        for _ in range(steps)
    ]


def accumulate(params, grads):
    """Add to the gradients, as a backward pass does."""
    for p, g in zip(params, grads, strict=True):
        if g is not None:
            p.grad = g.clone() if p.grad is None else p.grad.add_(g)


def train(agvm, params, given):
    """Take a step for every batch; return the factors after each, as lists in order of NAMES."""
    found = []
    for batch in given:
        for grads in batch:
            accumulate(params, grads)
            agvm.micro_batch()
        agvm.step()
        agvm.zero_grad()
        found.append([agvm.factors[name].item() for name in NAMES])
    return found


def variances(batch, squares=None, beta2=0.0, eps=0.0):
    """Return phi of the modules: from the means of the odd and of the even micro-batches."""
    halves = []
    for half in (batch[::2], batch[1::2]):
        share = len(half) / len(batch)  # of the batch, in which each gradient is a share
        means = [sum(g.double() for g in column) / share for column in zip(*half, strict=True)]
        if squares is not None:
            means = [
                reference.precondition(m, v, beta2, eps)
                for m, v in zip(means, squares, strict=True)
            ]
        halves.append(means)
    sums = torch.zeros(len(NAMES), 3, dtype=torch.float64)
    for a, b, owner in zip(*halves, OWNERS, strict=True):
        sums[NAMES.index(owner)] += torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()]).cpu()
    return reference.variances(sums)


def expected_factors(given, interval, warmup, momentum=0.97, clamp=(0.5, 10.0), anchor="body"):
    """Return the factors after each of the batches, as :func:`train` does."""
    factors = torch.ones(len(NAMES), dtype=torch.float64)
    found = []
    for step, batch in enumerate(given):
        if step >= warmup and (step - warmup) % interval == 0:
            factors = reference.next_factors(
                factors, variances(batch), NAMES.index(anchor), momentum=momentum, clamp=clamp
            )
        found.append(factors.tolist())
    return found
