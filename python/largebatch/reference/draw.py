# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Random numbers of the compressors: pure functions of (seed, id, step, slot).

Words are those of Philox4x32-10 as in :mod:`~largebatch.reference.rounding`: slot j of a stream has
word j mod 4 of call j // 4. Indices are distinct, are drawn alike on every rank, and are not sent.
The numbers that integer values are rounded by have the rank in their seed.

Everything is integer arithmetic modulo :math:`2^{32}`, done in int64.
"""

import torch

from .rounding import philox

_WORD = 0xFFFFFFFF
_RANK_STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_ROUNDS = 6


def random_words(count, step, *, seed, id, device=None):
    """Return the words of slots 0..count-1 of a stream.

    Parameters
    ----------
    count, step : int
    seed, id : int
        Taken modulo 2^64.
    device : torch.device, optional

    Returns
    -------
    Tensor
        ``[count]`` int64 in [0, 2^32).

    Examples
    --------
    >>> f"{random_words(1, 0, seed=0, id=0).item():08x}"
    '6627e8d5'
    """
    quad = torch.arange((count + 3) // 4, device=device)
    counter = quad & _WORD, quad >> 32, step & _WORD, id & _WORD
    key = seed & _WORD, (seed >> 32 ^ id >> 32) & _WORD
    words = torch.broadcast_tensors(*philox(counter, key))
    return torch.stack(words, dim=-1).reshape(-1)[:count]


def rank_seed(seed, rank):
    """Return the seed of what differs from rank to rank.

    Examples
    --------
    >>> hex(rank_seed(0, 0))
    '0x9e3779b97f4a7c15'
    """
    return (seed ^ (rank + 1) * _RANK_STEP) & 0xFFFFFFFFFFFFFFFF


def random_indices(numel, k, step=0, *, seed=0, id=0):
    r"""Return the first k images of a pseudo-random permutation of 0..numel-1.

    A Feistel network of six rounds permutes :math:`[0, 4^h)`, h the least with
    :math:`4^h \ge` numel. From a number below numel its cycle is walked to the next such number,
    which makes a permutation of them. The round function is "lowbias32" of C. Wellons of the half
    index plus a key, the keys being the first words of the stream.

    Parameters
    ----------
    numel, k, step : int
        0 <= k <= numel < 2^40.
    seed, id : int
        Taken modulo 2^64.

    Returns
    -------
    Tensor
        ``[k]`` int64, distinct, in the order of the slots.

    Examples
    --------
    >>> sorted(random_indices(5, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    half = (max(2, (numel - 1).bit_length()) + 1) // 2
    mask = (1 << half) - 1
    keys = random_words(8, step, seed=seed, id=id).tolist()
    x = torch.arange(k)
    walking = torch.arange(k)  # slots whose x has not yet come below numel
    while walking.numel() > 0:
        left, right = x[walking] >> half, x[walking] & mask
        for key in keys[:_ROUNDS]:
            left, right = right, left ^ (_mix(right + key & _WORD) & mask)
        x[walking] = left << half | right
        walking = walking[x[walking] >= numel]
    return x


def _mix(x):
    x = (x ^ x >> 16) * 0x7FEB352D & _WORD
    x = (x ^ x >> 15) * 0x846CA68B & _WORD
    return x ^ x >> 16


def strided_indices(numel, k, step=0, *, seed=0, id=0):
    """Return one random index from each of k parts of 0..numel-1 of nearly the same length.

    Part j begins at floor(j numel / k).

    Parameters
    ----------
    numel, k, step : int
        0 <= k <= numel < 2^40.
    seed, id : int
        Taken modulo 2^64.

    Returns
    -------
    Tensor
        ``[k]`` int64, ascending.

    Examples
    --------
    >>> strided_indices(4, 4).tolist()
    [0, 1, 2, 3]
    """
    if k == 0:
        return torch.empty(0, dtype=torch.int64)
    whole, rest = divmod(numel, k)
    j = torch.arange(k + 1)
    starts = j * whole + j * rest // k  # j * numel could overflow
    words = random_words(k, step, seed=seed, id=id)
    length = starts[1:] - starts[:-1]
    # words * length >> 32, whose product may have 72 bits
    high, low = length >> 16, length & 0xFFFF
    return starts[:-1] + (words * high + (words * low >> 16) >> 16)
