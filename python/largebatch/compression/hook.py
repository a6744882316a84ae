# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Compression as the communication hook of DistributedDataParallel."""

import torch
import torch.distributed as dist

from .. import _comm
from .._checks import check_choice, check_whole, refuse
from . import _payloads
from ._round import Round
from ._state import HookState
from .exchange import real_of
from .quantizer import Quantize
from .regions import Regions

POLICIES = ("skip", "drop", "raise")


class Hook(HookState):
    """One collective a bucket in the place of DDP's all-reduce: an all-gather of payloads.

    Made by ``method.hook(model, ...)``, for ``ddp.register_comm_hook(None, hook)``. State is kept
    by parameter, so that buckets may change; ``no_sync`` and gradients that are views of buckets
    work as they do without it. Gradients of ``sparse=True`` embeddings, which DDP has in buckets of
    their own, are summed as they are.

    Parameters
    ----------
    method : Method
    model : Module
        The one inside DistributedDataParallel, or that: it gives parameters their names.
    process_group : ProcessGroup, optional
        That of DistributedDataParallel.
    start_step : int
        Steps that are dense, at least 1: buckets change after the first one, and the last one gives
        h, H and the momentum without further communication. If it has a gradient that is not
        finite, the next one is the last.
    nonfinite : {"skip", "drop", "raise"}
        What a gradient does that is not finite, on any rank. skip: nothing is sent, and the update
        has a NaN, by which a loss scaler skips the step everywhere. drop: the element is left out.
        raise: so, and FloatingPointError on every rank; waits for the device.
    loss_scale : GradScaler or callable, optional
        What gradients are multiplied by when they come: state is in units without it.
    lr : callable, optional
        Returns the learning rate of the step, for ``ErrorFeedback(scale_residual_by_lr_ratio)``.
    freeze_unused : bool
        A parameter that no gradient comes to on this rank sends nothing, and keeps its state; with
        ``find_unused_parameters=True``. Else its residual goes on being sent, and is lost where no
        rank has used it, as DDP leaves such gradients alone.
    checksum : bool
        Payloads have a CRC-32 of each record, which all receivers look at; waits for the device.
    exchange : {"all_gather", "regions"}
        regions: each rank adds up a part of the elements and passes on the largest sums, which
        pays with many ranks; see :mod:`~largebatch.compression.regions`. The backward pass waits.

    Attributes
    ----------
    nonfinite : Tensor
        ``[W]`` int64: gradients that each rank left out in the last step.
    step : int

    Raises
    ------
    ValueError, TypeError
        One line. In the first step, on every rank: for ranks with different methods, options or
        parameters. A hook is for one model.
    RuntimeError
        With `checksum`: for a payload that has changed on its way, naming rank and parameter.

    Notes
    -----
    The update is the same on every rank, bit for bit. On CUDA nothing waits for the device, unless
    said above, but in the first steps. With "skip" and several buckets, what other buckets have
    sent goes back to their residuals (but not the momentum that DGC masked).
    """

    def __init__(
        self,
        method,
        model,
        *,
        process_group=None,
        start_step=2,
        nonfinite="skip",
        loss_scale=None,
        lr=None,
        freeze_unused=False,
        checksum=False,
        exchange="all_gather",
    ):
        check_choice("hook", "nonfinite", nonfinite, POLICIES)
        expected = "an integer of at least 1: dense steps come first"
        check_whole("hook", "start_step", start_step, expected, lambda s: s >= 1)
        check_choice("hook", "exchange", exchange, ("all_gather", "regions"))
        for name, value in (("loss_scale", loss_scale), ("lr", lr)):
            if not (value is None or callable(value) or hasattr(value, "get_scale")):
                refuse("hook", name, value, "a function without arguments", TypeError)
        if getattr(method, "scale_residual_by_lr_ratio", False) and lr is None:
            refuse("hook", "lr", None, "a function that returns the learning rate", TypeError)
        if exchange == "regions":
            Regions.check(method, checksum)
        values = getattr(method.compressor, "values", None)
        together = method.compressor.scope == "bucket"
        if freeze_unused and together and isinstance(values, Quantize) and values.bits == 2:
            expected = (
                'values of more bits, or scope="tensor", with freeze_unused: 2 bits have no 0'
            )
            refuse("hook", "compressor", method.compressor, expected)
        super().__init__(method, model, process_group)
        self.__name__ = self.__qualname__ = "largebatch_compression"  # DDP asks for both
        self.start_step, self.policy, self.checksum = start_step, nonfinite, bool(checksum)
        self.exchange, self.nonfinite = exchange, torch.zeros(0, dtype=torch.int64)
        self._loss_scale, self._lr = loss_scale, lr
        self._agreed = self._round = self._last_round = None
        self._start_is_finite = []
        self._used = set() if freeze_unused else None
        for p in self.names if freeze_unused else ():
            p.register_hook(lambda grad, p=p: self._used.add(p))

    def __call__(self, state, bucket):
        """Average the gradients of a bucket over the ranks; called by DistributedDataParallel."""
        self._check_known(bucket)
        if self._round is None or bucket.index() == 0:
            self._begin(bucket)
        current = self._round
        current.launched(last=bucket.is_last())
        if bucket.buffer().is_sparse:
            future = self._add_sparse(bucket, current)
        elif not self.started:
            future = self._average(bucket, current)
        else:
            future = self._compress(bucket, current)
        if bucket.is_last():
            self.step, self._round = self.step + 1, None
        return future

    def _check_known(self, bucket):
        for p in bucket.parameters():
            if p not in self.names:
                raise ValueError(
                    f"hook: a parameter of shape {list(p.shape)} is not of the model that the hook "
                    "was made for, expected one model for each hook. Make another one."
                )

    def _begin(self, bucket):
        """Do what comes once a step, before the first bucket."""
        device = bucket.buffer().device
        if self._agreed != self.method.compressor:
            _comm.agree("hook", self.description(), self.group, device)
            self._agreed = self.method.compressor
        if not self.started and self.step >= self.start_step:
            self.started = all(bool(finite) for finite in self._start_is_finite)
        self._start_is_finite = []
        self._scale = self._inverse = None
        if self._loss_scale is not None:
            self._scale = self._current_scale(device)
            self._inverse = self._scale.double().reciprocal().float()
        if self.started and self._lr is not None:
            errors = [own["error"] for own in self.state.values() if "error" in own]
            self.lr = self.method.adapt_to_rate(errors, self.lr, self._lr())
        before, self._round = self._last_round, Round(self.step, self._finish)
        self._last_round = self._round
        if before is not None:
            before.wait()

    def _current_scale(self, device):
        scale = self._loss_scale
        if hasattr(scale, "get_scale"):  # a GradScaler; its tensor needs no wait for the device
            own = getattr(scale, "_scale", None)
            scale = own if isinstance(own, torch.Tensor) else scale.get_scale()
        else:
            scale = scale()
        if not isinstance(scale, torch.Tensor):
            scale = torch.full((1,), float(scale), device=device)
        return scale.detach().to(device, torch.float32).reshape(1)

    def _finish(self, current):
        """Do what comes once a step, when all buckets have been decoded."""
        counts = [count for _, _, count in current.buckets]
        if not counts:
            return
        total = torch.stack(counts).sum(dim=0)
        self.nonfinite = total
        residual = "error" in self.method.roles() and not self.method.shifted
        if self.policy == "skip" and residual and len(counts) > 1:
            for exchange, payload, count in current.buckets:
                exchange.take_back(payload, (total > 0).any() & (count == 0).all())
        if self.policy == "raise" and bool(total.any()):
            raise FloatingPointError(
                f"hook: gradients are not finite, by rank: {total.tolist()}. Their elements were "
                "left out of the state."
            )

    # ---- Dense steps -----------------------------------------------------------------------------

    def _average(self, bucket, current):
        """All-reduce; the last time, the state takes the gradients of this rank and their mean."""
        buffer, roles = bucket.buffer(), set(self.method.roles()) - {"error"}
        begins = self.step >= self.start_step - 1 and bool(roles)
        total = buffer
        if begins:
            own = [g.clone() for g in bucket.gradients()]
            total = buffer.to(real_of(buffer.dtype))  # H is the mean of h, but for its rounding
        total.div_(dist.get_world_size(self.group))
        future = dist.all_reduce(total, group=self.group, async_op=True).get_future()
        parameters, inverse = bucket.parameters(), self._inverse

        def begin(_):
            if begins:
                _payloads.crossing([*own, total])
                self._start(parameters, own, total, inverse)
                if total is not buffer:
                    buffer.copy_(total)
            return buffer

        return current.follow(future, begin, buffer.device)

    @torch.no_grad()
    def _start(self, parameters, grads, total, inverse):
        self._start_is_finite.append(torch.isfinite(total).all())
        means = total.split([g.numel() for g in grads])
        unscale = 1.0 if inverse is None else inverse
        for p, g, mean in zip(parameters, grads, means, strict=True):
            own = self._of(p)
            if "shift" in own:
                own["shift"].copy_(g).mul_(unscale)
                own["mean"].copy_(mean.view(g.shape)).mul_(unscale)
            if "momentum" in own:
                self.method.begin(own["momentum"], g * unscale)

    def _add_sparse(self, bucket, current):
        buffer = bucket.buffer().div_(dist.get_world_size(self.group))
        future = dist.all_reduce(buffer, group=self.group, async_op=True).get_future()
        return current.follow(future, lambda value: value[0], buffer.device)

    # ---- Compressed steps ------------------------------------------------------------------------

    def _compress(self, bucket, current):
        grads, parameters = bucket.gradients(), bucket.parameters()
        world, buffer = dist.get_world_size(self.group), bucket.buffer()
        exchange = self._exchange(tuple(parameters), grads)
        share = buffer.numel() / self.numel
        factor = self.method.factor(grads, self._inverse, world, share)
        frozen = self._take_unused(parameters)
        exchange.state.step = self.step
        payload = exchange.encode(grads, factor, scratch=True, frozen=frozen)
        scale, skip = self._scale, self.policy == "skip"
        if self.exchange == "regions":
            regions = self._regions_of(exchange)
            counts = regions.run(payload, scale, skip, grads)
            current.decoded(regions, payload, counts)
            current.completed(buffer.device)
            return _payloads.done(buffer)
        if self.checksum:
            _payloads.seal(exchange.plan, payload)
        payloads = payload.new_empty(world * len(payload))
        work = _comm.all_gather(payloads, payload, group=self.group, async_op=True)
        names = self._names_of(exchange, parameters)

        def decode(_):
            _payloads.crossing([payloads, *exchange.keys])
            received = payloads.view(world, -1)
            if self.checksum:
                _payloads.check_seals(exchange.plan, received, names)
            exchange.decode(received, scale, skip, outs=grads)
            current.decoded(exchange, payload, exchange.nonfinite)
            return buffer

        return current.follow(work.get_future(), decode, buffer.device)

    def _regions_of(self, exchange):
        if exchange.regions is None:
            exchange.regions = Regions(exchange, self.group)
        return exchange.regions

    def _take_unused(self, parameters):
        """Return the positions of those that no gradient has come to, and begin to look anew."""
        if self._used is None:
            return ()
        unused = [t for t, p in enumerate(parameters) if p not in self._used]
        self._used.difference_update(parameters)
        return unused
