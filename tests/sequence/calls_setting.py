# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The calls of test_calls.py: their tensors, on each rank."""

import torch

from largebatch.sequence import UlyssesAttention, UlyssesPlan
from tests.sequence import setting

HEADS = (8, 2)
LENGTHS = {2: [3, 5], 3: [3, 0, 5]}
DIM, V_DIM, BATCH = 8, 6, 2


class Setting:
    """The tensors of a call, of this rank."""

    def __init__(self, world, rank, heads=HEADS, batch=BATCH, **options):
        self.world, self.rank = world, rank
        self.lengths = LENGTHS[world]
        self.plan = UlyssesPlan(None, *heads, self.lengths, **options)
        *self.whole, self.grad = setting.tensors(heads, batch, sum(self.lengths), DIM, V_DIM)

    def leaves(self):
        own = (setting.mine(x, self.lengths, self.rank) for x in self.whole)
        return [x.clone().requires_grad_() for x in own]

    def attend(self, **options):
        return UlyssesAttention(setting.attend("bshd"), self.plan, **options)

    def own_grad(self):
        return setting.mine(self.grad, self.lengths, self.rank)

    def run(self, call, *inputs):
        """Return o and the gradients of the inputs."""
        o = call(*inputs)
        return [o.detach(), *torch.autograd.grad(o, inputs, self.own_grad())]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def plain(world, rank, **options):
    s = Setting(world, rank, **options)
    return s.run(s.attend(), *s.leaves())
