# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Counts what leaves a rank, and what it copies."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from largebatch.sequence import _transport


class Sent:
    """Counts what leaves through the one place where it can: (elements to each rank, itemsize)."""

    def __enter__(self):
        self.messages, self._before = [], _transport.Transport.start

        def start(transport, message, send, receive):
            self.messages.append((list(send), message.element_size()))
            return self._before(transport, message, send, receive)

        _transport.Transport.start = start
        return self

    def __exit__(self, *_):
        _transport.Transport.start = self._before

    def off_rank(self, rank):
        """Return the bytes of each message that go to other ranks."""
        return [(sum(send) - send[rank]) * size for send, size in self.messages]


class Copied(TorchDispatchMode):
    """Counts bytes that operations write which are not views, by name of the operation."""

    def __init__(self):
        super().__init__()
        self.bytes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        made = out if isinstance(out, list | tuple) else [out]
        given = {
            x.untyped_storage().data_ptr()
            for a in args
            for x in (a if isinstance(a, list | tuple) else [a])
            if isinstance(x, torch.Tensor)
        }
        new = [x for x in made if isinstance(x, torch.Tensor)]
        new = [x for x in new if x.untyped_storage().data_ptr() not in given]
        if (
            not func.is_view
            and sum(x.nbytes for x in new)
            and name not in ("empty", "all_to_all_single")
        ):
            self.bytes[name] = self.bytes.get(name, 0) + sum(x.nbytes for x in new)
        return out
