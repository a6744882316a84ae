# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""LARS: layer-wise adaptive rate scaling.

You, Gitman, Ginsburg 2017, "Large Batch Training of Convolutional Networks", arXiv 1708.03888,
Algorithm 1, once for every tensor ("layer") :math:`w` of the model. The local rate (equation 6)

.. math:: r = \frac{\text{trust}\cdot\lVert w \rVert}
                   {\lVert g \rVert + \lambda \lVert w \rVert + \epsilon}
          \quad\text{if } \lVert w \rVert > 0 \text{ and } \lVert g \rVert > 0, \text{ else } 1

scales gradient and decay together, :math:`d = r\,(g + \lambda w)`; both norms are taken before
decay. (The paper has no :math:`\epsilon`.) Two conventions of momentum are in use:

==================  ==========================================  ===============================
convention          momentum                                    step
==================  ==========================================  ===============================
paper, MLPerf       :math:`b = \mu b + \eta d`                  :math:`w \mathrel{-}= b`
torch.optim.SGD     :math:`b = \mu b + (1-\text{dampening})d`,  :math:`w \mathrel{-}= \eta b`
                    first step: :math:`b = d`
==================  ==========================================  ===============================

They agree only while :math:`\eta` is constant: with a warm-up the first remembers the old rates.
Nesterov's step is :math:`\mu b + \eta d` in the first, :math:`\eta(d + \mu b)` in the second.

