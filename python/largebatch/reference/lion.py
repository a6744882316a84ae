# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Lion and Lion-K: momentum steps along a subgradient of a convex function.

Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675, Algorithm 2
(Lion: :math:`K = \lVert\cdot\rVert_1`, whose subgradient is the sign). Chen, Liu, Liang, Liu 2024,
"Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts" (ICLR), arXiv 2310.05898, for
any convex :math:`K`:

.. math::
    c &= \beta_1 m + (1-\beta_1)\, g              && \text{of the old } m \\
    u &= \nabla K(c) \\
    p &= p\,(1 - \eta\lambda) - \eta\, u \\
    m &= \beta_2 m + (1-\beta_2)\, g              && m = 0 \text{ before the first step}

There is no bias correction and no :math:`\epsilon`. The second paper has :math:`m` average negative
gradients; for a :math:`K` that is not even its step therefore reads :math:`u = -\nabla K(-c)` here,
as published code does. Decay is decoupled and explicit; the papers' analysis has it implicit, which
is the same method with :math:`\eta_\text{explicit} = \eta / (1 + \eta\lambda)`.

Order of evaluation, which decides signs where :math:`c` is near 0, in the dtype of the arithmetic
(float32; float64 for float64 weights). Every product and sum is rounded, none is fused.

1. g' = g * (sign / grad_scale), with sign = -1 to maximise
2. c = beta1 * m + (1 - beta1) * g'; 1 - beta1 is computed in double and rounded once
3. u = the subgradient, then the cautious mask
4. p = p * (1 - lr * weight_decay) - lr * u; the bracket is computed in double and rounded once
5. m = beta2 * m + (1 - beta2) * g'

