# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Error feedback: what a rank does with what it could not send.

Of a gradient g, each rank sends Delta = C(key) and every rank gets the same update u:

===================  =============  =======================================  =============
method               key            after it is sent                         u
===================  =============  =======================================  =============
ErrorFeedback        e + g          e <- e + g - Delta                       mean Delta
EF21                 g - h          h <- h + Delta, H <- H + mean Delta      H
EControl             eta e + g - h  e <- e + g - h - Delta, h, H as EF21     H
DGC                  v + m          m <- mu m + g, v <- v + m - Delta        mean Delta
===================  =============  =======================================  =============

Delta is what receivers decode, roundings included.
"""

from .._checks import check_number, check_whole, refuse
from ..ops._library import as_tensors
from .exchange import Exchange, State
from .hook import Hook


class Method:
    """What all methods share: see :class:`~largebatch.compression.EControl`."""

    name = "none"
    shifted = False  # the update is H, the mean of the shifts, and not the mean of what is sent

    def __init__(self, compressor, *, momentum=None, min_numel=4096):
        if not hasattr(compressor, "record") or isinstance(compressor, type):
            refuse(self, "compressor", compressor, "a compressor, as TopK(ratio=0.01)", TypeError)
        if momentum is not None:
            expected = "a number in (0, 1], the weight of a new gradient"
            check_number(self, "momentum", momentum, expected, lambda m: 0 < m <= 1)
        expected = "an integer of at least 0"
        check_whole(self, "min_numel", min_numel, expected, lambda n: n >= 0)
        self.compressor, self.momentum, self.min_numel = compressor, momentum, min_numel

    @property
    def settings(self):
        """The keyword arguments that it was made with."""
        return {"momentum": self.momentum, "min_numel": self.min_numel}

    def rule(self, numels):
        """Return the constants of the update, for the engine.

        `numels` are the sizes of what is compressed: tensors, or buckets of them.
        """
        return {"method": self.name, "beta": self.momentum}

    def roles(self):
        """Return which tensors of state there are for each parameter."""
        own = {"error": self.name in ("feedback", "econtrol", "dgc"), "shift": self.shifted}
        own |= {"momentum": self.momentum is not None or self.name == "dgc", "mean": self.shifted}
        return [role for role, there in own.items() if there]

    def init(self, tensors, *, rank=0, world=1):
        """Return the state of a rank, zero, for tensors like its gradients.

        `world`, the number of ranks, matters to the clipping of
        :class:`~largebatch.compression.DGC` only.

        Examples
        --------
        >>> state = EF21(TopK(k=1), min_numel=0).init([torch.zeros(3)])
        >>> state.shifts
        [tensor([0., 0., 0.])]
        """
        (tensors,) = as_tensors(f"{type(self).__name__}.init", tensors=list(tensors))
        return State(tensors, self.roles(), rank, world)

    def encode(self, state, grads, *, inv_scale=None, lr=None):
        """Take gradients into the state of a rank; return its payload, ``[bytes]`` uint8.

        Parameters
        ----------
        state : State
        grads : list of Tensors
            fp32, fp16, bf16 or fp64, one dtype, the sizes of the state's. Not changed.
        inv_scale : Tensor, optional
            ``[1]`` fp32: 1 over the scale of a loss scaler.
        lr : float, optional
            The learning rate of this step, for ``scale_residual_by_lr_ratio``.

        The same bits on every run and backend. A gradient that is not finite is left out, and
        counted in the payload: no state becomes infinite or NaN.
        """
        (grads,) = as_tensors(f"{type(self).__name__}.encode", grads=grads)
        if len(grads) != state.count:
            refuse(self, "grads", len(grads), f"{state.count} tensors, as many as the state has")
        exchange = self._exchange(state, grads)
        state.lr = self.adapt_to_rate(state.errors, state.lr, lr)
        factor = self.factor(grads, inv_scale, state.world)
        payload = exchange.encode(grads, factor)
        state.step += 1
        return payload

    def decode(self, state, payloads, *, scale=None, skip=False):
        """Take what was sent out of the state; return the update, a list of tensors like the grads.

        Parameters
        ----------
        state : State
            Of the rank whose last payload is ``payloads[state.rank]``.
        payloads : Tensor ``[W, bytes]`` uint8, or a list of W payloads
            Of all ranks, in their order.
        scale : Tensor, optional
            ``[1]`` fp32 that the update is multiplied by.
        skip : bool
            If a rank has left out a gradient, nothing counts as sent, and the update has a NaN: a
            loss scaler then skips the step.

        The update is the same on every rank, bit for bit.
        """
        if state.exchange is None:
            raise ValueError(f"{type(self).__name__}.decode: state has no payload, encode first.")
        return state.exchange.decode(payloads, scale, skip)

    def hook(self, model, **options):
        """Return a communication hook for ``ddp.register_comm_hook(None, hook)``.

        `options` are those of :class:`~largebatch.compression.Hook`.

        Examples
        --------
        >>> ddp = DistributedDataParallel(model)
        >>> ddp.register_comm_hook(None, EControl(TopK(ratio=0.01)).hook(model))
        """
        return Hook(self, model, **options)

    def _exchange(self, state, grads):
        if state.exchange is None or not state.exchange.fits(self, grads):
            state.exchange = Exchange(self, state, grads)
        return state.exchange

    # ---- What some methods do before gradients are taken in --------------------------------------

    def adapt_to_rate(self, errors, before, lr):
        """Return the learning rate that residuals are for: they may be scaled here."""
        return lr

    def factor(self, grads, inv_scale, world, share=1.0):
        """Return what gradients are to be multiplied by, ``[1]`` fp32, or None.

        `share` is the part that these gradients are of all there are.
        """
        return inv_scale

    def begin(self, momentum, grad):
        """Set the momentum after the last dense step, whose gradient was `grad`."""
        momentum.copy_(grad)

    def __repr__(self):  # noqa: D105
        options = [f"{name}={value!r}" for name, value in self.settings.items()]
        return f"{type(self).__name__}({', '.join([repr(self.compressor), *options])})"
