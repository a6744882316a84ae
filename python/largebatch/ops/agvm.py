# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Dot products of the two halves of a batch's gradient: what AGVM measures."""

import math

import torch

from .. import _C
from ._library import as_tensors, define


def half_dots(x, y, combine, *, exp_avg_sq=None, beta2=0.999, eps=1e-8, grad_scale=None):
    r"""Return the dot products of two linear combinations of each pair of tensors.

    .. math::
        a = a_x x + a_y y, \quad b = b_x x + b_y y, \qquad
        \text{dots}_i = \Big(\sum_j a_{ij}^2,\ \sum_j b_{ij}^2,\ \sum_j a_{ij} b_{ij}\Big)

    With second moments v both halves are first scaled as Adam would scale them,

    .. math:: h \leftarrow \frac{h}{\sqrt{\beta_2 v + (1-\beta_2)\, h^2} + \epsilon},
              \qquad h \in \{a, b\}

    What AGVM needs (Xue et al. 2022, "Large-batch Optimization for Dense Visual Predictions", arXiv
    2210.11078): a and b are the mean gradients of two halves of a batch, and
    :math:`1 - \text{dots}_{i2} / \sqrt{\text{dots}_{i0}\,\text{dots}_{i1}}` is the noise between
    them. They are never in memory: x and y are read once, 8 B per fp32 element, 12 with v. The
    identities that get the three sums from those of x and y
    (``reference.agvm.from_sum_and_difference``) cost as much, cancel, and know nothing of v.

    Parameters
    ----------
    x : list of T arrays
        fp32, fp16, bf16 or fp64, mixed as you like, any shape, dense, on one device. Read.
    y : list of T arrays
        Of the dtypes and layouts of `x`. Read.
    combine : ((float, float), (float, float))
        :math:`((a_x, a_y), (b_x, b_y))`. For x the sum of one half and y the sum of both, with as
        many workers or micro-batches in each: ``((2, 0), (-2, 2))``.
    exp_avg_sq : list of T arrays, optional
        v, laid out like `x`: fp32, or the dtype of `x`; fp16 and bf16 also with fp32 `x`; fp64 with
        fp64 alone. Read.
    beta2 : float
        In [0, 1). Used with `exp_avg_sq` only, as is `eps`.
    eps : float
        At least 0. With 0, an element whose h and v are both 0 makes the sums NaN.
    grad_scale : Tensor, optional
        One float32 on the device of `x`: x and y are divided by it.

    Returns
    -------
    Tensor
        ``[T, 3]`` float64 on that device: 0 for a tensor without elements. Halves are formed in
        float32 (float64 for float64), squared and summed in float64 in a fixed order: the same bits
        on every run, for any number of threads and any CPU instruction set. Not differentiable.

    Raises
    ------
    TypeError, ValueError
        One line naming the argument and the tensor.

    Notes
    -----
    Allocates the result, 24 B for every 16384 elements, and a table of the tensors. No host
    synchronisation.

    Examples
    --------
    >>> half, total = [torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 2.0])]
    >>> half_dots(half, total, ((1, 0), (-1, 1)))  # a = (1, 0), b = (0, 2)
    tensor([[1., 4., 0.]], dtype=torch.float64)
    """
    x, y, square = as_tensors("half_dots", x=x, y=y, exp_avg_sq=exp_avg_sq or [])
    try:
        (ax, ay), (bx, by) = combine
        numbers = [float(c) for c in (ax, ay, bx, by)]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"half_dots: combine: got {combine!r}, expected ((ax, ay), (bx, by)), four numbers."
        )
    if not x:
        return torch.zeros(0, 3, dtype=torch.float64)
    return torch.ops.largebatch.half_dots(x, y, numbers, square, beta2, eps, grad_scale)


def _half_dots(x, y, combine, exp_avg_sq, beta2, eps, grad_scale):
    sums = torch.empty(len(x), 3, dtype=torch.float64, device=x[0].device)
    hyper = {"beta2": beta2, "eps": eps}
    _C.half_dots(x, y, combine, exp_avg_sq, hyper, grad_scale, sums)
    return sums


def _half_dots_fake(x, *_):
    return x[0].new_empty(len(x), 3, dtype=torch.float64)


define(
    "half_dots(Tensor[] x, Tensor[] y, float[] combine, Tensor[] exp_avg_sq, float beta2, "
    "float eps, Tensor? grad_scale) -> Tensor",
    _half_dots,
    _half_dots_fake,
)
