# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Rank-1 updates of the inverses of Kronecker factors: what MKOR does."""

import math

import torch

from .. import _C
from .._versions import mark_written
from ..reference import kron as reference
from ._library import as_tensor, as_tensors, define


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
    r"""Update the inverse of each Kronecker factor with one vector, in place.

    .. math::
        \hat M = z M + (1 - z) I, \quad u = \hat M v, \quad s = v^\top u, \qquad
        M \leftarrow \alpha \hat M + \beta\, u u^\top

    ========= =============================== ================== ==================================
    `variant` z                               :math:`\alpha`     :math:`\beta`
    ========= =============================== ================== ==================================
    leaky     `leak`                          1                  :math:`-\rho / (1 + \rho s)`
    exact     `stabilizer_blend` if the norm  :math:`1/\gamma`   :math:`-(1-\gamma) /
              is above the threshold, else 1                     (\gamma (\gamma + (1-\gamma) s))`
    paper     as exact                        :math:`\gamma`     :math:`(1-\gamma) /
                                                                 (\gamma^2 (1+\gamma(1-\gamma) s))`
    ========= =============================== ================== ==================================

    Mozaffari, Li, Zhang, Mehri Dehnavi 2023, "MKOR: Momentum-Enabled Kronecker-Factor-Based
    Optimizer Using Rank-1 Updates", arXiv 2306.01685. `paper` is Algorithm 1, lines 7 and 8, which
    is no inverse of anything growing in v; `exact` is the Sherman-Morrison inverse of
    :math:`\gamma \hat M^{-1} + (1-\gamma) v v^\top`; `leaky`, what the authors' code does, that of
    :math:`\hat M^{-1} + \rho v v^\top`, and from M = I it stays in (0, I]. `exact` and `paper` grow
    without bound unless stabilised (``docs/mkor.md``); this operation leaves that to its caller.

    Parameters
    ----------
    factors : list of F arrays
        Symmetric ``[d, d]`` (not checked), fp32, fp16, bf16 or fp64, mixed as you like, on one
        device; rows may lie apart (strides ``[d or more, 1]``). Updated in place.
    vectors : list of F arrays
        ``[d]`` fp32, fp64 with fp64 factors. Read.
    variant : str
        ``"leaky"``, ``"exact"`` or ``"paper"``.
    gamma : float
        :math:`\gamma` in (0, 1), of exact and paper.
    leak, rho : float
        z in [0, 1] and :math:`\rho > 0`, of leaky.
    stabilizer_norm : str
        ``"max"``, the largest entry, or ``"inf"``, the largest sum of a row, of absolute values.
    stabilizer_threshold, stabilizer_blend : float, optional
        Exact and paper blend with z = `stabilizer_blend`, in [0, 1), in the update after the norm
        has passed the threshold. None: never. Leaky takes none.
    norms : array, optional
        ``[F]`` fp32. In: the norms of the factors as they are; out: as they have become, rounded as
        they are stored. None: they are computed first, if there is a threshold.
    counters : array, optional
        ``[F, 3]`` int64, added to: updates dropped because v, s or a product of them was not
        finite; updates that were stabilised; factors set to I because they had overflowed (exact
        and paper) or, by rounding, lost definiteness (s < 0).
    skip : array, optional
        ``[F]`` fp32: where it is not 0 the factor, its norm and its counters stay as they are.

    Returns
    -------
    (norms, counters)
        Those given, or new ones.

    Raises
    ------
    TypeError, ValueError
        One line naming the argument and the array, before anything is written.

    Notes
    -----
    A factor whose vector is not finite keeps every bit, and so does one of exact and paper whose
    vector is zero. M stays symmetric bit for bit. The same bits on every run, for any number of
    threads and any CPU instruction set. Moves 3 d^2 elements a factor, 2 d^2 where it stays in a
    cache. No host synchronisation; three launches for all
    factors of a dtype. Allocates 16 B for each row. Not differentiable.

    Examples
    --------
    >>> m, v = torch.eye(2), torch.tensor([3.0, 0.0])
    >>> _ = kron_rank1_update([m], [v], leak=1.0)  # the inverse of I + v v^T: 1 / (1 + 9)
    >>> m
    tensor([[0.1000, 0.0000],
            [0.0000, 1.0000]])
    """
    op = "kron_rank1_update"
    factors, vectors = as_tensors(op, factors=factors, vectors=vectors)
    first = (factors[0].device, "factors[0]") if factors else None
    if stabilizer_threshold is not None and stabilizer_blend is None:
        raise ValueError(
            f"{op}: stabilizer_blend: got None, expected a number in [0, 1) with a threshold."
        )
    own = {"norms": norms, "counters": counters, "skip": skip}
    for name, array in own.items():
        own[name] = None if array is None else as_tensor(op, name, array, first)
    device = first[0] if first else "cpu"
    if norms is None:
        own["norms"] = norms = torch.zeros(len(factors), device=device)
        known = stabilizer_norm in ("max", "inf") and all(m.dim() == 2 for m in factors)
        if stabilizer_threshold is not None and known:  # else the operation says what is wrong
            for f, m in enumerate(factors):
                norms[f] = reference.factor_norm(m, stabilizer_norm)
    if counters is None:
        own["counters"] = counters = torch.zeros(len(factors), 3, dtype=torch.int64, device=device)
    torch.ops.largebatch.kron_rank1_update(
        factors,
        vectors,
        own["norms"],
        own["counters"],
        variant,
        gamma,
        leak,
        rho,
        stabilizer_norm,
        math.inf if stabilizer_threshold is None else stabilizer_threshold,
        0.0 if stabilizer_blend is None else stabilizer_blend,
        own["skip"],
    )
    return norms, counters


def _kron_rank1_update(factors, vectors, norms, counters, *rest):
    *hyper, skip = rest
    names = ("variant", "gamma", "leak", "rho", "stabilizer_norm", "stabilizer_threshold")
    hyper = dict(zip((*names, "stabilizer_blend"), hyper, strict=True))
    _C.kron_rank1_update(factors, vectors, norms, counters, hyper, skip)
    mark_written([*factors, norms, counters])


define(
    "kron_rank1_update(Tensor(a!)[] factors, Tensor[] vectors, Tensor(b!) norms, "
    "Tensor(c!) counters, str variant, float gamma, float leak, float rho, str stabilizer_norm, "
    "float stabilizer_threshold, float stabilizer_blend, Tensor? skip) -> ()",
    _kron_rank1_update,
    lambda *_: None,
)
