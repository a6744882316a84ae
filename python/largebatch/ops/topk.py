# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Exact selection of the largest elements, and the sum of what several ranks selected."""

import torch

from .. import _C
from ._library import as_tensor, define, library


def topk_select(x, k):
    r"""Return the k elements of the largest magnitude, and where they are.

    The order is that of the bits without the sign, larger first, then the lower index: -0 is 0,
    infinities are above finite numbers, NaN above infinities, and of equal elements the first ones
    are taken. Reads x twice, and once where it fits a tile of 16384 elements.

    Parameters
    ----------
    x : array
        fp32, fp16, bf16 or fp64, any shape; its elements are counted in C order.
    k : int
        0 to the number of elements.

    Returns
    -------
    values : Tensor
        ``[k]``, of the dtype of x. Differentiable any number of times: where x was selected, the
        gradient is that of the value, elsewhere 0.
    indices : Tensor
        ``[k]`` int64, ascending.

    Raises
    ------
    TypeError, ValueError
        One line that names the argument.

    Notes
    -----
    The same bits on every run, for any number of threads, any CPU instruction set, and on CUDA. No
    host synchronisation.

    Examples
    --------
    >>> largebatch.ops.topk_select(torch.tensor([1.0, -3.0, 2.0]), 2)
    (tensor([-3.,  2.]), tensor([1, 2]))
    """
    return torch.ops.largebatch.topk_select(as_tensor("topk_select", "x", x), k)


def scatter_reduce(values, indices, numel):
    r"""Return the mean over ranks of sparse vectors.

    .. math:: \text{out}_i = \sum_w \frac{1}{W} \sum_{j: \text{indices}_{wj} = i} \text{values}_{wj}

    rank after rank, so that every rank has the same bits where the indices of each are distinct.

    Parameters
    ----------
    values : array
        ``[W, k]``, fp32 or fp64.
    indices : array
        ``[W, k]`` int64 in [0, numel).
    numel : int

    Returns
    -------
    Tensor
        ``[numel]``, of the dtype of the values. Differentiable any number of times in them.

    Examples
    --------
    >>> values, indices = torch.tensor([[2.0], [4.0]]), torch.tensor([[1], [1]])
    >>> largebatch.ops.scatter_reduce(values, indices, 3)
    tensor([0., 3., 0.])
    """
    op = "scatter_reduce"
    values = as_tensor(op, "values", values)
    indices = as_tensor(op, "indices", indices, (values.device, "values"))
    return torch.ops.largebatch.scatter_reduce(values, indices, numel)


def _check_k(x, k):
    if not 0 <= k <= x.numel():
        raise ValueError(f"topk_select: k: got {k}, expected 0 to the {x.numel()} elements of x.")


def _topk_select(x, k):
    _check_k(x, k)
    flat = x.detach().contiguous().view(-1)
    values = torch.empty(k, dtype=x.dtype, device=x.device)
    indices = torch.empty(k, dtype=torch.int64, device=x.device)
    counts = torch.empty(1, 2, dtype=torch.int64, device=x.device)
    plan = _C.CompressionPlan([x.numel()], [{"select": "topk", "k": k}])
    plan.select([flat], values, indices, counts)
    return values, indices


def _topk_select_fake(x, k):
    _check_k(x, k)
    return x.new_empty(k), x.new_empty(k, dtype=torch.int64)


def _keep_indices(ctx, inputs, output):
    ctx.shape = inputs[0].shape
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _topk_select_backward(ctx, grad, _):
    (indices,) = ctx.saved_tensors
    zeros = grad.new_zeros(ctx.shape.numel())
    return zeros.scatter(0, indices, grad).view(ctx.shape), None


def _check_pairs(values, indices):
    op = "scatter_reduce"
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: values has dtype {values.dtype}, expected float32 or float64.")
    if indices.dtype != torch.int64:
        raise TypeError(f"{op}: indices has dtype {indices.dtype}, expected int64.")
    if values.dim() != 2 or values.shape != indices.shape:
        raise ValueError(
            f"{op}: indices has shape {list(indices.shape)}, values {list(values.shape)}, expected "
            "[W, k] both."
        )


def _scatter_reduce(values, indices, numel):
    _check_pairs(values, indices)
    out = values.new_zeros(numel)
    share = torch.tensor(1 / max(len(values), 1), dtype=values.dtype, device=values.device)
    for value, index in zip(values.detach(), indices, strict=True):
        out.index_add_(0, index, value * share)
    return out


def _scatter_reduce_fake(values, indices, numel):
    _check_pairs(values, indices)
    return values.new_empty(numel)


def _keep_pairs(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _scatter_reduce_backward(ctx, grad):
    (indices,) = ctx.saved_tensors
    return grad[indices] / max(len(indices), 1), None, None


define(
    "topk_select(Tensor x, int k) -> (Tensor values, Tensor indices)",
    _topk_select,
    _topk_select_fake,
)
torch.library.register_autograd(
    "largebatch::topk_select", _topk_select_backward, setup_context=_keep_indices, lib=library
)
define(
    "scatter_reduce(Tensor values, Tensor indices, int numel) -> Tensor",
    _scatter_reduce,
    _scatter_reduce_fake,
)
torch.library.register_autograd(
    "largebatch::scatter_reduce", _scatter_reduce_backward, setup_context=_keep_pairs, lib=library
)
