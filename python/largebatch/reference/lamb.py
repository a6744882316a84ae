# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""LAMB: layer-wise adaptive moments for large batches.

You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
arXiv 1904.00962, Algorithm 2, once for every tensor ("layer") of the model:

.. math::
    m_t &= \beta_1 m_{t-1} + \beta_3\, g_t, \qquad \beta_3 = 1 - \beta_1 \\
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
    \hat m_t &= m_t / (1 - \beta_1^t), \qquad \hat v_t = v_t / (1 - \beta_2^t) \\
    u_t &= \hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda x_t \\
    x_{t+1} &= x_t - \eta\, \frac{\phi(\lVert x_t \rVert)}{\lVert u_t \rVert}\, u_t

Published code differs from the box and from itself; every difference is a switch here:

==================  ================================================================================
`max_grad_norm`     the gradients of the whole model are first clipped to this global norm (apex)
`grad_averaging`    False puts 1 in the place of :math:`\beta_3` (apex)
`bias_correction`   False: :math:`\hat m = m, \hat v = v` (third version of the paper). "outside":
                    likewise, and :math:`\eta` is multiplied by
                    :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)` after the ratio (DeepSpeed)
`decay`             "in_update": as in the box. "l2": :math:`g + \lambda x` enters the moments.
                    "outside": :math:`x` shrinks by :math:`1 - \eta\lambda` before anything is
                    measured (AdamW)
`adapt`             "always"; "decay_only": only where :math:`\lambda \neq 0` (apex); "never"
`weight_norm_clip`  :math:`\phi(z) = \min(\max(z, \gamma_l), \gamma_u)`; None is the identity
`trust_clip`        bounds on the ratio itself; upper bound 1 is LAMBC (Fong et al. 2020,
                    arXiv 2011.13584)
==================  ================================================================================

Whatever the switches, the ratio is 1 if :math:`\lVert x \rVert` or :math:`\lVert u \rVert` is 0:
without that rule a tensor that starts at zero would stay there.

A step has two phases, and only a pair of sums per tensor passes from one to the other: add those
up over the ranks in between, and tensors may be sharded in any way.
"""

import torch

from .norm import clip_divisor, clipping, skip_flag, squared_sums, sum_of_squares, unscale, write


@torch.no_grad()
def lamb_step(
    params,
    grads,
    exp_avgs,
    exp_avg_sqs,
    steps,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    bias_correction,
    grad_averaging,
    max_grad_norm,
    decay,
    adapt,
    trust_clip,
    weight_norm_clip,
    maximize,
    copies=(),
    grad_sq_sum=None,
    grad_scale=None,
    found_inf=None,
):
    r"""Do one LAMB step on a list of tensors, in place: :func:`lamb_moments`, :func:`lamb_apply`.

    The equations and the meaning of every switch stand at the top of this file.

    Parameters
    ----------
    params : sequence of T Tensors
        :math:`x`, any shape, floating. Read and written.
    grads : sequence of T Tensors
        :math:`g`, shaped as `params`, any floating dtype. Never written.
    exp_avgs, exp_avg_sqs : sequence of T Tensors
        :math:`m` and :math:`v`, shaped as `params`. Read and written. Their dtype is the dtype of
        all the arithmetic; sums over a tensor are float64 whatever it is.
    steps : sequence of T Tensors
        :math:`t`, 0-dim, number of steps taken so far; each is advanced by 1.
    lr : float or 0-dim Tensor
        :math:`\eta \ge 0`.
    betas : (float, float)
        :math:`\beta_1, \beta_2`, each in [0, 1).
    eps : float
        :math:`\epsilon \ge 0`, added to the root.
    weight_decay : float
        :math:`\lambda \ge 0`.
    bias_correction : True, False or "outside"
    grad_averaging : bool
    max_grad_norm : float or None
        Limit on the global gradient norm, in unscaled units; None, ``<= 0``, ``inf`` are "off".
    decay : "in_update", "l2" or "outside"
    adapt : "decay_only", "always", "never" or bool
        True is "always", False is "never".
    trust_clip : None, float or (float, float)
        Upper, or lower and upper, bound of the ratio.
    weight_norm_clip : None or (float, float)
        :math:`\gamma_l, \gamma_u`.
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
        ``[T, 2]`` float64, :math:`(\lVert x_t \rVert^2, \lVert u_t \rVert^2)` of each tensor.

    Raises
    ------
    ValueError
        For an unknown `bias_correction`, `decay` or `adapt`.

    Notes
    -----
    No host synchronisation if every tensor is on one device. Temporary memory of a few times the
    largest tensor. Same bits on every run as far as ``torch.sum`` has that property.

    Examples
    --------
    >>> x, g = [torch.ones(4).double()], [torch.ones(4).double()]
    >>> m, v, t = [torch.zeros_like(x[0])], [torch.zeros_like(x[0])], [torch.tensor(0.0)]
    >>> box = dict(bias_correction=True, grad_averaging=True, max_grad_norm=None,
    ...            decay="in_update", adapt="always", trust_clip=None, weight_norm_clip=None)
    >>> _ = lamb_step(x, g, m, v, t, lr=0.25, betas=(0.9, 0.999), eps=0.0, weight_decay=0.01,
    ...               maximize=False, **box)
    >>> x[0]  # every element of a constant tensor moves by lr times its size
    tensor([0.7500, 0.7500, 0.7500, 0.7500], dtype=torch.float64)
    """
    if grad_sq_sum is None and clipping(max_grad_norm):
        grad_sq_sum = sum_of_squares(grads)
    hyper = dict(
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        bias_correction=bias_correction,
        grad_averaging=grad_averaging,
        max_grad_norm=max_grad_norm,
        decay=decay,
        adapt=adapt,
        trust_clip=trust_clip,
        weight_norm_clip=weight_norm_clip,
        maximize=maximize,
        grad_sq_sum=grad_sq_sum,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    sums = lamb_moments(params, grads, exp_avgs, exp_avg_sqs, steps, **hyper)
    lamb_apply(params, exp_avgs, exp_avg_sqs, steps, sums, copies=copies, **hyper)
    return sums


@torch.no_grad()
def lamb_moments(
    params,
    grads,
    exp_avgs,
    exp_avg_sqs,
    steps,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    bias_correction,
    grad_averaging,
    max_grad_norm,
    decay,
    adapt,
    trust_clip,
    weight_norm_clip,
    maximize,
    grad_sq_sum=None,
    grad_scale=None,
    found_inf=None,
):
    r"""Do the first phase of a step: moments and step counters forward, norms measured.

    Arguments as in :func:`lamb_step`, so that one dictionary serves both phases; `params` are only
    read, and `adapt`, `trust_clip` and `weight_norm_clip` belong to the second phase.

    Returns
    -------
    Tensor
        ``[T, 2]`` float64: :math:`(\lVert x \rVert^2, \lVert u \rVert^2)` of the tensors, or of
        the parts of tensors, that were given. Add it up over the ranks that hold the other parts.
        Without meaning if the step is skipped.

    Examples
    --------
    >>> sums = lamb_moments(x, g, m, v, t, **hyper)             # doctest: +SKIP
    >>> lamb_apply(x, m, v, t, sums, **hyper)                   # doctest: +SKIP
    """
    _check_switches(bias_correction, decay, adapt)
    if grad_sq_sum is None and clipping(max_grad_norm):
        grad_sq_sum = sum_of_squares(grads)
    c = clip_divisor(_unscaled(grad_sq_sum, grad_scale), max_grad_norm)
    skip = _skip(found_inf, grad_scale, grad_sq_sum, max_grad_norm)

    beta1, beta2 = betas
    beta3 = 1 - beta1 if grad_averaging else 1.0
    measured, updates = [], []
    for p, g, m, v, t in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        g = unscale(g, m.dtype, grad_scale, maximize) / c.to(m)
        if decay == "l2":
            g = g + weight_decay * p.to(m.dtype)
        write(m, beta1 * m + beta3 * g, skip)
        write(v, beta2 * v + (1 - beta2) * g.square(), skip)
        write(t, t + 1, skip)
        x, u = _weights_and_update(p, m, v, t, lr, betas, eps, weight_decay, bias_correction, decay)
        measured.append(x)
        updates.append(u)
    return torch.stack([squared_sums(measured), squared_sums(updates)], dim=1)


@torch.no_grad()
def lamb_apply(
    params,
    exp_avgs,
    exp_avg_sqs,
    steps,
    sums,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    bias_correction,
    grad_averaging,
    max_grad_norm,
    decay,
    adapt,
    trust_clip,
    weight_norm_clip,
    maximize,
    copies=(),
    grad_sq_sum=None,
    grad_scale=None,
    found_inf=None,
):
    r"""Do the second phase of a step: the update again from the moments, scaled by the ratio.

    Arguments as in :func:`lamb_step`; `params` and `copies` are written, all else is only read,
    and `grad_averaging` and `maximize` belong to the first phase.

    Parameters
    ----------
    sums : Tensor
        ``[T, 2]`` float64: what :func:`lamb_moments` returned, complete for every tensor.
    grad_sq_sum : Tensor or None
        As given to the first phase. Needed if clipping is on under a gradient scaler: the second
        phase must skip when the first did.

    Raises
    ------
    ValueError
        If it is needed and missing, and for an unknown switch.

    Examples
    --------
    >>> lamb_apply(x, m, v, t, sums, **hyper)                   # doctest: +SKIP
    """
    _check_switches(bias_correction, decay, adapt)
    scaler = found_inf is not None or grad_scale is not None
    if scaler and clipping(max_grad_norm) and grad_sq_sum is None:
        raise ValueError("lamb_apply: grad_sq_sum is missing, expected that of the first phase.")
    skip = _skip(found_inf, grad_scale, grad_sq_sum, max_grad_norm)
    adapted = weight_decay != 0 if adapt == "decay_only" else adapt in ("always", True)
    ratios = trust_ratio(sums, trust_clip, weight_norm_clip) if adapted else torch.ones(len(params))
    for i, (p, m, v, t) in enumerate(zip(params, exp_avgs, exp_avg_sqs, steps, strict=True)):
        x, u = _weights_and_update(p, m, v, t, lr, betas, eps, weight_decay, bias_correction, decay)
        step_size = lr * ratios[i].double()
        if bias_correction == "outside":
            b1, b2 = _corrections(t, betas)
            step_size = step_size * (b2.sqrt() / b1).to(step_size.device)
        x = x - step_size.to(x) * u
        write(p, x, skip)
        if len(copies):
            write(copies[i], x, skip)


def trust_ratio(sums, trust_clip=None, weight_norm_clip=None):
    r"""Return :math:`r = \phi(\lVert x \rVert) / \lVert u \rVert` for every tensor.

    First :math:`\phi` acts on the weight norm, then the quotient is taken, then `trust_clip` bounds
    it. A tensor with :math:`\lVert x \rVert = 0` or :math:`\lVert u \rVert = 0` gets exactly 1,
    whatever the bounds; NaN norms give NaN.

    Parameters
    ----------
    sums : Tensor
        ``[T, 2]`` float64: squared norms of weights and update.
    trust_clip, weight_norm_clip
        As in :func:`lamb_step`.

    Returns
    -------
    Tensor
        ``[T]`` float64.

    Examples
    --------
    >>> trust_ratio(torch.tensor([[4.0, 1.0], [0.0, 1.0]]), trust_clip=(3.0, 10.0))
    tensor([3., 1.], dtype=torch.float64)
    """
    w, q = sums.double().sqrt().unbind(dim=1)
    phi = w if weight_norm_clip is None else w.clamp(*weight_norm_clip)
    r = phi / q
    if isinstance(trust_clip, tuple | list):
        r = r.clamp(*trust_clip)
    elif trust_clip is not None:
        r = r.clamp(max=trust_clip)
    return torch.where((w == 0) | (q == 0), 1.0, r)


def _weights_and_update(p, m, v, t, lr, betas, eps, weight_decay, bias_correction, decay):
    """Return (x, u): the weights the ratio is measured on and the update before it is scaled."""
    x = p.to(m.dtype)
    if bias_correction is True:
        b1, b2 = (b.to(m) for b in _corrections(t, betas))
        u = (m / b1) / ((v / b2).sqrt() + eps)
    else:
        u = m / (v.sqrt() + eps)
    if decay == "in_update":
        u = u + weight_decay * x
    if decay == "outside":
        x = x * _as_scalar(1 - lr * weight_decay, x)
    return x, u


def _corrections(t, betas):
    """Return 1 - beta1**t and 1 - beta2**t in float64: float32 would lose 1e-5 of the second."""
    t = t.double()
    return 1 - betas[0] ** t, 1 - betas[1] ** t


def _as_scalar(value, like):
    return value.to(like) if torch.is_tensor(value) else value


def _unscaled(grad_sq_sum, grad_scale):
    if grad_sq_sum is None or grad_scale is None:
        return grad_sq_sum
    return grad_sq_sum.double() / grad_scale.reshape(()).double().square()


def _skip(found_inf, grad_scale, grad_sq_sum, max_grad_norm):
    return skip_flag(found_inf, grad_scale, grad_sq_sum if clipping(max_grad_norm) else None)


def _check_switches(bias_correction, decay, adapt):
    for name, value, allowed in (
        ("bias_correction", bias_correction, (True, False, "outside")),
        ("decay", decay, ("in_update", "l2", "outside")),
        ("adapt", adapt, ("decay_only", "always", "never", True, False)),
    ):
        if value not in allowed:
            raise ValueError(f"lamb: {name} got {value!r}, expected one of {allowed}.")
