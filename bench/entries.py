# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What stands beside each other in a benchmark: ours, its rivals, and floors.

A family's benchmark is a dict of these by name. "largebatch" is what the others are compared with.
"""

from collections.abc import Callable
from typing import NamedTuple


class Entry(NamedTuple):
    """Something that can be timed."""

    make: Callable  # of the tensors (an optimizer's: of the parameters); ImportError: not here
    role: str  # ours; peer: does the same work; floor: less work, or other work, for scale
    bytes: Callable | float | None = None  # moved for each element; may depend on the dtype


def ours(make, nbytes=None):
    """Return an entry of this package."""
    return Entry(make, "ours", nbytes)


def peer(make, nbytes=None):
    """Return one that does the same work."""
    return Entry(make, "peer", nbytes)


def floor(make, nbytes=None):
    """Return one that is there for scale."""
    return Entry(make, "floor", nbytes)


def moves(weights, grads, states):
    """Return the bytes that an optimizer of ours moves, counted in reads and writes of its arrays.

    16-bit parameters are written too, beside their fp32 masters, which are the weights then.
    """

    def nbytes(dtype):
        copy = dtype.itemsize if dtype.itemsize < 4 else 0
        return 4 * (weights + states) + dtype.itemsize * grads + copy

    return nbytes


def in_its_dtype(arrays):
    """Return the bytes of an optimizer of torch, whose state has the dtype of the parameters."""
    return lambda dtype: dtype.itemsize * arrays
