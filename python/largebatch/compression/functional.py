# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Compressors as functions of one tensor.

Each is the same bits on every run and backend, and has no host synchronisation. Elements are
counted in C order. Tensors are fp32, fp16, bf16 or fp64, of any shape.
"""

from typing import NamedTuple

import torch

from .._checks import check_whole
from ..ops._library import as_tensor
from ..ops.topk import topk_select
from .compressors import BlockTopK, RandomK, Sign, Threshold
from .exchange import new_plan, real_of
from .quantizer import Quantize


class Selection(NamedTuple):
    """Some elements of a tensor, and where they are: ``[k]``, and ``[k]`` int64 ascending."""

    values: torch.Tensor
    indices: torch.Tensor


class ThresholdSelection(NamedTuple):
    """A :class:`Selection` with ``[]`` int64 how many elements there were to select."""

    values: torch.Tensor
    indices: torch.Tensor
    found: torch.Tensor


class Encoded:
    """A tensor in the wire format, ``payload`` uint8, and the way back."""

    def __init__(self, payload, plan, like):
        self.payload, self._plan = payload, plan
        self._shape, self._dtype = like.shape, like.dtype

    @property
    def nbytes(self):
        """Bytes, with a header of 64."""
        return self.payload.numel()

    def decode(self):
        """Return the tensor as a receiver has it; elements that were not sent are 0."""
        device, real = self.payload.device, real_of(self._dtype)
        values = torch.empty(self._plan.slots, dtype=real, device=device)
        indices = torch.empty(self._plan.slots, dtype=torch.int64, device=device)
        self._plan.unpack(self.payload, values, indices)
        # The last element takes the slots that a threshold has left empty.
        flat = torch.zeros(self._shape.numel() + 1, dtype=real, device=device)
        flat[indices] = values
        return flat[:-1].view(self._shape).to(self._dtype)


def topk(x, k):
    """Return the k elements of the largest magnitude, of equal ones those with the lower index.

    :func:`largebatch.ops.topk_select`, differentiable, but all of them if k is larger. See
    :class:`TopK`.

    Examples
    --------
    >>> topk(torch.tensor([1.0, -3.0, 2.0]), 2)
    Selection(values=tensor([-3.,  2.]), indices=tensor([1, 2]))
    """
    x = as_tensor("topk", "x", x)
    check_whole("topk", "k", k, "an integer of at least 0", lambda k: k >= 0)
    return Selection(*topk_select(x, min(k, x.numel())))


def block_topk(x, k=64, block=4096):
    """Return the k largest of every `block` elements; see :class:`BlockTopK`.

    Examples
    --------
    >>> block_topk(torch.arange(128.0), k=1, block=64).indices
    tensor([ 63, 127])
    """
    x = as_tensor("block_topk", "x", x)
    return _select(x, BlockTopK(k=k, block=block).record([x.numel()]))[0]


def threshold(x, tau, capacity=1.0):
    """Return the first elements of at least a magnitude, as many as there is room for.

    `capacity` is the part of the elements that there is room for. Places that are left over have
    the value 0 and the index n, that of no element; see :class:`Threshold`.

    Examples
    --------
    >>> threshold(torch.tensor([1.0, -3.0, 2.0]), 2.0).indices
    tensor([1, 2, 3])
    """
    x = as_tensor("threshold", "x", x)
    record = Threshold(tau=tau, capacity=capacity).record([x.numel()])
    selection, counts = _select(x, record)
    return ThresholdSelection(*selection, counts[0, 0])


def random_k(x, k, *, seed=0, step=0, tensor_id=0, mode="permutation"):
    """Return k elements at random, a function of (seed, tensor_id, step); see :class:`RandomK`.

    In the order in which they are drawn, which is not ascending for ``"permutation"``.

    Examples
    --------
    >>> random_k(torch.arange(10.0), 10).values.sum()
    tensor(45.)
    """
    x = as_tensor("random_k", "x", x)
    compressor = RandomK(k=k, seed=seed, mode=mode)
    return _select(x, compressor.record([x.numel()], tensor_id), step)[0]


def sign(x):
    """Return the signs of a tensor, 32 in a word, and the mean magnitude; see :class:`Sign`.

    Examples
    --------
    >>> sign(torch.tensor([3.0, -1.0])).decode()
    tensor([ 2., -2.])
    """
    x = as_tensor("sign", "x", x)
    return _encode(x, Sign().record([x.numel()]), 0, 0)


def quantize(x, bits=8, *, block=2048, rounding="stochastic", seed=0, step=0, tensor_id=0, rank=0):
    """Return a tensor in 8, 4 or 2 bits; see :class:`Quantize`.

    Examples
    --------
    >>> quantize(torch.tensor([7.0, -2.0, 0.4]), 4, rounding="nearest").decode()
    tensor([ 7., -2.,  0.])
    """
    x = as_tensor("quantize", "x", x)
    compressor = Quantize(bits=bits, block=block, rounding=rounding, seed=seed)
    return _encode(x, compressor.record([x.numel()], tensor_id), step, rank)


def _select(x, record, step=0):
    flat = x.detach().contiguous().view(-1)
    plan = new_plan([flat.numel()], [record])
    values = torch.empty(plan.slots, dtype=x.dtype, device=x.device)
    indices = torch.empty(plan.slots, dtype=torch.int64, device=x.device)
    counts = torch.empty(1, 2, dtype=torch.int64, device=x.device)
    plan.select([flat], values, indices, counts, None, step)
    return Selection(values, indices), counts


def _encode(x, record, step, rank):
    flat = x.detach().contiguous().view(-1)
    plan, real = new_plan([flat.numel()], [record]), real_of(x.dtype)
    payload = torch.empty(plan.payload_bytes, dtype=torch.uint8, device=x.device)
    values = torch.empty(plan.slots, dtype=real, device=x.device)
    indices = torch.empty(plan.slots, dtype=torch.int64, device=x.device)
    counts = torch.zeros(1, 2, dtype=torch.int64, device=x.device)
    plan.pack([flat.to(real)], values, indices, counts, step, rank, payload)
    return Encoded(payload, plan, x)
