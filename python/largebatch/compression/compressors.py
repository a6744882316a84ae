# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What is kept of a gradient, and in which form it is sent.

Compressors are values: frozen, equal if their settings are. Wrong settings raise ValueError or
TypeError with one line. What they do is the same bits on every run and backend.
"""

import math
from dataclasses import dataclass

from .._checks import check_choice, check_number, check_whole, refuse
from .quantizer import Quantize, check_seed, values_of

__all__ = ["BlockTopK", "Dense", "Quantize", "RandomK", "Sign", "Threshold", "TopK"]

FLOATS = ("float32", "float16", "bfloat16", "float64")


class _Compressor:
    """What compressors check of their arguments."""

    def _check_values(self):
        if not (isinstance(self.values, Quantize) or self.values in FLOATS):
            refuse(self, "values", self.values, f"one of {', '.join(FLOATS)} or a Quantize")

    def _check_size(self):
        if (self.ratio is None) == (self.k is None):
            refuse(self, "ratio, k", (self.ratio, self.k), "one of the two")
        if self.ratio is not None:
            check_number(self, "ratio", self.ratio, "a number in (0, 1]", lambda r: 0 < r <= 1)
        if self.k is not None:
            check_whole(self, "k", self.k, "an integer of at least 1", lambda k: k >= 1)
        check_choice(self, "scope", self.scope, ("tensor", "bucket"))

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
        check_choice(self, "indices", self.indices, ("auto", "abs32", "blk16"))

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
    indices : {"auto", "abs32", "blk16", "blk12"}
        blk12, 12 bits each, is for blocks of at most 4096 that keep an even number.

    Examples
    --------
    >>> BlockTopK().delta(10**6)
    0.015625
    """

    k: int = 64
    block: int = 4096
    values: object = "float32"
    indices: str = "auto"
    scope = "tensor"

    def __post_init__(self):  # noqa: D105
        self._check_values()
        powers = [2**i for i in range(6, 17)]
        expected = "a power of two from 64 to 65536"
        check_whole(self, "block", self.block, expected, powers.__contains__)
        expected = f"an integer from 1 to block = {self.block}"
        check_whole(self, "k", self.k, expected, lambda k: 1 <= k <= self.block)
        choices = ("auto", "abs32", "blk16", "blk12")
        check_choice(self, "indices", self.indices, choices)
        if self.indices == "blk12" and (self.block > 4096 or self.k % 2 != 0):
            refuse(self, "indices", "blk12", "others unless block is at most 4096 and k even")

    def delta(self, numel):
        """Return the contraction that is guaranteed: k/block."""
        return self.k / self.block

    def record(self, numels, tensor_id=0):
        """Return how the tensors are kept, for the engine."""
        record = {"select": "block", "k": self.k, "block": self.block, "id": tensor_id}
        return record | {"indices": self.indices} | values_of(self.values)


@dataclass(frozen=True, kw_only=True)
class RandomK(_Compressor):
    """k elements at random, the same ones on every rank: no indices are sent.

    Contraction k/n in expectation, for strided 1/ceil(n/k); values are not scaled up.

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
        check_choice(self, "mode", self.mode, ("permutation", "strided"))
        check_seed(self, self.seed)

    def delta(self, numel):
        """Return the contraction in expectation: k/n, or 1 over the size of a neighbourhood."""
        if self.mode == "permutation" or numel == 0:
            return super().delta(numel)
        return 1 / math.ceil(numel / self.kept(numel))

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
        check_number(
            self, "tau", self.tau, "a number above 0", lambda t: t > 0 and math.isfinite(t)
        )
        check_number(self, "capacity", self.capacity, "a number in (0, 1]", lambda c: 0 < c <= 1)

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
