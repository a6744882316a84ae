# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Dense K-FAC, which MKOR approximates: the same step with inverses of whole covariances.

Martens and Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature",
arXiv 1503.05671, with the empirical Fisher matrix. In the notation of mkor.py, when an update is
due,

.. math::
    L \leftarrow \gamma L + (1-\gamma)\, N D^\top D, \quad
    R \leftarrow \gamma R + (1-\gamma)\, A^\top A / N, \qquad
    M_L = (L + \lambda I)^{-1}, \quad M_R = (R + \lambda I)^{-1}

The N of L undoes the 1/N of a mean loss, squared, in a mean over the batch.
"""

import torch

from .mkor import joined, precondition, rescale, update_is_due


class KFAC:
    r"""Dense K-FAC for a list of Linear layers, in float64, with the interface of mkor.py's.

    L = R = I at first, as MKOR's: in batches of one row, without damping, "exact" is the same.

    Parameters
    ----------
    shapes : list of (int, int)
    gamma : float
        Of the moving averages.
    damping : float
        :math:`\lambda \ge 0`, added to the diagonal of both factors.
    update_every, warmup_steps : int
        As MKOR's: when factors and inverses move.
    rescaled : bool
        Whether the norm of G is kept, as MKOR does. False: :math:`(L + \lambda I)^{-1} G
        (R + \lambda I)^{-1}` as it is.

    Attributes
    ----------
    factors : list of (L, R)
    inverses : list of (M_L, M_R)

    Examples
    --------
    >>> kfac = KFAC([(1, 2)], gamma=0.5, damping=0.0, rescaled=False)
    >>> kfac.step([(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]]))])  # L = 1, R = diag(1, 1/2)
    [tensor([[1., 0.]], dtype=torch.float64)]
    """

    def __init__(
        self, shapes, *, gamma=0.95, damping=1e-3, update_every=10, warmup_steps=0, rescaled=True
    ):
        self.shapes, self.gamma, self.damping = list(shapes), gamma, damping
        self.schedule, self.rescaled, self.steps = (update_every, warmup_steps), rescaled, 0
        self.factors = [
            tuple(torch.eye(d, dtype=torch.float64) for d in shape) for shape in self.shapes
        ]
        self.inverses = [(None, None)] * len(self.shapes)

    def step(self, batches):
        """Take a step with (A, D) of each layer; return G' of each."""
        rows = [joined(A, D, shape) for (A, D), shape in zip(batches, self.shapes, strict=True)]
        if update_is_due(self.steps, *self.schedule):
            for (L, R), (A, D) in zip(self.factors, rows, strict=True):
                kfac_update(L, R, A, D, self.gamma)
            self.inverses = [kfac_inverses(L, R, self.damping) for L, R in self.factors]
        self.steps += 1
        gradients = [D.T @ A for A, D in rows]
        found = [precondition(G, *M) for G, M in zip(gradients, self.inverses, strict=True)]
        return list(map(rescale, gradients, found)) if self.rescaled else found


def kfac_update(L, R, A, D, gamma):
    r"""Move the factors of K-FAC, in place.

    .. math::
        L \leftarrow \gamma L + (1-\gamma)\, N D^\top D, \qquad
        R \leftarrow \gamma R + (1-\gamma)\, A^\top A / N

    Examples
    --------
    >>> L, R = torch.eye(1), torch.eye(1)
    >>> kfac_update(L, R, torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [3.0]]), gamma=0.0)
    >>> L.item(), R.item()
    (20.0, 5.0)
    """
    N = len(A)
    L.mul_(gamma).add_(D.T @ D, alpha=(1 - gamma) * N)
    R.mul_(gamma).add_(A.T @ A, alpha=(1 - gamma) / N)


def kfac_inverses(L, R, damping):
    r"""Return :math:`(L + \lambda I)^{-1}` and :math:`(R + \lambda I)^{-1}`.

    Examples
    --------
    >>> kfac_inverses(torch.eye(1), 3 * torch.eye(1), damping=1.0)
    (tensor([[0.5000]]), tensor([[0.2500]]))
    """
    return tuple(torch.linalg.inv(X + damping * torch.eye(len(X)).to(X)) for X in (L, R))
