# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The function that Lion-K decreases."""

import math

import torch

from .registry import get


@torch.no_grad()
def lyapunov(params, momenta, *, loss, lr, betas, weight_decay, kappa):
    r"""Return the discrete Lyapunov function of Lion-K, H, at one point of a training.

    .. math:: H = f(x) + \frac{1}{\lambda} K^*(\lambda x) + \frac{\eta \beta_1}{\eta \lambda
              (1 - \beta_1) + 1 - \beta_2} \left[ K^*(\lambda x) + K(-m)
              + \lambda \langle m, x \rangle \right]

    Chen, Liu, Liang, Liu 2024, "Lion Secretly Solves Constrained Optimization: As Lyapunov
    Predicts", ICLR, arXiv 2310.05898. The first two terms are the objective that is minimised in
    truth; the bracket is at least 0 (Fenchel-Young). With the full gradient of an L-smooth f, a
    feasible x and beta1 <= beta2, a step raises H by at most (L/2) \|\|x_new - x\|\|^2.

    That is a statement on the implicit step x_new = (x - eta u) / (1 + eta lambda). It is the
    optimizer's step with the lr eta / (1 + eta lambda), so `lr` is converted here: eta = lr /
    (1 - lr lambda). Likewise m is the optimizer's average of gradients where the paper has that of
    negative gradients.

    Parameters
    ----------
    params, momenta : sequence of Tensors
        x and m (`exp_avg`) after the same step; complex ones as ``view_as_real``.
    loss : float or 0-dim Tensor
        f(x), at these parameters: the whole loss without any penalty on the weights, not that of
        one batch.
    lr : float
        As the optimizer has it, lr * weight_decay < 1.
    betas : (float, float)
    weight_decay : float
        :math:`\lambda > 0`.
    kappa : object, str or dict
        K as in :func:`get`; needs ``value(v)`` and ``conjugate(z)``.

    Returns
    -------
    Tensor
        0-dim float64; infinity where the weights are not feasible (by more than the tolerance of
        ``conjugate``, 1e-6).

    Raises
    ------
    ValueError
        For a number out of range, or a K whose threshold is relative.
    TypeError
        For a K without ``value`` or ``conjugate``.

    Examples
    --------
    >>> x, m = [torch.tensor([0.5])], [torch.tensor([-2.0])]
    >>> lyapunov(x, m, loss=3.0, lr=0.5, betas=(0.5, 0.5), weight_decay=1.0, kappa="l1")
    tensor(3.5000, dtype=torch.float64)
    """
    kappa = get(kappa)
    for method in ("value", "conjugate"):
        if not callable(getattr(kappa, method, None)):
            raise TypeError(
                f"lyapunov: kappa {type(kappa).__name__} has no {method}(), which K needs here. "
                "Add it, or use a built-in of largebatch.optim.kappa."
            )
    _check(lr, betas, weight_decay)
    beta1, beta2 = betas
    eta = lr / (1 - lr * weight_decay)
    weight = eta * beta1 / (eta * weight_decay * (1 - beta1) + 1 - beta2)
    total = torch.as_tensor(loss, dtype=torch.float64)
    for x, m in zip(params, momenta, strict=True):
        z = weight_decay * x.detach().double()
        conjugate = kappa.conjugate(z)
        gap = conjugate + kappa.value(-m) + (m.detach().double() * z).sum()
        total = total.to(z.device) + conjugate / weight_decay + weight * gap
    return total


def _check(lr, betas, weight_decay):
    def refuse(name, got, expected):
        raise ValueError(f"lyapunov: {name} got {got!r}, expected {expected}.")

    if not 0 < weight_decay < math.inf:
        refuse("weight_decay", weight_decay, "a finite number > 0")
    if not 0 <= lr * weight_decay < 1:
        refuse("lr", lr, "a number >= 0 and below 1 / weight_decay")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        refuse("betas", betas, "two numbers in [0, 1)")
