# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""The convex functions K of Lion-K, their conjugates and what they do to the weights.

Lion-K (Chen, Liu, Liang, Liu 2024, arXiv 2310.05898) steps along a subgradient u of K at the
averaged gradient and so minimises, in place of the loss f,

.. math:: F(x) = f(x) + \frac{1}{\lambda} K^*(\lambda x), \qquad
          K^*(z) = \sup_v \langle z, v \rangle - K(v),

:math:`\lambda` the weight decay. Where :math:`K^*` is infinite the weights may not be: a norm K
confines them to the unit ball of its dual norm, times :math:`t = 1/\lambda`.

Each K is a small object: ``subgradient(v)``, ``value(v)``, ``conjugate(z)``, ``project(x,
weight_decay)`` and ``distance(x, weight_decay)``; see :class:`Kappa`. `get` makes one from a name
or a dict, ``as_dict()`` goes back. docs/lion-k.md has the table.
"""

from ._base import Kappa
from .elementwise import L1, Huber, LogCosh, Power, Quadratic, SoftSign, TruncatedL1
from .entropies import Entropy, SignedEntropy
from .groups import GroupLasso, L2Inf
from .lyapunov import lyapunov
from .norms import L2, LInf, Lp, SquaredL1
from .ordered import SortedL1, TopK
from .registry import get
from .spectra import Nuclear, Spectral

__all__ = [
    "L1",
    "L2",
    "Entropy",
    "GroupLasso",
    "Huber",
    "Kappa",
    "L2Inf",
    "LInf",
    "LogCosh",
    "Lp",
    "Nuclear",
    "Power",
    "Quadratic",
    "SignedEntropy",
    "SoftSign",
    "SortedL1",
    "Spectral",
    "SquaredL1",
    "TopK",
    "TruncatedL1",
    "get",
    "lyapunov",
]
