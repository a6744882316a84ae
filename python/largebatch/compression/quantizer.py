# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Values in few bits."""

from dataclasses import dataclass

from .._checks import check_choice, check_whole

_REACH = {8: 127.0, 4: 7.0, 2: 1.5}


def check_seed(obj, seed):
    """Refuse what is not a seed of 64 bits."""
    check_whole(obj, "seed", seed, "an integer from 0 to 2**64 - 1", lambda s: 0 <= s < 2**64)


@dataclass(frozen=True, kw_only=True)
class Quantize:
    r"""All elements, or the values of another compressor, in 8, 4 or 2 bits.

    .. math:: \text{code} = \lfloor v / s + c + u \rfloor, \qquad Q(v) = (\text{code} - c)\, s

    with s the largest magnitude of `block` neighbours over 127, 7 or 1.5, u random in [0, 1), so
    that E Q(v) = v (Alistarh et al. 2017, "QSGD", arXiv:1610.02132), or 1/2.

    Parameters
    ----------
    bits : {8, 4, 2}
    block : int
        Neighbours that share a scale, a multiple of 64 up to 16384.
    rounding : {"stochastic", "nearest"}
    seed : int
        Of the random numbers, which are a function of (seed, tensor, step, rank, element).

    Raises
    ------
    ValueError, TypeError
        For what is out of range.

    Examples
    --------
    >>> Quantize(bits=4).record([1000])["values"]
    'int4'
    """

    bits: int = 8
    block: int = 2048
    rounding: str = "stochastic"
    seed: int = 0
    scope = "tensor"

    def __post_init__(self):  # noqa: D105
        check_whole(self, "bits", self.bits, "8, 4 or 2", _REACH.__contains__)
        check_whole(
            self,
            "block",
            self.block,
            "a multiple of 64 from 64 to 16384",
            lambda b: 64 <= b <= 16384 and b % 64 == 0,
        )
        check_choice(self, "rounding", self.rounding, ("stochastic", "nearest"))
        check_seed(self, self.seed)

    def record(self, numels, tensor_id=0):
        """Return how the tensors are kept, for the engine."""
        return {"select": "dense", "id": tensor_id} | values_of(self)

    def delta(self, numel):
        """Return the contraction that is guaranteed for so many elements: 0 where nothing is.

        1 - n_b/(4 a^2) for blocks of n_b elements and a = 127, 7 or 1.5: a rounding error has a
        variance of at most s^2/4, and the norm of a block is at least its largest element, a s.
        """
        return max(0.0, 1 - min(self.block, max(numel, 1)) / (4 * _REACH[self.bits] ** 2))


def values_of(values):
    """Return the part of a record that says how values are sent."""
    if isinstance(values, Quantize):
        return {
            "values": f"int{values.bits}",
            "scale_block": values.block,
            "rounding": values.rounding,
            "seed": values.seed,
        }
    return {"values": values}
