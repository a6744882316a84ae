# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Adan: adaptive Nesterov momentum from the differences of gradients.

Xie, Zhou, Li, Lin, Yan 2022, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep
Models", arXiv 2208.06677, Algorithm 1. With decay factors :math:`\beta_i` in the place of the
paper's :math:`1 - \beta_i`, as its authors' code has them, and :math:`d_k = g_k - g_{k-1}`:

.. math::
    m_k &= \beta_1 m_{k-1} + (1 - \beta_1)\, g_k \\
    v_k &= \beta_2 v_{k-1} + (1 - \beta_2)\, d_k \\
    n_k &= \beta_3 n_{k-1} + (1 - \beta_3)\, (g_k + \beta_2 d_k)^2 \\
    u_k &= \eta \left( \frac{m_k}{1 - \beta_1^k} + \beta_2 \frac{v_k}{1 - \beta_2^k} \right)
           \Big/ \left( \sqrt{\frac{n_k}{1 - \beta_3^k}} + \epsilon \right) \\
    x_{k+1} &= (x_k - u_k) / (1 + \eta \lambda)

Where this departs from the box of the paper it follows the authors' code:

================  ==================================================================================
start             the paper has :math:`m_0 = g_0, n_0 = g_0^2`; the code starts at zero and corrects
                  the bias, as above. :math:`d_1 = 0` in both
`max_grad_norm`   the gradients of the whole model are first scaled by
                  :math:`\min(1, \text{max\_grad\_norm} / (\lVert g \rVert + \epsilon))`
`no_prox`         :math:`x_{k+1} = (1 - \eta \lambda)\, x_k - u_k`: AdamW's decay
================  ==================================================================================

