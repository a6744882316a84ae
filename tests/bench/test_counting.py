# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Launches and bytes of calls that can be counted by hand."""

from functools import partial

import counting  # of bench/, which pytest puts on the path
import pytest
import torch

import largebatch

CPU = torch.device("cpu")
N = 1000
X, Y = torch.randn(N), torch.randn(N)
MATRIX = torch.randn(N, 10)


def add_in_place():
    Y.add_(X)


CALLS = {
    "read two, write one": (lambda: X + Y, 1, 12 * N),
    "in place": (add_in_place, 1, 12 * N),
    "copy": (lambda: torch.empty_like(X).copy_(Y), 1, 8 * N),
    "fill": (lambda: X.new_empty(N).zero_(), 1, 4 * N),
    "out": (lambda: torch.add(X, Y, out=torch.empty(N)), 1, 12 * N),
    "views are free": (lambda: MATRIX.t()[:, :N].unbind(0), 0, None),
    "a sum": (lambda: X.sum(), 1, 4 * N + 4),
    "an expanded one is read once": (lambda: X + X[:1].expand(N), 1, 8 * N + 4),
    "lists": (lambda: torch._foreach_add([X, X], 1.0), 1, 16 * N),
    "ours": (partial(largebatch._C.cpu_isas), 1, None),
    "operations of ours": (lambda: torch.ops.largebatch.multi_tensor_sq_sum([X]), 1, None),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_counted(name):
    call, launches, nbytes = CALLS[name]
    assert counting.count(CPU, call) == (launches, nbytes)


def test_a_step_is_one_call_of_the_extension():
    p = torch.nn.Parameter(torch.randn(10))
    p.grad = torch.randn(10)
    optimizer = largebatch.optim.LAMB([p])
    optimizer.step()
    assert counting.count(CPU, optimizer.step) == (1, None)
    plan = largebatch._C.CompressionPlan([10], [dict(select="topk", k=2)])
    assert counting.count(CPU, partial(getattr, plan, "slots")) == (0, None)


def test_a_profiler_that_was_there_is_back_afterwards():
    import sys

    def profiler(*_):
        pass

    sys.setprofile(profiler)
    try:
        counting.count(CPU, add_in_place)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
