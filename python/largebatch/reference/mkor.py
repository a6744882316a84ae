# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""MKOR: gradients preconditioned by Kronecker factors whose inverses move by rank one.

Mozaffari, Li, Zhang, Mehri Dehnavi 2023, "MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer
Using Rank-1 Updates", NeurIPS 2023, arXiv 2306.01685, Algorithm 1. What it approximates, dense
K-FAC, is kfac.py.

A layer has weights W ``[d_out, d_in]``, joined by the bias to :math:`[W | b]` where that is folded
in, with gradient G. In a batch its inputs are the rows of A ``[N, d_in]``, followed by a 1 if there
is a bias, and the gradients of the mean loss by its outputs the rows of D ``[N, d_out]``:
:math:`G = D^\top A`. In every step,

.. math::
    \hat G = M_L\, G\, M_R, \qquad
    G' = \hat G\, \lVert G \rVert / \lVert \hat G \rVert

and :math:`G'` goes to some other optimizer. G' = G where one of the norms is 0 or not finite. In
every `update_every`-th step, and the first `warmup_steps`, the inverses are moved before that, as
kron.py says:

.. math::
    M_L \approx E[g g^\top]^{-1},\ M_R \approx E[a a^\top]^{-1}
        \quad \text{by} \quad g = \textstyle\sum_i D_i,\ a = \textstyle\sum_i A_i / N
        \quad \text{alone}

That g is a sum undoes the 1/N of a mean loss. Where this departs from the paper:

==============  ====================================================================================
inverse         which of three formulas: the top of kron.py
norms           printed without their bars in line 10 of the box; of :math:`[W | b]` together (the
                authors' code adds the norms of W and of b)
first update    moves the factors; that of the authors' code only sets them to I
`stat_clip`     bounds on the entries of a and g (the authors' code bounds what it averages)
convolutions    as in the authors' code: a row of A is a patch, and g is divided by the number of
                output positions
MKOR-H          :class:`Hybrid`: the paper has the idea, but neither rule nor constants
==============  ====================================================================================

For a layer with a bias g is the gradient of the bias, times 1/P for a convolution with P positions.
"""

import math

import torch
import torch.nn.functional as F

from .kron import kron_rank1_update

# ---- Statistics of a layer -----------------------------------------------------------------------


def linear_statistics(inputs, output_grads, fold_bias=True):
    r"""Return a and g of a Linear layer.

    Parameters
    ----------
    inputs : Tensor or sequence of Tensors
        A ``[..., d_in]``. Several are calls, or micro-batches: a is the mean of their means.
    output_grads : Tensor or sequence of Tensors
        D ``[..., d_out]``, gradients of the loss by the outputs. g is the sum over all rows.
    fold_bias : bool
        Append a 1 to a.

    Returns
    -------
    a, g : Tensor
        ``[d_in (+ 1)]`` and ``[d_out]``, float64.

    Examples
    --------
    >>> a, g = linear_statistics(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.ones(2, 1))
    >>> a.tolist(), g.tolist()
    ([2.0, 4.0, 1.0], [2.0])
    """
    inputs, output_grads = ([x] if torch.is_tensor(x) else x for x in (inputs, output_grads))
    a = torch.stack([x.double().flatten(0, -2).mean(dim=0) for x in inputs]).mean(dim=0)
    g = torch.stack([x.double().flatten(0, -2).sum(dim=0) for x in output_grads]).sum(dim=0)
    return (F.pad(a, (0, 1), value=1.0) if fold_bias else a), g


def conv_statistics(conv, inputs, output_grads, fold_bias=True):
    r"""Return a and g of a Conv2d layer, the long way: every patch of every image.

    (Taking patches is linear: those of the mean image have the same mean.)

    Parameters
    ----------
    conv : torch.nn.Conv2d
        Or what has its ``kernel_size, stride, padding, dilation`` and ``padding_mode``.
    inputs, output_grads : Tensor or sequence of Tensors
        ``[batch, c_in, h, w]`` and ``[batch, d_out, h', w']``; several as for a Linear layer.
    fold_bias : bool

    Returns
    -------
    a, g : Tensor
        ``[c_in kh kw (+ 1)]`` in the order of ``weight.view(d_out, -1)``, and ``[d_out]``: the sum
        over images and positions divided by the number of positions. float64.

    Examples
    --------
    >>> conv = torch.nn.Conv2d(1, 1, 2)
    >>> a, g = conv_statistics(conv, torch.arange(9.0).view(1, 1, 3, 3), torch.ones(1, 1, 2, 2))
    >>> a.tolist(), g.tolist()
    ([2.0, 3.0, 5.0, 6.0, 1.0], [1.0])
    """
    inputs, output_grads = ([x] if torch.is_tensor(x) else x for x in (inputs, output_grads))
    rows = [conv_rows(conv, *call) for call in zip(inputs, output_grads, strict=True)]
    a, _ = linear_statistics([A for A, _, _ in rows], [D for _, D, _ in rows], fold_bias)
    return a, sum(D.sum(dim=0) / positions for _, D, positions in rows)


def conv_rows(conv, inputs, output_grads):
    """Return A, D and the number of output positions P of a call: N is the batch times P.

    Examples
    --------
    >>> conv, x, dy = torch.nn.Conv2d(3, 5, 2), torch.ones(4, 3, 6, 6), torch.ones(4, 5, 5, 5)
    >>> A, D, P = conv_rows(conv, x, dy)
    >>> A.shape, D.shape, P
    (torch.Size([100, 12]), torch.Size([100, 5]), 25)
    """
    x = inputs.double()
    margins = conv.padding
    if conv.padding == "valid":
        margins = (0, 0)
    if conv.padding == "same":
        margins = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        (top, left), (bottom, right) = ([m // 2 for m in margins], [m - m // 2 for m in margins])
    else:
        (top, left) = (bottom, right) = margins
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, (left, right, top, bottom), mode=mode)
    patches = F.unfold(x, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
    grads = output_grads.double().flatten(2)  # [batch, d_out, P]
    return patches.mT.flatten(0, 1), grads.mT.flatten(0, 1), grads.shape[2]


def gradient_statistics(G):
    """Return what stands in for a and g where nothing but G is looked at: its mean row and column.

    Examples
    --------
    >>> a, g = gradient_statistics(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    >>> a.tolist(), g.tolist()
    ([2.0, 4.0], [1.5, 4.5])
    """
    return G.double().mean(dim=0), G.double().mean(dim=1)


def clip_statistic(v, limit):
    """Return a statistic with its finite entries clamped: what is not finite stays so.

    Examples
    --------
    >>> clip_statistic(torch.tensor([-200.0, 3.0, float("inf")]), 100.0)
    tensor([-100.,    3.,   inf])
    """
    return v if limit is None else torch.where(v.isfinite(), v.clamp(-limit, limit), v)


# ---- Preconditioning -----------------------------------------------------------------------------


def precondition(G, M_L, M_R):
    r"""Return :math:`M_L G M_R`; None on a side is I.

    Parameters
    ----------
    G : Tensor
        ``[d_out, d_in (+ 1)]``.
    M_L, M_R : Tensor or None
        ``[d_out, d_out]`` and ``[d_in (+ 1), d_in (+ 1)]``.

    Examples
    --------
    >>> precondition(torch.ones(2, 1), torch.diag(torch.tensor([2.0, 3.0])), None)
    tensor([[2.],
            [3.]])
    """
    if M_L is not None:
        G = M_L @ G
    return G if M_R is None else G @ M_R


def rescale(G, preconditioned):
    r"""Return :math:`\hat G \lVert G \rVert / \lVert \hat G \rVert`, or G if that is no number.

    Examples
    --------
    >>> rescale(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 8.0]]))
    tensor([[0., 5.]])
    >>> rescale(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([[3., 4.]])
    """
    norms = torch.stack([G.norm(), preconditioned.norm()])
    usable = (norms.isfinite() & (norms > 0)).all()
    return torch.where(usable, preconditioned * (norms[0] / norms[1]), G)


def update_is_due(step, update_every, warmup_steps):
    """Tell whether the factors move in a step, counted from 0.

    Examples
    --------
    >>> [t for t in range(9) if update_is_due(t, update_every=4, warmup_steps=2)]
    [0, 1, 4, 8]
    """
    return step < warmup_steps or step % update_every == 0


# ---- The optimizers ------------------------------------------------------------------------------


class MKOR:
    r"""MKOR for a list of layers, in float64: gradients in, preconditioned gradients out.

    Parameters
    ----------
    shapes : list of (int, int)
        Of G of each layer: ``(d_out, d_in)``, or ``(d_out, d_in + 1)`` where the bias is folded in.
    variant, gamma, leak, rho, stabilizer_norm : as in kron.py
    stabilizer_threshold, stabilizer_blend : float, optional
        For "exact" and "paper" 2.0 and 0.9 or 0.4 if they are None; an infinite threshold for none.
    update_every, warmup_steps : int
        Of :func:`update_is_due`.
    sides : "LR", "L" or "R"
        The others are I.
    max_factor_dim : int
    large_dims : "skip_side", "block" or "skip_layer"
        What becomes of sides of a higher order than that: I; blocks on the diagonal, of equal order
        but for the last; or I on both sides of the layer.
    stat_clip : float, optional
        Of :func:`clip_statistic`.

    Attributes
    ----------
    factors : list of dicts
        ``"L"`` and ``"R"`` of each layer: lists of blocks, mostly one. A side that is I is missing.
    norms, counters : Tensor
        As in kron.py, of all blocks: layer by layer, L before R.

    Examples
    --------
    >>> mkor = MKOR([(2, 2)])
    >>> (G,) = mkor.step([(torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0]]))])
    >>> G.round(decimals=9)  # of rank one: its direction stays, as its norm does
    tensor([[3., 3.],
            [4., 4.]], dtype=torch.float64)
    """

    def __init__(
        self,
        shapes,
        *,
        variant="leaky",
        gamma=0.95,
        leak=0.95,
        rho=1.0,
        update_every=10,
        warmup_steps=0,
        sides="LR",
        max_factor_dim=math.inf,
        large_dims="skip_side",
        stat_clip=100.0,
        stabilizer_norm="max",
        stabilizer_threshold=None,
        stabilizer_blend=None,
    ):
        self.hyper = {"variant": variant, "gamma": gamma, "leak": leak, "rho": rho}
        self.hyper["stabilizer_norm"] = stabilizer_norm
        if variant != "leaky":
            blend = {"exact": 0.9, "paper": 0.4}[variant]
            self.hyper["stabilizer_threshold"] = (
                2.0 if stabilizer_threshold is None else stabilizer_threshold
            )
            self.hyper["stabilizer_blend"] = blend if stabilizer_blend is None else stabilizer_blend
        self.schedule, self.steps = (update_every, warmup_steps), 0
        self.shapes, self.stat_clip = list(shapes), stat_clip
        self.factors = [
            {
                side: [torch.eye(d, dtype=torch.float64) for d in orders]
                for side, orders in _orders(shape, sides, max_factor_dim, large_dims).items()
            }
            for shape in shapes
        ]
        self.blocks = [M for sides in self.factors for blocks in sides.values() for M in blocks]
        self.norms = torch.ones(len(self.blocks))
        self.counters = torch.zeros(len(self.blocks), 3, dtype=torch.int64)

    def step(self, batches):
        """Take a step; return G' of each layer.

        Parameters
        ----------
        batches : list of (A, D) or (A, D, P)
            Of each layer: ``[N, d_in]`` without a 1, ``[N, d_out]`` = dL/dY, and for a convolution
            the number of output positions (:func:`conv_rows`).
        """
        gradients, statistics = [], []
        for (A, D, *positions), shape in zip(batches, self.shapes, strict=True):
            A, D = joined(A, D, shape)
            gradients.append(D.T @ A)
            statistics.append((A.mean(dim=0), D.sum(dim=0) / (positions or [1])[0]))
        return self.apply(gradients, statistics)

    def apply(self, gradients, statistics):
        """Take a step with G and (a, g) of each layer, None for one that was not called."""
        if update_is_due(self.steps, *self.schedule):
            self.update(statistics)
        self.steps += 1
        return [
            rescale(G, precondition(G, *self.inverses(layer)))
            for layer, G in enumerate(map(torch.Tensor.double, gradients))
        ]

    def update(self, statistics):
        """Move the factors."""
        vectors, skip = [], []
        for sides, pair in zip(self.factors, statistics, strict=True):
            for side, blocks in sides.items():
                orders = [len(M) for M in blocks]
                v = torch.zeros(sum(orders)) if pair is None else pair[side == "L"]
                vectors += clip_statistic(v.double(), self.stat_clip).split(orders)
                skip += [float(pair is None)] * len(orders)
        state = {"norms": self.norms, "counters": self.counters, "skip": torch.tensor(skip)}
        kron_rank1_update(self.blocks, vectors, **self.hyper, **state)

    def inverses(self, layer):
        """Return M_L and M_R of a layer, None for I."""
        sides = self.factors[layer]
        return [torch.block_diag(*sides[side]) if side in sides else None for side in "LR"]


def joined(A, D, shape):
    """Return A and D in float64, with a 1 in each row of A if G has a column for the bias."""
    A, D = A.double(), D.double()
    return F.pad(A, (0, shape[1] - A.shape[1]), value=1.0), D


def _orders(shape, sides, limit, large_dims):
    """Return the orders of the blocks on each side that is not I."""
    orders = {side: d for side, d in zip("LR", shape, strict=True) if side in sides}
    if large_dims == "block":
        return {side: _blocks(d, max(1, math.ceil(d / limit))) for side, d in orders.items()}
    small = {side: [d] for side, d in orders.items() if d <= limit}
    return small if large_dims == "skip_side" or len(small) == len(orders) else {}


def _blocks(d, count):
    """Return `count` orders that add up to d, equal but for the last.

    >>> _blocks(10, 3)
    [4, 4, 2]
    """
    order = math.ceil(d / count)
    return [min(order, d - first) for first in range(0, d, order)]


# ---- MKOR-H --------------------------------------------------------------------------------------


class Hybrid:
    r"""When to go on without preconditioning: the loss no longer falls as fast as it did.

    With losses :math:`\ell_0, \ell_1, ...`, :math:`\bar\ell_0 = \ell_0` and K = `interval`,

    .. math::
        \bar\ell_t &= \mu \bar\ell_{t-1} + (1 - \mu) \ell_t \\
        r_k &= (\bar\ell_{(k-1) K} - \bar\ell_{k K}) / K, \qquad k = 1, 2, ...

    The switch comes, once and for all, when for `patience` k in a row, all with
    :math:`k K \ge` `min_steps`, :math:`r_k < \beta \max_{j \le k} r_j` and that maximum is
    above 0. A loss that is not finite leaves the average as it is.

    Parameters
    ----------
    beta : float
        :math:`\beta` in (0, 1).
    interval, patience, min_steps : int
    momentum : float
        :math:`\mu` in [0, 1).

    Examples
    --------
    >>> rule = Hybrid(beta=0.5, interval=1, patience=2, min_steps=2, momentum=0.0)
    >>> [rule.observe(loss) for loss in (9.0, 5.0, 4.0, 3.0, 0.0)]
    [False, False, False, True, True]
    """

    def __init__(self, beta=0.1, interval=20, patience=3, min_steps=100, momentum=0.95):
        self.beta, self.interval, self.patience = beta, interval, patience
        self.min_steps, self.momentum = min_steps, momentum
        self.switched, self.seen, self.slow = False, 0, 0  # slow: checks in a row
        self.average = self.last = None
        self.fastest = 0.0

    def observe(self, loss):
        """Take the loss of a step into account; return whether the switch has come."""
        if self.switched:
            return True
        loss = float(loss)
        if self.average is None and math.isfinite(loss):
            self.average = self.last = loss
        elif math.isfinite(loss):
            self.average = self.momentum * self.average + (1 - self.momentum) * loss
        if self.seen % self.interval == 0 and self.average is not None:
            rate = (self.last - self.average) / self.interval
            self.last, self.fastest = self.average, max(self.fastest, rate)
            is_slow = self.fastest > 0 and rate < self.beta * self.fastest
            self.slow = self.slow + 1 if is_slow and self.seen >= self.min_steps else 0
            self.switched = self.slow >= self.patience
        self.seen += 1
        return self.switched