The factor :math:`\beta_2` of :math:`d_k` is the paper's :math:`1 - \beta_2`: 0.92 by default, not
0.08. The gradient that is kept for the next difference is the one used here: unscaled, clipped and,
to maximise, negated. It is kept with its sign changed, as the authors' checkpoints have it.
"""

import torch

from .norm import clipping, skip_flag, sum_of_squares, unscale, write


@torch.no_grad()
def adan_step(
    params,
    grads,
    exp_avgs,
    exp_avg_diffs,
    exp_avg_sqs,
    neg_pre_grads,
    steps,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    max_grad_norm,
    no_prox,
    maximize,
    copies=(),
    grad_sq_sum=None,
    grad_scale=None,
    found_inf=None,
):
    r"""Do one Adan step on a list of tensors, in place.

    The equations and the meaning of every switch stand at the top of this file.

    Parameters
    ----------
    params : sequence of T Tensors
        :math:`x`, any shape, floating. Read and written.
    grads : sequence of T Tensors
        :math:`g`, shaped as `params`, any floating dtype. Never written.
    exp_avgs, exp_avg_diffs, exp_avg_sqs : sequence of T Tensors
        :math:`m`, :math:`v` and :math:`n`, shaped as `params`. Read and written. Their dtype is the
        dtype of all the arithmetic; the gradient norm is float64 whatever it is.
    neg_pre_grads : sequence of T Tensors
        :math:`-g_{k-1}`, like the three above. Not looked at where the step is 0. Written.
    steps : sequence of T Tensors
        0-dim, number of steps taken so far; each is advanced by 1.
    lr : float or 0-dim Tensor
        :math:`\eta \ge 0`.
    betas : (float, float, float)
        :math:`\beta_1, \beta_2, \beta_3`, each in [0, 1).
    eps : float
        :math:`\epsilon \ge 0`, added to the root, and to the gradient norm when clipping.
    weight_decay : float
        :math:`\lambda \ge 0`.
    max_grad_norm : float or None
        Limit on the global gradient norm, in unscaled units; None, ``<= 0``, ``inf`` are "off".
    no_prox : bool
        Decay before the update instead of after it.
    maximize : bool
        Ascend instead of descend.
    copies : sequence of T Tensors, or empty
        Model weights in another dtype of which `params` are the masters; they get `params` rounded
        to nearest, ties to even. Written only.
    grad_sq_sum : Tensor or None
        0-dim sum of squares of the gradients that the clip refers to, if it is to cover more than
        `grads` (other groups, other ranks). Of the gradients as given: still times `grad_scale`.
    grad_scale : Tensor or None
        One element: `grads` are this many times the true gradients.
    found_inf : Tensor or None
        One element. If non-zero the step is skipped; so it is if the global norm was taken and is
        not finite while `grad_scale` or `found_inf` is given. Nothing at all is written then.

    Returns
    -------
    Tensor
        ``[T]`` int64: in each tensor, the number of elements of :math:`u` that are not finite.
        Zeros if the step is skipped.

    Notes
    -----
    No host synchronisation if every tensor is on one device. Temporary memory of a few times the
    largest tensor. Same bits on every run as far as ``torch.sum`` has that property.

    Examples
    --------
    >>> x, g = [torch.ones(4).double()], [torch.full((4,), 3.0).double()]
    >>> m, v, n, q = ([torch.zeros_like(x[0])] for _ in range(4))
    >>> _ = adan_step(x, g, m, v, n, q, [torch.tensor(0.0)], lr=0.25, betas=(0.98, 0.92, 0.99),
    ...               eps=0.0, weight_decay=0.0, max_grad_norm=None, no_prox=False, maximize=False)
    >>> x[0]  # the first step is lr against the sign of the gradient
    tensor([0.7500, 0.7500, 0.7500, 0.7500], dtype=torch.float64)
    """
    factor, skip = _clip_and_skip(grads, max_grad_norm, eps, grad_sq_sum, grad_scale, found_inf)
    beta1, beta2, beta3 = betas
    bad = []
    states = zip(exp_avgs, exp_avg_diffs, exp_avg_sqs, neg_pre_grads, steps, strict=True)
    for i, (p, g, (m, v, n, neg_q, t)) in enumerate(zip(params, grads, states, strict=True)):
        g = unscale(g, m.dtype, grad_scale, maximize)
        if factor is not None:
            g = g * factor.to(g)
        d = torch.where((t == 0).to(g.device), 0.0, g + neg_q)
        m_new = beta1 * m + (1 - beta1) * g
        v_new = beta2 * v + (1 - beta2) * d
        n_new = beta3 * n + (1 - beta3) * (g + beta2 * d).square()

        # In float64: float32 would lose 1e-5 of the third.
        b1, b2, b3 = ((1 - beta ** (t + 1).double()).to(g) for beta in betas)
        eta = lr.to(g) if torch.is_tensor(lr) else lr
        u = eta * (m_new / b1 + beta2 * (v_new / b2)) / ((n_new / b3).sqrt() + eps)
        x = p.to(g.dtype)
        decay = eta * weight_decay
        x = (1 - decay) * x - u if no_prox else (x - u) / (1 + decay)

        pairs = [(m, m_new), (v, v_new), (n, n_new), (neg_q, -g), (p, x), (t, t + 1)]
        if len(copies):
            pairs.append((copies[i], x))
        for target, value in pairs:
            write(target, value, skip)
        bad.append((~u.isfinite()).sum())
    if not bad:
        return torch.zeros(0, dtype=torch.int64)
    count = torch.stack(bad)
    return count if skip is None else torch.where(skip.to(count.device), 0, count)


def clip_factor(sq_sum, max_norm, eps):
    r"""Return the number by which gradients are multiplied to clip their global norm.

    .. math:: s = \min(1, \text{max\_norm} / (G + \epsilon)), \qquad G = \sqrt{\text{sq\_sum}}

    The form of Adan's authors; ``norm.clip_divisor`` is NVIDIA's, without :math:`\epsilon`.

    Parameters
    ----------
    sq_sum : Tensor
        0-dim; sum of squares of the unscaled gradients of all groups.
    max_norm : float
        The limit, above 0.
    eps : float
        :math:`\epsilon \ge 0`.

    Returns
    -------
    Tensor
        0-dim float64 in [0, 1]; NaN when G is NaN, so a broken gradient stays visible.

    Examples
    --------
    >>> clip_factor(torch.tensor(16.0), max_norm=2.0, eps=0.0)
    tensor(0.5000, dtype=torch.float64)
    """
    return (max_norm / (sq_sum.double().sqrt() + eps)).clamp(max=1.0)  # clamp passes NaN on


def _clip_and_skip(grads, max_grad_norm, eps, grad_sq_sum, grad_scale, found_inf):
    """Return the clip factor, or None, and whether the step is skipped."""
    if grad_sq_sum is None and clipping(max_grad_norm):
        grad_sq_sum = sum_of_squares(grads)
    skip = skip_flag(found_inf, grad_scale, grad_sq_sum if clipping(max_grad_norm) else None)
    if not clipping(max_grad_norm):
        return None, skip
    scale = 1.0 if grad_scale is None else grad_scale.reshape(()).double()
    return clip_factor(grad_sq_sum / scale**2, max_grad_norm, eps), skip
