# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Where the state of tensors lies: that of small ones side by side."""

import math

import torch

from ._sharding import PLAIN

_SMALL = 4096  # elements of the largest tensor whose state shares a storage
_FIRST, _MOST = 1024, 2**18  # elements of such a storage, which are twice as many each time
_LINE = 64  # bytes: what vector loads and threads want to have for themselves


class Arena:
    """Gives memory to the states of an optimizer.

    A step over thousands of small tensors waits for memory about half of the time. So their states
    share storages and lie in them in the order in which a step goes through them;
    docs/performance.md has what that saves.
    """

    def __init__(self):
        self._storages = {}  # what the elements are for -> (storage, elements in use)

    def empty_like(self, tensor, dtype):
        """Return an uninitialised tensor with the shape and the layout of one."""
        like = {"dtype": dtype, "memory_format": torch.preserve_format}
        if type(tensor) not in PLAIN or not 0 < tensor.numel() <= _SMALL:
            return torch.empty_like(tensor, **like).detach()
        plan = torch.empty_like(tensor, device="meta", **like)
        return self._part(plan.shape, plan.stride(), dtype, tensor.device, _LINE // dtype.itemsize)

    def scalar(self, value, device):
        """Return a number as a 0-dim fp32 tensor."""
        # At even places: at odd ones it might be the imaginary part of a conjugate, and would have
        # to be asked in each step whether it is.
        return self._part((), (), torch.float32, device, 2).fill_(value)

    def _part(self, shape, stride, dtype, device, multiple):
        """Return a tensor at some multiple of elements into a storage."""
        # A storage goes back to the stream that it was made on.
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
        use = dtype, device, stream, multiple
        numel = math.prod(shape)
        storage, begin = self._storages.get(use, ((), 0))
        if begin + numel > len(storage):
            length = min(max(2 * len(storage), _FIRST), _MOST)
            storage, begin = torch.empty(max(length, numel), dtype=dtype, device=device), 0
        self._storages[use] = storage, begin + -(-numel // multiple) * multiple
        part = torch.empty(0, dtype=dtype, device=device)
        return part.set_(storage.untyped_storage(), begin, shape, stride)
