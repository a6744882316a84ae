# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""AGVM, in plain PyTorch: a learning rate for every module from the noise of its gradients.

Xue et al. 2022, "Large-batch Optimization for Dense Visual Predictions: Training Faster R-CNN in
4.2 Minutes", NeurIPS 2022, arXiv 2210.11078.

The batch is split in two halves, A and B, with mean gradients :math:`a_i` and :math:`b_i` of module
i (all its parameters as one vector). Every :math:`\tau` steps, after a warm-up,

.. math::
    \phi_i &= 1 - \frac{\langle a_i, b_i \rangle}{\lVert a_i \rVert \lVert b_i \rVert} \\
    r_i &= \sqrt{\operatorname{clamp}\Big(\frac{\phi_1 + \delta}{\phi_i + \delta},\,
           \text{low},\, \text{high}\Big)}, \qquad \delta = 10^{-6} \\
    \mu_i &= \alpha \mu_i + (1 - \alpha)\, r_i, \qquad \mu_i = 1 \text{ at first},
    \quad \mu_1 = 1 \text{ always}

and every step moves module i with the learning rate :math:`\eta \mu_i`; module 1 is the anchor. The
paper's variance has a factor :math:`\eta^2` that cancels in the ratio; the clamp and
:math:`\delta` are those of the authors' code. For an optimizer of Adam's kind each half is scaled
first, as Adam would scale it (:func:`precondition`).

