# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""EF21: ranks send changes."""

from .methods import Method


class EF21(Method):
    r"""Each rank sends the change of its gradient; all keep the sum of what was sent.

    .. math:: \Delta = C(g - h), \quad h \leftarrow h + \Delta, \quad
              H \leftarrow H + \text{mean}\, \Delta, \quad u = H

    Richtarik, Sokolov, Fatkhullin 2021, arXiv:2106.05203. With `momentum`, an average v of the
    gradients stands for g: EF21-SGDM, Fatkhullin, Tyurin, Richtarik 2023, arXiv:2305.15155.

    Parameters
    ----------
    compressor : compressor
    momentum : float, optional
        In (0, 1], the weight of the new gradient: v <- (1 - momentum) v + momentum g.
    min_numel : int
        Smaller tensors are sent whole.

    Raises
    ------
    ValueError, TypeError
        For what is out of range.

    Examples
    --------
    >>> method = EF21(TopK(k=1), min_numel=0)
    >>> state = method.init([torch.zeros(2)])
    >>> method.decode(state, [method.encode(state, [torch.tensor([3.0, 1.0])])])
    [tensor([3., 0.])]
    """

    name = "ef21"
    shifted = True