LARC (`clip`) takes :math:`\min(r/\eta, 1)` in the place of :math:`r`: the local rate may lower the
global one, never raise it.
"""

import torch

from .norm import skip_flag, squared_sums, unscale, write


@torch.no_grad()
def lars_step(
    params,
    grads,
    momentum_buffers,
    steps,
    *,
    lr,
    momentum,
    dampening,
    weight_decay,
    nesterov,
    trust_coefficient,
    eps,
    clip,
    lr_in_momentum,
    adapt,
    maximize,
    copies=(),
    grad_scale=None,
    found_inf=None,
):
    r"""Do one LARS step on a list of tensors, in place: :func:`lars_norms`, :func:`lars_apply`.

    The equations stand at the top of this file.

    Parameters
    ----------
    params : sequence of T Tensors
        :math:`w`, any shape, floating. Read and written.
    grads : sequence of T Tensors
        :math:`g`, shaped as `params`, any floating dtype. Never written.
    momentum_buffers : sequence of T Tensors, or empty
        :math:`b`, shaped as `params`, zeros before the first step. Read and written, unless
        `momentum` is 0: then they are not looked at. Their dtype is the dtype of the arithmetic
        (without them: the dtype of `params`, at least float32); norms are float64 in any case.
    steps : sequence of T Tensors
        0-dim, number of steps taken so far; each is advanced by 1.
    lr : float or 0-dim Tensor
        :math:`\eta \ge 0`.
    momentum : float
        :math:`\mu \ge 0`.
    dampening : float
        As in ``torch.optim.SGD``; 0 if `lr_in_momentum`, where it has no meaning.
    weight_decay : float
        :math:`\lambda \ge 0`.
    nesterov : bool
    trust_coefficient : float
        Called "eeta" in MLPerf.
    eps : float
        :math:`\epsilon \ge 0`, in the denominator of the local rate.
    clip : bool
        LARC. A tensor without a local rate (zero norm) counts as :math:`r = 1` here too.
    lr_in_momentum : bool
        True for the first convention of the table, False for the second.
    adapt : bool
        False: :math:`r = 1`, and `clip` has nothing to clip.
    maximize : bool
        Ascend instead of descend.
    copies : sequence of T Tensors, or empty
        Model weights in another dtype of which `params` are the masters; they get `params` rounded
        to nearest, ties to even. Written only.
    grad_scale : Tensor or None
        One element: `grads` are this many times the true gradients.
    found_inf : Tensor or None
        One element. If non-zero nothing at all is written.

    Returns
    -------
    Tensor
        ``[T, 2]`` float64, :math:`(\lVert w \rVert^2, \lVert g \rVert^2)` of each tensor.

    Raises
    ------
    ValueError
        If `dampening` is combined with `lr_in_momentum`.

    Notes
    -----
    No host synchronisation if every tensor is on one device. Temporary memory of a few times the
    largest tensor. Same bits on every run as far as ``torch.sum`` has that property.

    Examples
    --------
    >>> w, g = [torch.ones(4).double()], [torch.ones(4).double()]
    >>> _ = lars_step(w, g, [], [torch.tensor(0.0)], lr=1.0, momentum=0, dampening=0,
    ...               weight_decay=0, nesterov=False, trust_coefficient=0.25, eps=0, clip=False,
    ...               lr_in_momentum=False, adapt=True, maximize=False)
    >>> w[0]  # without decay and momentum a tensor moves by lr * trust of its own norm
    tensor([0.7500, 0.7500, 0.7500, 0.7500], dtype=torch.float64)
    """
    sums = lars_norms(params, grads, grad_scale=grad_scale)
    lars_apply(
        params,
        grads,
        momentum_buffers,
        steps,
        sums,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        trust_coefficient=trust_coefficient,
        eps=eps,
        clip=clip,
        lr_in_momentum=lr_in_momentum,
        adapt=adapt,
        maximize=maximize,
        copies=copies,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    return sums


@torch.no_grad()
def lars_norms(params, grads, *, grad_scale=None):
    r"""Do the first phase of a step: measure the norms; nothing is written.

    Parameters
    ----------
    params, grads, grad_scale
        As in :func:`lars_step`.

    Returns
    -------
    Tensor
        ``[T, 2]`` float64: :math:`(\lVert w \rVert^2, \lVert g \rVert^2)`, the gradient unscaled.
        Add it up over the ranks that hold other parts of the same tensors.

    Examples
    --------
    >>> lars_norms([torch.ones(4)], [torch.ones(4)], grad_scale=torch.tensor(2.0))
    tensor([[4., 1.]], dtype=torch.float64)
    """
    scale = 1.0 if grad_scale is None else grad_scale.reshape(()).double()
    return torch.stack([squared_sums(params), squared_sums(grads) / scale**2], dim=1)


@torch.no_grad()
def lars_apply(
    params,
    grads,
    momentum_buffers,
    steps,
    sums,
    *,
    lr,
    momentum,
    dampening,
    weight_decay,
    nesterov,
    trust_coefficient,
    eps,
    clip,
    lr_in_momentum,
    adapt,
    maximize,
    copies=(),
    grad_scale=None,
    found_inf=None,
):
    r"""Do the second phase of a step: momentum, weights and step counters forward.

    Arguments as in :func:`lars_step`.

    Parameters
    ----------
    sums : Tensor
        ``[T, 2]`` float64: what :func:`lars_norms` returned, complete for every tensor.

    Examples
    --------
    >>> sums = lars_norms(w, g)                                 # doctest: +SKIP
    >>> lars_apply(w, g, b, t, sums, **hyper)                   # doctest: +SKIP
    """
    if lr_in_momentum and dampening != 0:
        raise ValueError(f"lars: dampening got {dampening}, expected 0 with lr_in_momentum.")
    skip = skip_flag(found_inf, grad_scale)
    if adapt:
        rates = local_rate(sums, lr, weight_decay, trust_coefficient, eps, clip)
    else:
        rates = torch.ones(len(params))
    buffers = momentum_buffers if momentum != 0 else [None] * len(params)
    for i, (p, g, b, t) in enumerate(zip(params, grads, buffers, steps, strict=True)):
        dtype = torch.promote_types(p.dtype, torch.float32) if b is None else b.dtype
        w = p.to(dtype)
        d = rates[i].to(w) * (unscale(g, dtype, grad_scale, maximize) + weight_decay * w)
        eta = lr.to(w) if torch.is_tensor(lr) else lr
        if momentum == 0:
            delta = eta * d
        elif lr_in_momentum:
            b_new = momentum * b + eta * d
            delta = momentum * b_new + eta * d if nesterov else b_new
        else:
            first = (t == 0).to(w.device)
            b_new = torch.where(first, d, momentum * b + (1 - dampening) * d)
            delta = eta * (d + momentum * b_new if nesterov else b_new)
        w = w - delta
        if momentum != 0:
            write(b, b_new, skip)
        write(p, w, skip)
        write(t, t + 1, skip)
        if len(copies):
            write(copies[i], w, skip)


def local_rate(sums, lr, weight_decay, trust_coefficient, eps, clip=False):
    r"""Return the local rate :math:`r` of every tensor (equation 6), or LARC's if `clip`.

    Exactly 1 before clipping where a norm is 0, so that decay still acts there; NaN norms give NaN.

    Parameters
    ----------
    sums : Tensor
        ``[T, 2]`` float64: squared norms of weights and unscaled gradient.
    lr, weight_decay, trust_coefficient, eps, clip
        As in :func:`lars_step`.

    Returns
    -------
    Tensor
        ``[T]`` float64.

    Examples
    --------
    >>> local_rate(torch.tensor([[4.0, 1.0], [0.0, 1.0]]), 1.0, 0.0, 0.001, 0.0)
    tensor([0.0020, 1.0000], dtype=torch.float64)
    """
    w, g = sums.double().sqrt().unbind(dim=1)
    r = trust_coefficient * w / (g + weight_decay * w + eps)
    r = torch.where((w == 0) | (g == 0), 1.0, r)
    if clip:
        r = torch.where(r >= lr, 1.0, r / lr)  # min(r / lr, 1), also for lr = 0 and for NaN
    return r
