# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What is kept of a gradient, and in which form it is sent."""

import math
from dataclasses import dataclass

FLOATS = ("float32", "float16", "bfloat16", "float64")


def refuse(obj, argument, got, expected, error=ValueError):
    """Raise, with one line that names class and argument."""
    raise error(f"{type(obj).__name__}: {argument}: got {got!r}, expected {expected}.")


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

    Examples
    --------
    >>> Quantize(bits=4).record([1000])["values"]
    'int4'
    """

    bits: int = 8
    block: int = 2048
    rounding: str = "stochastic"
    seed: int = 0

    def __post_init__(self):  # noqa: D105
        if self.bits not in (8, 4, 2):
            refuse(self, "bits", self.bits, "8, 4 or 2")
        if self.rounding not in ("stochastic", "nearest"):
            refuse(self, "rounding", self.rounding, '"stochastic" or "nearest"')

    def record(self, numels, tensor_id=0):
        """Return how the tensors are kept, for the engine."""
        return {"select": "dense", "id": tensor_id} | values_of(self)

    def delta(self, numel):
        """Return the contraction that is guaranteed for so many elements.

        1/(1 + n_b/(4 a^2)) for blocks of n_b elements: a rounding error has a variance of at most
        s^2/4, and the norm of a block is at least its largest element, a s.
        """
        reach = {8: 127.0, 4: 7.0, 2: 1.5}[self.bits]
        return 1 / (1 + min(self.block, max(numel, 1)) / (4 * reach**2))


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


class _Compressor:
    """What compressors check of their arguments."""

    def _check_values(self):
        if not (isinstance(self.values, Quantize) or self.values in FLOATS):
            refuse(self, "values", self.values, f"one of {', '.join(FLOATS)} or a Quantize")

    def _check_size(self):
        if (self.ratio is None) == (self.k is None):
            refuse(self, "ratio, k", (self.ratio, self.k), "one of the two")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            refuse(self, "ratio", self.ratio, "a number in (0, 1]")
        if self.k is not None and (not isinstance(self.k, int) or self.k < 1):
            refuse(self, "k", self.k, "an integer of at least 1")

    def _check_scope(self):
        if self.scope not in ("tensor", "bucket"):
            refuse(self, "scope", self.scope, '"tensor" or "bucket"')

    def kept(self, numel):
        """Return how many of so many elements are kept: at least one, at most all."""
        k = self.k if self.k is not None else max(1, math.ceil(self.ratio * numel))
        return min(numel, k)

    def delta(self, numel):
        """Return the contraction that is guaranteed for so many elements: k/n."""
        return self.kept(numel) / numel if numel > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class TopK(_Compressor):
    r"""The k elements of the largest magnitude; of equal ones those with the lower index.

    Contraction k/n (Stich, Cordonnier, Jaggi 2018, arXiv:1809.07599, Lemma A.1).

    Parameters
    ----------
    ratio : float
        k = max(1, ceil(ratio n)); or
    k : int
        as it is, at most n.
    values : str or Quantize
        "float32", "float16", "bfloat16" or "float64", or quantized values.
    indices : {"auto", "abs32", "blk16"}
    scope : {"tensor", "bucket"}
        Of each tensor, or of all that are encoded together.

    Examples
    --------
    >>> TopK(ratio=0.01).record([1000])["k"]
    10
    """

    ratio: float | None = None
    k: int | None = None
    values: object = "float32"
    indices: str = "auto"
    scope: str = "tensor"

    def __post_init__(self):  # noqa: D105
        self._check_size()
        self._check_values()
        self._check_scope()
        if self.indices not in ("auto", "abs32", "blk16"):
            refuse(self, "indices", self.indices, '"auto", "abs32" or "blk16"')

    def record(self, numels, tensor_id=0):
        """Return how the tensors are kept, for the engine."""
        record = {"select": "topk", "k": self.kept(sum(numels)), "tensors": len(numels)}
        return record | {"indices": self.indices, "id": tensor_id} | values_of(self.values)


@dataclass(frozen=True, kw_only=True)
class BlockTopK(_Compressor):
    """The k largest of every block of neighbours: one pass, 12-bit indices, the same size anywhere.

    Contraction k/block. A last block of length l keeps ceil(k l / block).

    Parameters
    ----------
    k, block : int
        `block` is a power of two from 64 to 65536, k at most that.
    values : str or Quantize
        As for :class:`TopK`.

    Examples
    --------
    >>> BlockTopK().delta(10**6)
    0.015625
    """

    k: int = 64
    block: int = 4096
    values: object = "float32"
    scope = "tensor"

    def __post_init__(self):  # noqa: D105
        self._check_values()
        if self.block not in [2**i for i in range(6, 17)]:
            refuse(self, "block", self.block, "a power of two from 64 to 65536")
        if not isinstance(self.k, int) or not 1 <= self.k <= self.block:
            refuse(self, "k", self.k, f"an integer from 1 to block = {self.block}")

    def delta(self, numel):
        """Return the contraction that is guaranteed: k/block."""
        return self.k / self.block

    def record(self, numels, tensor_id=0):
        """Return how the tensors are kept, for the engine."""
        record = {"select": "block", "k": self.k, "block": self.block, "id": tensor_id}
        return record | values_of(self.values)


@dataclass(frozen=True, kw_only=True)
class RandomK(_Compressor):
    """k elements at random, the same ones on every rank: no indices are sent.

    Contraction k/n in expectation; values are not scaled up.

    Parameters
    ----------
    ratio, k, values, scope
        As for :class:`TopK`.
    seed : int
        Elements are a function of (seed, tensor, step). The global generator is left alone.
    mode : {"permutation", "strided"}
        A random permutation's first k; or one of each of k neighbourhoods, which is faster.

    Examples
    --------
    >>> RandomK(k=3).record([1000])["select"]
    'random'
    """

    ratio: float | None = None
    k: int | None = None
    seed: int = 0
    mode: str = "permutation"
    values: object = "float32"
    scope: str = "tensor"

    def __post_init__(self):  # noqa: D105
        self._check_size()
        self._check_values()
        self._check_scope()
        if self.mode not in ("permutation", "strided"):
            refuse(self, "mode", self.mode, '"permutation" or "strided"')

    def record(self, numels, tensor_id=0):
        """Return how the tensors are kept, for the engine."""
        select = "random" if self.mode == "permutation" else "strided"
        record = {"select": select, "k": self.kept(sum(numels)), "tensors": len(numels)}
        return record | values_of(self.values) | {"seed": self.seed, "id": tensor_id}


@dataclass(frozen=True, kw_only=True)
class Threshold(_Compressor):
    """All elements from a magnitude on, as far as there is room: the first ones.

    Parameters
    ----------
    tau : float
        Above 0.
    capacity : float
        In (0, 1]: the part of the elements that there is room for. What has none stays in the
        residual.
    values : str or Quantize
        As for :class:`TopK`.

    Examples
    --------
    >>> Threshold(tau=0.1, capacity=0.05).record([1000])["k"]
    50
    """

    tau: float
    capacity: float
    values: object = "float32"
    scope = "tensor"

    def __post_init__(self):  # noqa: D105
        self._check_values()
        if not self.tau > 0:
            refuse(self, "tau", self.tau, "a number above 0")
        if not 0 < self.capacity <= 1:
            refuse(self, "capacity", self.capacity, "a number in (0, 1]")

    def delta(self, numel):
        """Return 0: nothing is guaranteed."""
        return 0.0

    def record(self, numels, tensor_id=0):
        """Return how the tensors are kept, for the engine."""
        k = math.ceil(self.capacity * sum(numels))
        record = {"select": "threshold", "tau": self.tau, "k": k, "id": tensor_id}
        return record | values_of(self.values)


@dataclass(frozen=True, kw_only=True)
class Sign:
    r"""The sign of each element, and one magnitude for all: the mean of theirs.

    .. math:: C(v) = \frac{\lVert v \rVert_1}{n} \operatorname{sign}(v), \quad
              \delta = \frac{\lVert v \rVert_1^2}{n \lVert v \rVert_2^2} \ge 1/n

    Karimireddy et al. 2019, arXiv:1901.09847, Lemma 8. The sign of 0 is +.

    Examples
    --------
    >>> Sign().record([1000])["values"]
    'sign'
    """

    scope = "tensor"

    def delta(self, numel):
        """Return the contraction that is guaranteed: 1/n."""
        return 1 / max(numel, 1)

    def record(self, numels, tensor_id=0):
        """Return how the tensors are kept, for the engine."""
        return {"select": "dense", "values": "sign", "id": tensor_id}


@dataclass(frozen=True, kw_only=True)
class Dense(_Compressor):
    """All elements as they are, or rounded to a type.

    Examples
    --------
    >>> Dense(values="bfloat16").record([1000])["select"]
    'dense'
    """

    values: str = "float32"
    scope = "tensor"

    def __post_init__(self):  # noqa: D105
        self._check_values()

    def delta(self, numel):
        """Return 1."""
        return 1.0

    def record(self, numels, tensor_id=0):
        """Return how the tensors are kept, for the engine."""
        return {"select": "dense", "id": tensor_id} | values_of(self.values)


Quantize.scope = "tensor"
