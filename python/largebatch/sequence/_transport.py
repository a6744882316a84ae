# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The one way by which messages travel between ranks: every byte of an exchange goes through it."""

import warnings

import torch
import torch.distributed as dist

from .._comm import gather_rows

TRANSPORTS = ("all_to_all", "send_recv", "all_gather")

# What no backend of torch refuses; the rest travels as bytes. (gloo has no fp8, int16 and uint16.)
_TRAVEL = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
)


class Transport:
    """All-to-all between the ranks of a group, or what stands in for it."""

    def __init__(self, group, kind):
        self.group, self.name = group, group.group_name
        self.auto, self.kind = kind == "auto", TRANSPORTS[0] if kind == "auto" else kind

    def start(self, message, send, receive):
        """Send parts of a flat message, and return what is received; :func:`wait` for it.

        send, receive : how many elements go to and come from each rank.
        """
        if message.dtype not in _TRAVEL:
            size = message.element_size()
            bytes_, to, come = message.view(torch.uint8), *_times(size, send, receive)
            return self.start(bytes_, to, come).view(message.dtype)
        if self.kind == "all_to_all":
            if torch.compiler.is_compiling() or not self.auto:
                return self._all_to_all(message, send, receive)
            try:
                return self._all_to_all(message, send, receive)
            except RuntimeError as error:
                self._without("alltoall", error)
        if self.kind == "send_recv":
            if not self.auto:
                return self._send_recv(message, send, receive)
            try:
                return self._send_recv(message, send, receive)
            except RuntimeError as error:
                self._without("send", error)
        return self._all_gather(message, send, receive)

    def _without(self, what, error):
        """Go on with the next kind, if the backend has none of this one: on all ranks alike."""
        text = str(error).lower().replace("_", "")
        if "does not support" not in text or what not in text:
            raise error
        self.kind = TRANSPORTS[TRANSPORTS.index(self.kind) + 1]
        if self.kind == "all_gather":
            warnings.warn(
                f"UlyssesPlan: {dist.get_backend(self.group)} has neither all-to-all nor sends: an "
                f"all-gather moves {dist.get_world_size(self.group)} times the bytes.",
                stacklevel=2,
            )

    def _all_to_all(self, message, send, receive):
        op = torch.ops._c10d_functional.all_to_all_single
        return op(message, list(receive), list(send), self.name)

    def _send_recv(self, message, send, receive):
        received = message.new_empty(sum(receive))
        me, work = dist.get_rank(self.group), []
        for peer, (mine, theirs) in enumerate(
            zip(message.split(send), received.split(receive), strict=True)
        ):
            if peer == me:
                theirs.copy_(mine)
                continue
            at = dist.get_global_rank(self.group, peer)
            if mine.numel():
                work.append(dist.P2POp(dist.isend, mine, at, group=self.group))
            if theirs.numel():
                work.append(dist.P2POp(dist.irecv, theirs, at, group=self.group))
        for one in dist.batch_isend_irecv(work) if work else ():
            one.wait()
        return received

    def _all_gather(self, message, send, receive):
        me, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        sizes = gather_rows(torch.tensor(send, device=message.device), self.group).tolist()
        padded = message.new_zeros(max(sum(row) for row in sizes))
        padded[: message.numel()] = message
        gathered = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(gathered, padded, group=self.group)
        return torch.cat(
            [
                one.split([*row, len(padded) - sum(row)])[me]
                for one, row in zip(gathered, sizes, strict=True)
            ]
        )


def _times(size, *lists):
    return [[size * count for count in counts] for counts in lists]


class _Way:
    """From whom to whom a message goes, and what is going back that way in backward."""

    def __init__(self, transport, send, receive):
        self.transport, self.send, self.receive = transport, send, receive
        self.going_back = None

    def start(self, message):
        return self.transport.start(message, self.send, self.receive)

    def back(self):
        return _Way(self.transport, self.receive, self.send)


def _wait(received):
    return torch.ops._c10d_functional.wait_tensor(received)


class _Exchange(torch.autograd.Function):
    """Starts an exchange and waits for it; backward is one the other way, any number of times."""

    @staticmethod
    def forward(ctx, message, way):
        ctx.way = way
        return _wait(way.start(message))

    @staticmethod
    def backward(ctx, grad):
        return _Exchange.apply(grad.contiguous(), ctx.way.back()), None


class _Start(torch.autograd.Function):
    """The first half of an exchange; in backward the second half of the one that goes back."""

    @staticmethod
    def forward(ctx, message, way):
        ctx.way = way
        return way.start(message)

    @staticmethod
    def backward(ctx, grad):
        going_back, ctx.way.going_back = ctx.way.going_back, None
        if going_back is None:  # a gradient that will itself be differentiated
            return _Exchange.apply(grad.contiguous(), ctx.way.back()), None
        return _wait(going_back), None


class _Wait(torch.autograd.Function):
    """The second half of an exchange; in backward the first half of the one that goes back.

    What it returns there is not looked at by _Start, which is the next to be called.
    """

    @staticmethod
    def forward(ctx, received, way):
        ctx.way = way
        return _wait(received)

    @staticmethod
    def backward(ctx, grad):
        if not torch.is_grad_enabled():
            ctx.way.going_back = ctx.way.back().start(grad.contiguous())
        return grad, None


class InFlight:
    """A message on its way.

    Differentiable any number of times. Backward starts the exchange that goes back where forward
    has waited, and waits where forward has started, so that what was computed in between has its
    gradients computed meanwhile.
    """

    def __init__(self, message, transport, send, receive):
        self.way = _Way(transport, list(send), list(receive))
        one = torch.compiler.is_compiling()  # the compiler moves the two halves itself
        self.received = (_Exchange if one else _Start).apply(message, self.way)
        self.waited = one

    def wait(self):
        """Return what has come, once."""
        received, self.received = self.received, None
        return received if self.waited else _Wait.apply(received, self.way)
