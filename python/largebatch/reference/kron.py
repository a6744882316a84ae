# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Rank-1 updates of the inverses of Kronecker factors: what MKOR knows of a layer's curvature.

Mozaffari, Li, Zhang, Mehri Dehnavi 2023, "MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer
Using Rank-1 Updates", NeurIPS 2023, arXiv 2306.01685.

K-FAC keeps, for both sides of a layer, a moving average F of outer products :math:`v v^\top` (of
inputs, of gradients of outputs) and inverts it now and then. MKOR takes one v per update, a mean
over the batch, and moves the inverse M itself, at :math:`O(d^2)`. Of each factor, with M = I at
first:

.. math::
    \hat M &= \zeta M + (1 - \zeta) I \quad \text{or} \quad \hat M = M \\
    u &= \hat M v, \qquad s = v^\top u \\
    M &\leftarrow \alpha \hat M + \beta\, u u^\top

Three algorithms go by this name. They differ in :math:`\alpha`, in :math:`\beta` and in when M is
blended with I:

=========  =====================  ================  ==============================================
`variant`  blended                :math:`\alpha`    :math:`\beta`
=========  =====================  ================  ==============================================
"leaky"    always, :math:`\zeta`  1                 :math:`-\rho / (1 + \rho s)`
           is `leak`
"exact"    if the norm of M is    :math:`1/\gamma`  :math:`-(1-\gamma) / (\gamma (\gamma +
           above a threshold                        (1-\gamma) s))`
"paper"    likewise               :math:`\gamma`    :math:`+(1-\gamma) / (\gamma^2 (1 + \gamma
                                                    (1-\gamma) s))`
=========  =====================  ================  ==============================================

In terms of the factor that M inverts (:func:`dense_inverse`):

**exact** is the moving average of K-FAC, :math:`\gamma F + (1-\gamma) v v^\top`, by the formula of
Sherman and Morrison. What no v points to is forgotten: M grows there as :math:`\gamma^{-t}`, beyond
the range of fp16 after 217 updates at :math:`\gamma = 0.95`. Blending holds it if
:math:`\zeta < \gamma`.

**paper** is Algorithm 1, lines 7 and 8: :math:`(F - \kappa v v^\top) / \gamma`. Another sign,
and :math:`\gamma` where its inverse should be: curvature along v is taken away, and the gradient
amplified where K-FAC damps it. M stays positive definite, as the paper says, but not bounded. With
v always the same, :math:`x = v^\top M v` has one fixed point other than 0, 0.943 at :math:`\gamma =
0.95` (:func:`paper_fixed_point`). From below it x goes to 0, from above to infinity, by up to
:math:`\gamma + \gamma^{-3}` per update: from M = I and :math:`\lVert v \rVert = 1`, what inputs
with a constant 1 for the bias have at least, beyond fp16 after 78 updates. Blending holds M if
:math:`\zeta (\gamma + \gamma^{-3}) < 1`: :math:`\zeta < 0.47`.

**leaky** is what the authors' code does (:math:`\zeta = 0.95`, :math:`\rho = 1`): every update
pulls M towards I and adds :math:`\rho\, v v^\top` to the factor. Nothing can go wrong:
:math:`0 \prec M \preceq I`, and no eigenvalue is below :math:`1 / (1 / (1 - \zeta) + \rho \lVert v
\rVert^2)` (:func:`eigenvalue_bounds`).

