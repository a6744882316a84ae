# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Norms of all gradients of a model: 4 bytes read per fp32 element."""

import importlib
from functools import partial

import pytest
import torch
from entries import ours, peer

import largebatch


def _ours(tensors):
    return partial(largebatch.ops.multi_tensor_norm, tensors)


def _foreach(tensors):
    return lambda: torch.stack(torch._foreach_norm(tensors)).norm()


def _cupy(tensors):
    if tensors[0].device.type != "cuda":
        raise ImportError("CuPy is for GPUs")
    cupy = importlib.import_module("cupy")
    arrays = [cupy.from_dlpack(t.flatten()) for t in tensors]
    return lambda: cupy.sqrt(cupy.stack([cupy.vdot(x, x) for x in arrays]).sum())


FAMILY = {
    "largebatch": ours(_ours, 4),
    "torch foreach": peer(_foreach, 4),
    "CuPy": peer(_cupy, 4),
}


@pytest.mark.parametrize("implementation", FAMILY)
def bench_norm(bench_op, model, implementation):
    bench_op("norm", model, FAMILY, implementation)