What :math:`\phi` is: with :math:`G` the true gradient, :math:`\Sigma` the covariance of one
sample's and B samples in the batch, :math:`\phi = x / (1 + x)` with
:math:`x = 2 \operatorname{tr} \Sigma / (B \lVert G \rVert^2)`, twice the noise-to-signal ratio of
the batch gradient (:func:`expected_variance`). AGVM thus takes smaller steps where the gradient is
noisier than the anchor's.
"""

import torch

DELTA = 1e-6


def half_dots(x, y, combine, *, exp_avg_sq=None, beta2=0.999, eps=1e-8, grad_scale=None):
    r"""Return the dot products of two linear combinations of each pair of tensors.

    Parameters
    ----------
    x, y : sequence of T Tensors
        Any floating dtype and shape, y[i] shaped as x[i]. Not written.
    combine : ((float, float), (float, float))
        :math:`a = a_x x + a_y y` and :math:`b = b_x x + b_y y`.
    exp_avg_sq : sequence of T Tensors, optional
        With it both are preconditioned.
    beta2, eps : float
        Of :func:`precondition`.
    grad_scale : Tensor or None
        One element: x and y are divided by it.

    Returns
    -------
    Tensor
        ``[T, 3]`` float64: sums of aa, of bb and of ab.

    Examples
    --------
    >>> half_dots([torch.ones(2)], [torch.ones(2)], ((1, 0), (1, 1)))
    tensor([[2., 8., 4.]], dtype=torch.float64)
    """
    if len(x) == 0:
        return torch.zeros(0, 3, dtype=torch.float64)
    scale = 1.0 if grad_scale is None else grad_scale.reshape(()).double()
    rows = []
    for i, (p, q) in enumerate(zip(x, y, strict=True)):
        halves = [(cx * p.double() + cy * q.double()) / scale for cx, cy in combine]
        if exp_avg_sq:
            halves = [precondition(h, exp_avg_sq[i], beta2, eps) for h in halves]
        a, b = halves
        rows.append(torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()]))
    return torch.stack(rows)


def precondition(half, exp_avg_sq, beta2, eps):
    r"""Return a half gradient as Adam would scale it, had the step been taken with it alone.

    .. math:: h / \big(\sqrt{\beta_2 v + (1 - \beta_2) h^2} + \epsilon\big)

    Examples
    --------
    >>> precondition(torch.tensor([3.0]), torch.tensor([1.0]), beta2=1.0, eps=0.0)
    tensor([3.], dtype=torch.float64)
    """
    h = half.double()
    return h / ((beta2 * exp_avg_sq.double() + (1 - beta2) * h * h).sqrt() + eps)


def from_sum_and_difference(sums):
    r"""Return aa, bb, ab of the halves from the dot products of their sum and their difference.

    With :math:`s = a + b` and :math:`h = a - b`, what gradient accumulation gives when it keeps
    :math:`\sum_j g_j` and :math:`\sum_j (-1)^j g_j`:

    .. math::
        aa = (ss + hh + 2\, sh) / 4, \qquad bb = (ss + hh - 2\, sh) / 4, \qquad
        ab = (ss - hh) / 4

    :func:`half_dots` reads the same two arrays and forms a and b themselves: as cheap, without the
    cancellation in bb where b is small, and it can precondition them.

    Parameters
    ----------
    sums : Tensor
        ``[T, 3]`` float64: ss, hh, sh.

    Examples
    --------
    >>> from_sum_and_difference(torch.tensor([[8.0, 4.0, -4.0]]))  # a = (0, 1), b = (2, 1)
    tensor([[1., 5., 1.]])
    """
    ss, hh, sh = sums.unbind(dim=1)
    return torch.stack([ss + hh + 2 * sh, ss + hh - 2 * sh, ss - hh], dim=1) / 4


def variances(sums):
    r"""Return :math:`\phi` of every module.

    Parameters
    ----------
    sums : Tensor
        ``[M, 3]`` float64: :math:`\lVert a_i \rVert^2, \lVert b_i \rVert^2,
        \langle a_i, b_i \rangle`.

    Returns
    -------
    Tensor
        ``[M]`` float64 in [0, 2]; NaN where there is no such number: a half that is zero or not
        finite.

    Examples
    --------
    >>> variances(torch.tensor([[1.0, 4.0, 0.0], [4.0, 4.0, 4.0], [0.0, 1.0, 0.0]]))
    tensor([1., 0., nan], dtype=torch.float64)
    """
    aa, bb, ab = sums.double().unbind(dim=1)
    phi = 1 - ab / (aa.sqrt() * bb.sqrt())  # 0 / 0 is NaN; the roots apart: aa * bb may overflow
    known = phi.isfinite() & aa.isfinite() & bb.isfinite()
    return torch.where(known, phi.clamp(0, 2), torch.nan)  # beyond them by rounding only


def next_factors(factors, phi, anchor, *, momentum=0.97, clamp=(0.5, 10.0)):
    r"""Return the factors :math:`\mu` after a measurement.

    Parameters
    ----------
    factors, phi : Tensor
        ``[M]`` float64: the factors before it, and what was measured. A module with phi NaN keeps
        its factor, and so do all of them if it is the anchor's.
    anchor : int
        Position of the anchor.
    momentum : float
        :math:`\alpha` in [0, 1).
    clamp : (float, float)
        (low, high), with 1 between them.

    Returns
    -------
    Tensor
        ``[M]`` float64.

    Examples
    --------
    >>> phi = torch.tensor([0.4, 0.1, 0.8]).double()
    >>> next_factors(torch.ones(3).double(), phi, anchor=0, momentum=0.0)
    tensor([1.0000, 2.0000, 0.7071], dtype=torch.float64)
    """
    ratio = (phi[anchor] + DELTA) / (phi + DELTA)
    rate = ratio.clamp(*clamp).sqrt()
    # alpha mu + (1 - alpha) r, so written that r = mu changes no bit: the anchor stays at 1.
    moved = factors + (1 - momentum) * (rate - factors)
    return torch.where(rate.isnan(), factors, moved)


def expected_variance(gradient, trace, batch):
    r"""Return :math:`\phi` as it is on average, from what generates the gradients.

    .. math:: \phi = \frac{x}{1 + x}, \qquad
              x = \frac{2 \operatorname{tr} \Sigma}{B \lVert G \rVert^2}

    Exact in the limit of many elements: with :math:`a = G + \epsilon_a`, :math:`b = G + \epsilon_b`
    and independent errors of covariance :math:`2 \Sigma / B`, the mean of :math:`\langle a, b
    \rangle` is :math:`\lVert G \rVert^2` and that of each square :math:`(1 + x)` times as much.

    Parameters
    ----------
    gradient : Tensor
        :math:`G`.
    trace : float
        :math:`\operatorname{tr} \Sigma` of one sample's gradient.
    batch : int
        B, samples in both halves together.

    Examples
    --------
    >>> expected_variance(torch.ones(100), trace=300.0, batch=2)
    tensor(0.7500, dtype=torch.float64)
    """
    x = 2 * trace / (batch * gradient.double().square().sum())
    return x / (1 + x)
