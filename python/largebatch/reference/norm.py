# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Norms over lists of tensors, the global gradient clip, and the decision to skip a step."""

import math

import torch


def squared_sums(tensors):
    r"""Return the sum of squares of each tensor, accumulated in float64.

    Parameters
    ----------
    tensors : sequence of T Tensors
        Any real floating dtype, any shape (an empty tensor counts as 0), one device. Not written.

    Returns
    -------
    Tensor
        ``[T]`` float64 on the device of the tensors (``[0]`` on the CPU for an empty list).
        A value is exact to float64 rounding, so 1e19 in float32 does not overflow.

    Examples
    --------
    >>> squared_sums([torch.tensor([3.0, 4.0]), torch.zeros(0)])
    tensor([25.,  0.], dtype=torch.float64)
    """
    if len(tensors) == 0:
        return torch.zeros(0, dtype=torch.float64)
    return torch.stack([x.double().square().sum() for x in tensors])


def sum_of_squares(tensors):
    """Return the sum of squares over all elements of all tensors, a 0-dim float64 tensor.

    Same arguments as :func:`squared_sums`, of which this is the sum; 0 for an empty list.

    Examples
    --------
    >>> sum_of_squares([torch.ones(3), torch.tensor(2.0)])
    tensor(7., dtype=torch.float64)
    """
    return squared_sums(tensors).sum()


def multi_tensor_norm(tensors):
    r"""Return the L2 norm of everything and of each tensor, in float64.

    .. math:: \text{norms}_i = \lVert x_i \rVert_2, \qquad
              \text{total} = \Big(\sum_i \lVert x_i \rVert_2^2\Big)^{1/2}

    Differentiable; the subgradient taken at a zero norm is 0.

    Parameters
    ----------
    tensors : sequence of T Tensors
        As in :func:`squared_sums`.

    Returns
    -------
    total : Tensor
        0-dim float64.
    norms : Tensor
        ``[T]`` float64.

    Examples
    --------
    >>> total, norms = multi_tensor_norm([torch.tensor([3.0]), torch.tensor([4.0])])
    >>> total.item(), norms.tolist()
    (5.0, [3.0, 4.0])
    """
    sums = squared_sums(tensors)
    return safe_sqrt(sums.sum()), safe_sqrt(sums)


def safe_sqrt(x):
    """Return the square root, with slope 0 at 0.

    Examples
    --------
    >>> safe_sqrt(torch.tensor([4.0, 0.0]))
    tensor([2., 0.])
    """
    # The inner `where` keeps the infinite slope of the root at 0 out of the backward pass.
    positive = x != 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def clipping(max_norm):
    """Tell whether `max_norm` asks for clipping: None, zero or less, and infinity are "off"."""
    return max_norm is not None and 0 < max_norm < math.inf


def clip_divisor(sq_sum, max_norm):
    r"""Return the number gradients are divided by so that their global norm is at most `max_norm`.

    .. math:: c = \max(1, G / \text{max\_norm}), \qquad G = \sqrt{\text{sq\_sum}}

    The exact form of NVIDIA apex's FusedLAMB: no epsilon, so gradients below the limit keep their
    bits. (``torch.nn.utils.clip_grad_norm_`` adds 1e-6 to G.)

    Parameters
    ----------
    sq_sum : Tensor or None
        0-dim; sum of squares of the unscaled gradients of *all* groups. May be None when off.
    max_norm : float or None
        The limit; None, ``<= 0`` and ``inf`` switch clipping off: the divisor is 1.

    Returns
    -------
    Tensor
        0-dim float64, at least 1; NaN when G is NaN, so a broken gradient stays visible.

    Examples
    --------
    >>> clip_divisor(torch.tensor(16.0), max_norm=2.0)
    tensor(2., dtype=torch.float64)
    """
    if not clipping(max_norm):
        return torch.ones((), dtype=torch.float64)
    return (sq_sum.double().sqrt() / max_norm).clamp(min=1.0)  # clamp passes NaN on


def skip_flag(found_inf=None, grad_scale=None, grad_sq_sum=None):
    """Decide whether a step under a gradient scaler must leave everything as it is.

    Parameters
    ----------
    found_inf : Tensor or None
        One element; non-zero means that a gradient somewhere is not finite.
    grad_scale : Tensor or None
        One element; its presence alone says that a scaler is active.
    grad_sq_sum : Tensor or None
        0-dim; sum of squares of the gradients, if it is known: a non-finite one also skips.

    Returns
    -------
    Tensor or None
        0-dim bool; None without a scaler: then nothing is ever skipped and non-finite values
        propagate by the formula.

    Examples
    --------
    >>> skip_flag(found_inf=torch.tensor(1.0))
    tensor(True)
    """
    if found_inf is None and grad_scale is None:
        return None
    skip = torch.tensor(False)
    if found_inf is not None:
        skip = found_inf.reshape(()) != 0
    if grad_sq_sum is not None:
        skip = skip.to(grad_sq_sum.device) | ~torch.isfinite(grad_sq_sum)
    return skip


def unscale(grad, dtype, grad_scale=None, maximize=False):
    """Return the gradient the formulas speak of: in `dtype`, unscaled, negated to maximise.

    The given tensor is never written.

    Examples
    --------
    >>> unscale(torch.tensor([8.0]), torch.float64, grad_scale=torch.tensor(4.0))
    tensor([2.], dtype=torch.float64)
    """
    g = grad.to(dtype)
    if grad_scale is not None:
        g = g / grad_scale.reshape(()).to(dtype)
    return -g if maximize else g


def write(target, value, skip=None):
    """Round `value` into `target` (to nearest, ties to even), unless the step is skipped.

    ``skip`` is a 0-dim bool tensor and stays on its device; a skipped target keeps its bits.

    Examples
    --------
    >>> x = torch.zeros(2); write(x, torch.ones(2), skip=torch.tensor(True)); x
    tensor([0., 0.])
    """
    value = value.to(target.dtype)
    if skip is not None:
        value = torch.where(skip.to(target.device), target, value)
    target.copy_(value)
