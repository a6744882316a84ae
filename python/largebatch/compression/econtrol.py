# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""EControl: error feedback with a gain."""

import math
import warnings

from .._checks import check_number, refuse
from .compressors import Sign
from .methods import Method


class EControl(Method):
    r"""EF21 whose error is fed back with a gain: independent of data and noise on other ranks.

    .. math:: r = g - h, \quad \Delta = C(\eta e + r), \quad e \leftarrow e + r - \Delta, \quad
              h \leftarrow h + \Delta, \quad H \leftarrow H + \text{mean}\, \Delta, \quad u = H

    Gao, Islamov, Stich 2023, arXiv:2311.05645, Algorithm 1. With `momentum`, an average of the
    gradients stands for g (EControl-M, ours). eta = 0 is EF21, bit for bit.

    Parameters
    ----------
    compressor : compressor
    eta : float, optional
        The gain. Converges up to 1.5 delta and diverges at 3 delta, delta being the compressor's
        contraction. None: delta/2. A warning above delta, ValueError above 3 delta.
    momentum : float, optional
        As for :class:`EF21`.
    min_numel : int
        Smaller tensors are sent whole.

    Raises
    ------
    ValueError, TypeError
        For what is out of range; eta only once the sizes are known, by :meth:`encode` and
        :meth:`hook`.

    Examples
    --------
    >>> EControl(TopK(ratio=0.1)).gain([1000])
    0.05
    """

    name = "econtrol"
    shifted = True

    def __init__(self, compressor, *, eta=None, momentum=None, min_numel=4096):
        super().__init__(compressor, momentum=momentum, min_numel=min_numel)
        if eta is not None:
            expected = "a number of at least 0"
            check_number(self, "eta", eta, expected, lambda x: x >= 0 and math.isfinite(x))
        self.eta = eta

    @property
    def settings(self):
        """The keyword arguments that it was made with."""
        return {"eta": self.eta} | super().settings

    def gain(self, numels):
        """Return eta for compressed tensors, or a bucket of them, of these sizes."""
        delta = min((self.compressor.delta(n) for n in numels if n > 0), default=1.0)
        if delta == 0 or isinstance(self.compressor, Sign):
            if self.eta is None:
                expected = f"a number: {self.compressor} guarantees too little to choose one"
                refuse(self, "eta", None, expected)
            return self.eta
        eta = 0.5 * delta if self.eta is None else self.eta
        if eta > 3 * delta:
            expected = f"at most {delta:.3g}, the compressor's contraction"
            refuse(self, "eta", eta, f"{expected}: it diverges at 3 times that")
        if eta > delta:
            warnings.warn(
                f"EControl: eta: got {eta:.3g}, above the compressor's contraction {delta:.3g}; it "
                "diverges at 3 times that.",
                stacklevel=4,
            )
        return eta

    def rule(self, numels):
        """Return the constants of the update, for the engine."""
        return super().rule(numels) | {"eta": self.gain(numels)}