The stabilizer of the paper, the blending of the last two, has neither its threshold nor its
:math:`\zeta` in print, and is of the factors in the text but of their inverses in the algorithm:
here, of the inverses. What :math:`\zeta` has to be below is :func:`stable_blend`.
"""

import torch


@torch.no_grad()
def kron_rank1_update(
    factors,
    vectors,
    *,
    variant="leaky",
    gamma=0.95,
    leak=0.95,
    rho=1.0,
    stabilizer_norm="max",
    stabilizer_threshold=None,
    stabilizer_blend=None,
    norms=None,
    counters=None,
    skip=None,
):
    r"""Update the inverses of factors, each with its vector, in place.

    The equations stand at the top of this file. In this order, a factor

    - is left as it is if `skip` says so;
    - is reset, M = I, if its norm is not finite: it has overflowed ("exact" and "paper" only);
    - is left if v, s or the denominator of :math:`\beta` is not finite: dropped;
    - is left if v is 0, a dead layer ("exact" and "paper" only);
    - is reset if s < 0: rounding has cost it its definiteness;
    - is updated. A reset takes the place of the update.

    Parameters
    ----------
    factors : sequence of F Tensors
        M, ``[d, d]``, symmetric, of any floating dtype. Read and written. The arithmetic is done in
        the dtype of the factor, in float32 for those of 16 bits, and s, :math:`\alpha` and
        :math:`\beta` are float64. M stays symmetric bit for bit.
    vectors : sequence of F Tensors
        v, ``[d]``. Never written.
    variant : "leaky", "exact" or "paper"
    gamma : float
        :math:`\gamma` in (0, 1), of "exact" and "paper".
    leak, rho : float
        :math:`\zeta` in [0, 1] and :math:`\rho > 0`, of "leaky".
    stabilizer_norm : "max" or "inf"
        Of :func:`factor_norm`.
    stabilizer_threshold : float, optional
        Norm above which "exact" and "paper" blend. None: never.
    stabilizer_blend : float, optional
        :math:`\zeta` in [0, 1) when they do.
    norms : Tensor, optional
        ``[F]`` float32. On entry of the factors as they are, on exit as they are now, of the
        numbers that are stored. None: they are taken first if there is a threshold, else they
        count as 0.
    counters : Tensor, optional
        ``[F, 3]`` int64, added to: updates dropped, blended by the stabilizer, resets. None: zeros.
    skip : Tensor, optional
        ``[F]``; where it is not 0 the factor, its norm and its counters stay as they are.

    Returns
    -------
    norms, counters : Tensor
        As given, or new.

    Notes
    -----
    No host synchronisation. Temporary memory of three times the largest factor.

    Examples
    --------
    >>> M, v = torch.eye(2).double(), torch.tensor([1.0, 0.0]).double()
    >>> norms, counters = kron_rank1_update([M], [v])
    >>> M, norms, counters
    (tensor([[0.5000, 0.0000],
            [0.0000, 1.0000]], dtype=torch.float64), tensor([1.]), tensor([[0, 0, 0]]))
    """
    threshold = stabilizer_threshold
    if threshold is not None and variant == "leaky":
        raise ValueError("kron: stabilizer_threshold got a number, expected None with leaky.")
    if threshold is not None and stabilizer_blend is None:
        raise ValueError("kron: stabilizer_blend got None, expected a number with a threshold.")
    device = factors[0].device if factors else None
    if norms is None:
        norms = torch.zeros(len(factors), device=device)
        if threshold is not None:
            for f, M in enumerate(factors):
                norms[f] = factor_norm(M, stabilizer_norm)
    if counters is None:
        counters = torch.zeros(len(factors), 3, dtype=torch.int64, device=device)

    for f, (M, v) in enumerate(zip(factors, vectors, strict=True)):
        norm, skipped = norms[f].double(), torch.zeros((), dtype=torch.bool, device=device)
        if skip is not None:
            skipped = skip[f] != 0
        if M.numel() == 0:
            norms[f].masked_fill_(~skipped, 0.0)
            continue
        if variant == "leaky":
            fired, z = torch.zeros_like(skipped), leak
        else:
            fired = torch.zeros_like(skipped) if threshold is None else norm > threshold
            z = torch.ones_like(norm).masked_fill(fired, stabilizer_blend or 0.0)

        dtype = torch.promote_types(M.dtype, torch.float32)
        v = v.to(dtype)
        new = blended(M.to(dtype), z)
        u = new @ v
        s = torch.dot(v.double(), u.double())
        alpha, beta = coefficients(variant, s, gamma, rho)
        # Not (beta u_i) u_j: that would not be (beta u_j) u_i.
        r = beta.abs().sqrt() * u
        new.mul_(alpha).add_(torch.outer(beta.sign() * r, r))

        due = ~skipped
        overflown = due & ~norm.isfinite() & (variant != "leaky")
        due = due & ~overflown
        dropped = due & ~(v.isfinite().all() & (1 / beta).isfinite())  # is also: of s
        idle = (v == 0).all() & (variant != "leaky")
        due = due & ~dropped & ~idle
        reset = overflown | (due & (s < 0))
        new.masked_fill_(reset, 0.0).diagonal().masked_fill_(reset, 1.0)
        written = due | reset
        M.copy_(torch.where(written, new.to(M.dtype), M))
        norms[f] = torch.where(written, factor_norm(M, stabilizer_norm), norm)
        counters[f] += torch.stack([dropped, fired & due & ~reset, reset])
    return norms, counters


def blended(M, z):
    r"""Return :math:`\hat M = \zeta M + (1 - \zeta) I`, a new tensor.

    Examples
    --------
    >>> blended(torch.ones(2, 2), 0.75)
    tensor([[1.0000, 0.7500],
            [0.7500, 1.0000]])
    """
    new = z * M
    new.diagonal().add_(1 - z)
    return new


def coefficients(variant, s, gamma, rho):
    r"""Return :math:`\alpha` and :math:`\beta` of a variant.

    Parameters
    ----------
    variant : "leaky", "exact" or "paper"
    s : float or Tensor
        :math:`v^\top \hat M v`.
    gamma, rho : float
        Of "exact" and "paper"; of "leaky".

    Examples
    --------
    >>> coefficients("leaky", 1.0, gamma=0.5, rho=1.0)
    (1.0, -0.5)
    >>> coefficients("exact", 1.0, gamma=0.5, rho=1.0)
    (2.0, -1.0)
    >>> coefficients("paper", 1.0, gamma=0.5, rho=1.0)
    (0.5, 1.6)
    """
    if variant == "leaky":
        return 1.0, -rho / (1 + rho * s)
    if variant == "exact":
        return 1 / gamma, -(1 - gamma) / (gamma * (gamma + (1 - gamma) * s))
    if variant == "paper":
        return gamma, (1 - gamma) / (gamma**2 * (1 + gamma * (1 - gamma) * s))
    raise ValueError(f"kron: variant got {variant!r}, expected 'leaky', 'exact' or 'paper'.")


def dense_inverse(variant, M, v, *, blend=None, gamma=0.95, rho=1.0):
    r"""Return what an update makes of M, by inverting the factor in float64.

    .. math::
        \text{leaky:} \quad & (\hat M^{-1} + \rho\, v v^\top)^{-1} \\
        \text{exact:} \quad & (\gamma \hat M^{-1} + (1 - \gamma)\, v v^\top)^{-1} \\
        \text{paper:} \quad & \big((\hat M^{-1} - \kappa\, v v^\top) / \gamma\big)^{-1}, \qquad
            \kappa = \frac{\beta}{\gamma + \beta s}
                   = \frac{1 - \gamma}{\gamma^3 + (1 - \gamma)(1 + \gamma^4)\, s}

    Parameters
    ----------
    variant : "leaky", "exact" or "paper"
    M, v : Tensor
        ``[d, d]``, symmetric and positive definite, and ``[d]``. Not written.
    blend : float, optional
        :math:`\zeta` of :math:`\hat M`; None: :math:`\hat M = M`. For "leaky" it is `leak`.
    gamma, rho : float

    Examples
    --------
    >>> dense_inverse("exact", torch.eye(2), torch.tensor([1.0, 0.0]), gamma=0.5)
    tensor([[1., 0.],
            [0., 2.]], dtype=torch.float64)
    """
    M, v = M.double(), v.double()
    if blend is not None:
        M = blended(M, blend)
    factor, vv = torch.linalg.inv(M), torch.outer(v, v)
    if variant == "leaky":
        moved = factor + rho * vv
    elif variant == "exact":
        moved = gamma * factor + (1 - gamma) * vv
    else:
        s = v @ M @ v
        kappa = (1 - gamma) / (gamma**3 + (1 - gamma) * (1 + gamma**4) * s)
        moved = (factor - kappa * vv) / gamma
    return torch.linalg.inv(moved)


def factor_norm(M, kind="max"):
    """Return the norm of a factor that the stabilizer looks at, a 0-dim float64 tensor.

    Parameters
    ----------
    M : Tensor
        ``[d, d]``. Not a number anywhere in it makes the norm one that is not.
    kind : "max" or "inf"
        The largest absolute value, as in the authors' code, or the largest sum of absolute values
        of a row, as in the paper. 0 if d is 0.

    Examples
    --------
    >>> M = torch.tensor([[1.0, -3.0], [-3.0, 1.0]])
    >>> factor_norm(M, "max").item(), factor_norm(M, "inf").item()
    (3.0, 4.0)
    """
    if kind not in ("max", "inf"):
        raise ValueError(f"kron: stabilizer_norm got {kind!r}, expected 'max' or 'inf'.")
    if M.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=M.device)
    sizes = M.abs()
    if kind == "inf":
        sizes = sizes.sum(dim=1, dtype=torch.float64)
    return sizes.amax().double()


def stable_blend(variant, gamma):
    r"""Return the number that the :math:`\zeta` of a stabilizer has to be below, None for "leaky".

    A blended update makes the largest eigenvalue at most :math:`\zeta / \gamma` ("exact") or
    :math:`\zeta (\gamma + \gamma^{-3})` ("paper") times as large, and adds a constant: below 1, M
    is bounded whatever the vectors are.

    Examples
    --------
    >>> stable_blend("exact", 0.95), round(stable_blend("paper", 0.95), 4)
    (0.95, 0.4725)
    """
    if variant == "leaky":
        return None
    return gamma if variant == "exact" else 1 / (gamma + gamma**-3)


def paper_fixed_point(gamma):
    r"""Return the x > 0 that "paper" keeps if v is always the same, :math:`x = v^\top M v`.

    .. math:: x = \frac{\gamma^2}{1 - \gamma^3 (1 - \gamma)}

    Examples
    --------
    >>> round(paper_fixed_point(0.95), 4)
    0.9429
    """
    return gamma**2 / (1 - gamma**3 * (1 - gamma))


def eigenvalue_bounds(leak, rho, vv):
    r"""Return the numbers between which "leaky" keeps all eigenvalues, from M = I on.

    .. math:: \Big[ \frac{1}{1 / (1 - \zeta) + \rho \lVert v \rVert^2},\ 1 \Big]

    since :math:`(1 - \zeta) I \preceq \hat M \preceq I`, and the factor grows by :math:`\rho\, v
    v^\top`.

    Parameters
    ----------
    leak, rho : float
    vv : float
        The largest :math:`\lVert v \rVert^2` so far.

    Examples
    --------
    >>> eigenvalue_bounds(leak=0.75, rho=1.0, vv=6.0)
    (0.1, 1.0)
    """
    return (1 - leak) / (1 + (1 - leak) * rho * vv), 1.0
