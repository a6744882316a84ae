# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Selection and sparse sums as operations: values, gradients, shapes only, refusals."""

import numpy as np
import pytest
import torch

from largebatch import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_selects_the_largest(backend, dtype):
    x = torch.randn(50, 700, dtype=torch.float64).to(backend.device, dtype)
    for k in (0, 1, 350, x.numel()):
        values, indices = ops.topk_select(x, k)
        expected = x.flatten().abs().topk(k).values if k else x.new_empty(0)
        assert torch.equal(values.abs().sort(descending=True).values, expected)
        assert torch.equal(values, x.flatten()[indices])
        assert torch.equal(indices, indices.sort().values)
    transposed = ops.topk_select(x.T, 9)[1]
    assert torch.equal(transposed, ops.topk_select(x.T.contiguous(), 9)[1])


def test_takes_numpy_arrays():
    values, indices = ops.topk_select(np.array([1.0, -3.0, 2.0], dtype=np.float32), 1)
    assert (values.tolist(), indices.tolist()) == ([-3.0], [1])


def pairs(device="cpu"):
    indices = torch.stack([torch.randperm(20)[:6] for _ in range(3)]).to(device)
    return torch.randn(3, 6, dtype=torch.float64).to(device).requires_grad_(), indices


def test_sums_ranks(backend):
    values, indices = pairs(backend.device)
    expected = torch.zeros(20, dtype=torch.float64, device=backend.device)
    for value, index in zip(values.detach(), indices, strict=True):
        expected[index] += value * (1 / 3)
    assert torch.equal(ops.scatter_reduce(values, indices, 20), expected)


def test_gradients(backend):
    x = torch.randn(5, 8, dtype=torch.float64, device=backend.device, requires_grad=True)

    def select(x):
        return ops.topk_select(x, 11)[0]

    assert torch.autograd.gradcheck(select, x)
    assert torch.autograd.gradgradcheck(select, x)
    values, indices = pairs(backend.device)

    def add(values):
        return ops.scatter_reduce(values, indices, 20)

    assert torch.autograd.gradcheck(add, values)
    assert torch.autograd.gradgradcheck(add, values)


def test_opcheck(backend):
    x = torch.randn(40, device=backend.device, requires_grad=True)
    torch.library.opcheck(torch.ops.largebatch.topk_select.default, (x, 5))
    torch.library.opcheck(torch.ops.largebatch.scatter_reduce.default, (*pairs(backend.device), 20))


REFUSED = [
    (lambda: ops.topk_select(torch.ones(3), 4), "topk_select: k: got 4, expected 0 to the 3"),
    (lambda: ops.topk_select(torch.ones(3), -1), "topk_select: k: got -1, expected 0 to the 3"),
    (lambda: ops.topk_select([1.0], 1), "topk_select: x is a list, expected a torch, NumPy"),
    (
        lambda: ops.scatter_reduce(torch.ones(2, 3), torch.ones(2, 3), 5),
        "scatter_reduce: indices has dtype torch.float32, expected int64.",
    ),
    (
        lambda: ops.scatter_reduce(torch.ones(6), torch.ones(6, dtype=torch.int64), 5),
        "scatter_reduce: indices has shape [6], values [6], expected [W, k] both.",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call, message):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
