# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Whether compression moves fewer bytes than a dense all-reduce, before training starts."""

from dataclasses import dataclass

import torch

from .._checks import check_choice, check_number, check_whole, refuse
from .exchange import new_plan, real_of, records_of
from .regions import received


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank receives in a step: of payloads, and of a dense ring all-reduce.

    payload : what a rank sends, in bytes
    """

    compressed: int
    dense: int
    world: int
    payload: int

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


def traffic(method, parameters, world, dtype=None, exchange="all_gather"):
    """Return the bytes that a rank receives in a step with and without compression.

    An all-gather brings W - 1 payloads; a ring all-reduce 2 n b (W - 1)/W bytes.

    Parameters
    ----------
    method : method
        As ``EControl(TopK(ratio=0.01))``.
    parameters : iterable of Tensors
        Those of the model.
    world : int
        Ranks.
    dtype : torch.dtype, optional
        Of the gradients in the dense all-reduce; that of the parameters.
    exchange : {"all_gather", "regions"}
        As that of the hook; regions are those of one bucket.

    Returns
    -------
    Traffic
        Its ``str`` is a line that says which is fewer.

    Examples
    --------
    >>> print(traffic(EF21(TopK(ratio=0.01)), [torch.zeros(100_000)], world=8))
    8 ranks: 42,560 bytes compressed, 700,000 dense: fewer (0.06 times)
    """
    check_whole("traffic", "world", world, "an integer of at least 1", lambda w: w >= 1)
    check_choice("traffic", "exchange", exchange, ("all_gather", "regions"))
    parameters = list(parameters)
    numels = [p.numel() for p in parameters]
    records, groups = records_of(method, numels)
    plan = new_plan([numels[t] for _, group in groups for t in group], records)
    compressed = (world - 1) * plan.payload_bytes
    if exchange == "regions":
        whole = [r["select"] == "dense" for r in records]
        slots = [place["slots"] for place in plan.layout]
        dense = sum(n for n, d in zip(slots, whole, strict=True) if d)
        size = max((real_of(p.dtype).itemsize for p in parameters), default=4)
        compressed = received(sum(slots) - dense, dense, world, size)
    sizes = [(dtype or p.dtype).itemsize for p in parameters]
    dense = 2 * sum(n * size for n, size in zip(numels, sizes, strict=True)) * (world - 1) // world
    return Traffic(compressed, dense, world, plan.payload_bytes)


def break_even(world, value_bits, index_bits, dtype=torch.bfloat16):
    r"""Return the density up to which sparse payloads are smaller than a dense ring all-reduce.

    .. math:: \rho^* = 2 b / (W (b_v + b_i))

    Parameters
    ----------
    world : int
        Ranks.
    value_bits, index_bits : number
        Of a kept element: 32 and 32 as it is, 16 and 12 for blocks of bf16.
    dtype : torch.dtype
        Of the gradients in the dense all-reduce.

    Examples
    --------
    >>> break_even(64, value_bits=16, index_bits=16)
    0.015625
    """
    check_whole("break_even", "world", world, "an integer of at least 1", lambda w: w >= 1)
    for name, bits in (("value_bits", value_bits), ("index_bits", index_bits)):
        check_number("break_even", name, bits, "a number of at least 0", lambda b: b >= 0)
    if value_bits + index_bits == 0:
        refuse("break_even", "value_bits, index_bits", (0, 0), "not both 0")
    return 2 * 8 * dtype.itemsize / (world * (value_bits + index_bits))
