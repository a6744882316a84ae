# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Norms of many tensors at once."""

import torch

from .. import _C
from ..reference.norm import safe_sqrt
from ._library import as_tensors, define, library


def multi_tensor_sq_sum(tensors):
    r"""Return the sum of squares of each tensor.

    .. math:: s_i = \sum_j x_{ij}^2, \qquad \partial s_i / \partial x_{ij} = 2 x_{ij}

    One pass over the memory whatever the number of tensors: 4 B read per fp32 element.
    Differentiable any number of times.

    Parameters
    ----------
    tensors : list of T arrays
        fp32, fp16, bf16 or fp64, any shape and size, mixed as you like, on one device.

    Returns
    -------
    Tensor
        ``[T]`` float64 on that device. Summed in float64 in a fixed order: the same bits on every
        run, and what finite fp32 numbers square to neither overflows nor vanishes.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, or tensors on different devices.

    Examples
    --------
    >>> largebatch.ops.multi_tensor_sq_sum([torch.tensor([3.0, 4.0]), torch.zeros(0)])
    tensor([25.,  0.], dtype=torch.float64)
    """
    (tensors,) = as_tensors("multi_tensor_sq_sum", tensors=tensors)
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    return torch.ops.largebatch.multi_tensor_sq_sum(tensors)


def multi_tensor_norm(tensors):
    r"""Return the L2 norm of everything and of each tensor.

    .. math:: \text{norms}_i = \lVert x_i \rVert_2, \qquad
              \text{total} = \Big(\sum_i \lVert x_i \rVert_2^2\Big)^{1/2}

    Parameters
    ----------
    tensors : list of T arrays
        As for :func:`multi_tensor_sq_sum`, which this is the root of.

    Returns
    -------
    total : Tensor
        0-dim float64.
    norms : Tensor
        ``[T]`` float64. Both differentiable any number of times; the subgradient at a zero norm
        is 0.

    Examples
    --------
    >>> total, norms = largebatch.ops.multi_tensor_norm([torch.tensor([3.0]), torch.tensor([4.0])])
    >>> total.item(), norms.tolist()
    (5.0, [3.0, 4.0])
    """
    (tensors,) = as_tensors("multi_tensor_norm", tensors=tensors)
    if not tensors:
        return torch.zeros((), dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    return _norm(tensors)  # as the op of that name does, with one pass of the dispatcher less


def _sq_sum(tensors):
    sums = torch.empty(len(tensors), dtype=torch.float64, device=tensors[0].device)
    if not all(map(torch.Tensor.is_contiguous, tensors)):
        tensors = [_dense(tensor) for tensor in tensors]
    _C.sq_sum(tensors, sums)
    return sums


def _sq_sum_fake(tensors):
    return tensors[0].new_empty(len(tensors), dtype=torch.float64)


def _dense(tensor):
    """Return the tensor, or a copy of one with gaps: a sum takes elements in any order."""
    if tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor
    return tensor.contiguous()


def _sq_sum_backward(ctx, grad):
    return [(2 * g * x).to(x.dtype) for g, x in zip(grad, ctx.saved_tensors, strict=True)]


def _keep_tensors(ctx, inputs, output):
    ctx.save_for_backward(*inputs[0])


def _norm(tensors):
    sums = torch.ops.largebatch.multi_tensor_sq_sum(tensors)
    return safe_sqrt(sums.sum()), safe_sqrt(sums)


define("multi_tensor_sq_sum(Tensor[] tensors) -> Tensor", _sq_sum, _sq_sum_fake)
torch.library.register_autograd(
    "largebatch::multi_tensor_sq_sum", _sq_sum_backward, setup_context=_keep_tensors, lib=library
)
library.define("multi_tensor_norm(Tensor[] tensors) -> (Tensor total, Tensor norms)")
library.impl("multi_tensor_norm", _norm, "CompositeImplicitAutograd")