Cautious updates (Liang et al. 2024, "Cautious Optimizers", arXiv 2411.16085) keep the elements that
agree with the gradient, :math:`u g' > 0`, and multiply them by :math:`f = 1/\max(\text{their share
of the tensor}, 10^{-3})`, computed in double and rounded once. :math:`|u|` may then exceed 1: what
:math:`K` says about the size of weights no longer holds.
"""

import torch

from .norm import skip_flag, write
from .rounding import (
    decode_int8,
    encode_int8,
    memory_order,
    philox,
    random_bits,
    round_bfloat16,
)

__all__ = [
    "cautious_update",
    "decode_int8",
    "encode_int8",
    "lion_step",
    "philox",
    "random_bits",
    "round_bfloat16",
]


@torch.no_grad()
def lion_step(
    params,
    grads,
    exp_avgs,
    steps,
    *,
    lr,
    betas,
    weight_decay,
    kappa,
    cautious=False,
    maximize=False,
    copies=(),
    scales=(),
    stochastic_rounding=False,
    seed=0,
    tensor_ids=(),
    grad_scale=None,
    found_inf=None,
    reduce=None,
):
    r"""Do one step of Lion-K on a list of tensors, in place.

    The equations, and the order in which they are evaluated, stand at the top of this file.

    Parameters
    ----------
    params : sequence of T Tensors
        :math:`p`, float32, float16, bfloat16 or float64, any shape and dense strides (complex
        weights: ``view_as_real``). Read and written.
    grads : sequence of T Tensors
        :math:`g`, shaped as `params`, any real floating dtype. Never written.
    exp_avgs : sequence of T Tensors
        :math:`m`, shaped and laid out as `params`, zeros before the first step: float32, bfloat16
        or int8, float64 with float64 `params`. Read and written.
    steps : sequence of T Tensors
        0-dim, number of steps taken so far; each is advanced by 1.
    lr : float or 0-dim Tensor
        :math:`\eta \ge 0`.
    betas : (float, float)
        :math:`\beta_1, \beta_2` in [0, 1).
    weight_decay : float
        :math:`\lambda \ge 0`.
    kappa : object
        :math:`K`: has ``subgradient(c)``, shaped as c. ``even = False`` says that K is not even,
        ``elementwise = True`` that an element of the subgradient depends on that of c alone.
        ``largebatch.optim.kappa`` has the built-in ones.
    cautious : bool
        Needs an elementwise `kappa`.
    maximize : bool
        Ascend instead of descend.
    copies : sequence of T Tensors, or empty
        Model weights in another dtype of which `params` are the masters; they get `params` rounded
        to nearest, ties to even. Written only.
    scales : sequence of T Tensors or None, or empty
        For int8 `exp_avgs`: ``[ceil(numel / 128)]`` float32, zeros before the first step. Read and
        written.
    stochastic_rounding : bool
        Round bfloat16 `params`, bfloat16 and int8 `exp_avgs` stochastically instead of to nearest;
        float16 `params` are always rounded to nearest.
    seed : int
        Of the random bits, modulo 2^64.
    tensor_ids : sequence of T ints, or empty
        What tells the tensors' random bits apart; by default their positions 0 .. T - 1.
    grad_scale : Tensor or None
        One element: `grads` are this many times the true gradients.
    found_inf : Tensor or None
        One element. If non-zero nothing at all is written.
    reduce : callable or None
        With `cautious`, where the tensors are parts of larger ones: adds up ``[2]`` float64 over
        the ranks that hold the others. Called once a tensor.

    Returns
    -------
    Tensor
        ``[T]`` int64, the number of elements of each :math:`c` that are not finite. The sign of
        NaN counts as 0, so such a weight stands still; this is how to notice.

    Raises
    ------
    ValueError
        If `cautious` is combined with a `kappa` that is not elementwise.

    Notes
    -----
    No host synchronisation if every tensor is on one device. Temporary memory of a few times the
    largest tensor. Same bits on every run; float32 and elementwise `kappa` without transcendental
    functions: on every device.

    Examples
    --------
    >>> from largebatch.optim import kappa
    >>> p, m = [torch.ones(3).double()], [torch.zeros(3).double()]
    >>> _ = lion_step(p, [torch.tensor([3.0, -0.1, 0.0])], m, [torch.tensor(0.0)], lr=0.25,
    ...               betas=(0.9, 0.99), weight_decay=1.0, kappa=kappa.L1())
    >>> p[0]
    tensor([0.5000, 1.0000, 0.7500], dtype=torch.float64)
    """
    if cautious and not getattr(kappa, "elementwise", False):
        raise ValueError(
            f"lion: cautious got True with kappa {kappa!r}, expected an elementwise K."
        )
    skip = skip_flag(found_inf, grad_scale)
    broken = []
    for i, (p, g, m, t) in enumerate(zip(params, grads, exp_avgs, steps, strict=True)):
        dtype = torch.promote_types(p.dtype, torch.float32)
        bits = None, None
        if stochastic_rounding and (p.dtype == torch.bfloat16 or m.dtype in _ROUNDED):
            tensor_id = tensor_ids[i] if len(tensor_ids) else i
            bits = _laid_out(p, t, seed, tensor_id)
        scale = scales[i] if m.dtype == torch.int8 else None
        m_old = _decoded(m, scale).to(dtype)
        g_true = _unscaled(g, dtype, grad_scale, maximize)
        c = blend(m_old, g_true, betas[0])
        u = kappa.subgradient(c) if getattr(kappa, "even", True) else -kappa.subgradient(-c)
        if cautious:
            u = cautious_update(u, g_true, reduce)
        eta = lr.to(p.device).double() if torch.is_tensor(lr) else lr
        w = p.to(dtype) * _rounded(1 - eta * weight_decay, dtype) - _rounded(eta, dtype) * u
        broken.append((~torch.isfinite(c)).sum())
        _write_momentum(m, scale, blend(m_old, g_true, betas[1]), bits[1], skip)
        write(p, round_bfloat16(w, bits[0]) if p.dtype == torch.bfloat16 else w, skip)
        write(t, t + 1, skip)
        if len(copies):
            write(copies[i], w, skip)
    return torch.stack(broken) if broken else torch.zeros(0, dtype=torch.int64)


def blend(m, g, beta):
    r"""Return :math:`\beta m + (1 - \beta) g`: two rounded products and their rounded sum.

    Examples
    --------
    >>> blend(torch.tensor(4.0), torch.tensor(8.0), 0.75)
    tensor(5.)
    """
    return beta * m + (1 - beta) * g


def cautious_update(u, g, reduce=None):
    """Return `u` where it agrees in sign with `g`, scaled up by the share of those; else 0.

    `reduce` adds up their number and that of all elements over the parts of a tensor.

    Examples
    --------
    >>> cautious_update(torch.tensor([1.0, 1.0, -1.0, 0.0]), torch.tensor([3.0, -3.0, -3.0, 3.0]))
    tensor([ 2.,  0., -2.,  0.])
    """
    agrees = u * g > 0
    agreeing = agrees.sum().double()
    counts = torch.stack([agreeing, torch.full_like(agreeing, u.numel())])
    agreeing, total = counts if reduce is None else reduce(counts)
    share = agreeing / total.clamp(min=1)
    return torch.where(agrees, u * (1 / share.clamp(min=1e-3)).to(u.dtype), 0.0)


_ROUNDED = (torch.bfloat16, torch.int8)  # dtypes of the momentum that take random bits


def _rounded(value, dtype):
    return value.to(dtype) if torch.is_tensor(value) else value


def _unscaled(g, dtype, grad_scale, maximize):
    sign = -1.0 if maximize else 1.0
    if grad_scale is not None:
        sign = sign / grad_scale.reshape(()).to(dtype)
    return g.to(dtype) * sign


def _laid_out(p, step, seed, tensor_id):
    """Return the random bits of weight and momentum with the shape and strides of `p`."""
    bits = random_bits(p.numel(), step, seed=seed, tensor_id=tensor_id, device=p.device)
    return [b.as_strided(p.shape, p.stride()) for b in bits]


def _decoded(m, scale):
    if scale is None:
        return m
    value = torch.empty_like(m, dtype=torch.float32)
    memory_order(value).copy_(decode_int8(memory_order(m), scale))
    return value


def _write_momentum(m, scale, value, bits, skip):
    """Round the new momentum into its storage, whose strides are those of `bits`."""
    if m.dtype == torch.bfloat16:
        write(m, round_bfloat16(value.float(), bits), skip)
    elif m.dtype == torch.int8:
        flat = memory_order(torch.empty_like(m, dtype=torch.float32).copy_(value))
        codes, scales = encode_int8(flat, None if bits is None else memory_order(bits))
        write(memory_order(m), codes, skip)
        write(scale, scales, skip)
    else:
        write(m, value, skip)
