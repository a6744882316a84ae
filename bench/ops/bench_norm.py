# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Norms of all gradients of a model: 4 bytes read per fp32 element."""

from functools import partial

import pytest
import torch
from shapes import SHAPES

import largebatch

FAMILY = {
    "largebatch": largebatch.ops.multi_tensor_norm,
    "torch foreach": lambda tensors: torch.stack(torch._foreach_norm(tensors)).norm(),
}


@pytest.mark.parametrize("implementation", FAMILY)
@pytest.mark.parametrize("shapes", SHAPES)
def bench_norm(bench_model, shapes, implementation):
    norm = FAMILY[implementation]
    bench_model("norm", implementation, shapes, lambda tensors: partial(norm, tensors), 4)
