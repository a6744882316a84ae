# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Whether compression moves fewer bytes than a dense all-reduce, before training starts."""

from dataclasses import dataclass

import torch

from .. import _C
from .exchange import records_of


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank receives in a step: of payloads, and of a dense ring all-reduce."""

    compressed: int
    dense: int
    world: int

    @property
    def pays(self):
        """Tell whether the compressed exchange moves fewer bytes."""
        return self.compressed < self.dense

    def __str__(self):  # noqa: D105
        verdict = "fewer" if self.pays else "no fewer"
        return (
            f"{self.world} ranks: {self.compressed:,} bytes compressed, {self.dense:,} dense: "
            f"{verdict} ({self.compressed / max(self.dense, 1):.2f} times)"
        )


def traffic(method, parameters, world, dtype=None):
    """Return the bytes that a rank receives in a step with and without compression.

    An all-gather brings W - 1 payloads; a ring all-reduce 2 n b (W - 1)/W bytes.

    Parameters
    ----------
    method : method
        As ``EControl(TopK(ratio=0.01))``.
    parameters : iterable of Tensors
    world : int
        Ranks.
    dtype : torch.dtype, optional
        Of the gradients in the dense all-reduce; that of the parameters.

    Examples
    --------
    >>> print(traffic(EF21(TopK(ratio=0.01)), [torch.zeros(100_000)], world=8))
    8 ranks: 42,560 bytes compressed, 700,000 dense: fewer (0.06 times)
    """
    if not isinstance(world, int) or world < 1:
        raise ValueError(f"traffic: world: got {world!r}, expected an integer of at least 1.")
    parameters = list(parameters)
    numels = [p.numel() for p in parameters]
    records, _ = records_of(method, numels)
    payload = _C.CompressionPlan(numels, records).payload_bytes
    sizes = [(dtype or p.dtype).itemsize for p in parameters]
    dense = 2 * sum(n * size for n, size in zip(numels, sizes, strict=True)) * (world - 1) // world
    return Traffic((world - 1) * payload, dense, world)


def break_even(world, value_bits, index_bits, dtype=torch.bfloat16):
    r"""Return the density up to which sparse payloads are smaller than a dense ring all-reduce.

    .. math:: \rho^* = 2 b / (W (b_v + b_i))

    Examples
    --------
    >>> break_even(64, value_bits=16, index_bits=16)
    0.015625
    """
    return 2 * 8 * dtype.itemsize / (world * (value_bits + index_bits))
