# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Where AGVM gets the two halves of a batch's gradient from: micro-batches, or workers."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from .. import ops, reference
from ._sharding import Shards, local


@dataclass
class Dots:
    """Dot products of the halves of some parameters, and the module each belongs to."""

    owners: list = field(default_factory=list)  # [T] modules
    parts: list = field(default_factory=list)  # [t, 3] each, T together, on any device
    shards: Shards = field(default_factory=Shards)

    def by_module(self, num_modules, device):
        """Return ``[num_modules, 3]``: each module's sums, complete on this rank."""
        empty = torch.zeros(0, 3, dtype=torch.float64, device=device)
        sums = self.shards.reduce(torch.cat([empty, *(part.to(device) for part in self.parts)]))
        order = sorted(range(len(self.owners)), key=self.owners.__getitem__)
        if order != list(range(len(order))):
            sums = sums[torch.tensor(order, device=device)]
        counts = [self.owners.count(module) for module in range(num_modules)]
        # Slices, not index_add: its order on a GPU is not fixed.
        return torch.stack([rows.sum(dim=0) for rows in sums.split(counts)])


@dataclass
class Measure:
    """How halves are compared: as they are, or as an optimizer of Adam's kind would scale them."""

    moments: object = None  # param -> (exp_avg_sq or None, beta2, eps); None: as they are
    grad_scale: float | torch.Tensor | None = None  # with moments only; else it cancels
    fused: bool | None = None

    def dots(self, dots, trained, combine):
        """Add to `dots` those of a list of (param, module, x, y), the rest as in `half_dots`."""
        batches = {}  # what one call can do
        for param, owner, x, y in trained:
            square, beta2, eps = (None, 0.0, 0.0) if self.moments is None else self.moments(param)
            if square is None and self.moments is not None:
                continue  # the optimizer has not seen a gradient of it yet
            batch = batches.setdefault((y.device, beta2, eps), ([], [], [], []))
            square = None if square is None else local(square)
            x, y, square = (None if t is None else _as_real(t) for t in (x, y, square))
            like = x if square is None else square
            batch[0].append((param, owner))
            batch[1].append(_laid_out(x, like))
            batch[2].append(_laid_out(y, like))
            batch[3].append(square)
        for (device, beta2, eps), (owned, x, y, square) in batches.items():
            for param, owner in owned:
                dots.shards.add(len(dots.owners), param, param)  # for its placements only
                dots.owners.append(owner)
            dots.parts.append(self._half_dots(device, x, y, combine, square, beta2, eps))

    def _half_dots(self, device, x, y, combine, square, beta2, eps):
        function = reference.agvm.half_dots if self.fused is False else ops.half_dots
        if self.moments is None:
            return function(x, y, combine)
        scale = self.grad_scale
        if scale is not None:
            scale = torch.as_tensor(scale, dtype=torch.float32).to(device)
        return function(x, y, combine, exp_avg_sq=square, beta2=beta2, eps=eps, grad_scale=scale)


class MicroBatches:
    r"""Halves from gradient accumulation: the odd and the even micro-batches.

    After the k-th backward pass ``p.grad`` is the sum :math:`s_k` of the gradients so far. Of
    :math:`x = \sum_k (-1)^k s_k` the n-th step has left what its last terms do not cancel: for n
    even the sum of the even gradients, for n odd minus the sum of the odd ones. So one buffer
    beside the gradients holds both halves.
    """

    def __init__(self):
        self.buffers = {}  # param -> x
        self.dots = None

    def add(self, count, trained, measure):
        """Take the gradients after micro-batch `count`; measure, as it may be the last."""
        params, owners = [], []
        for param, owner in trained:
            if param.grad is not None:
                params.append(param)
                owners.append(owner)
        sums = [_dense_grad(param) for param in params]
        sign = 1 if count % 2 == 0 else -1
        fresh = [i for i, param in enumerate(params) if param not in self.buffers]
        known = [i for i, param in enumerate(params) if param in self.buffers]
        if known:
            buffers = [self.buffers[params[i]] for i in known]
            torch._foreach_add_(buffers, [sums[i] for i in known], alpha=sign)
        for i in fresh:
            self.buffers[params[i]] = torch.mul(sums[i], sign)
        if count < 2:
            return
        # Each half as a mean, times what a user divides by to make s_n one: for equal micro-batches
        # n / (how many there are in it), whatever the scale of the loss.
        odd, even = count / ((count + 1) // 2), count / (count // 2)
        combine = ((-odd, odd), (even, 0.0)) if count % 2 == 0 else ((-odd, 0.0), (even, even))
        self.dots = Dots()
        rows = zip(params, owners, (self.buffers[p] for p in params), sums, strict=True)
        measure.dots(self.dots, rows, combine)


class WorkerHalves:
    """Halves from data-parallel workers: the lower and the upper half of the ranks."""

    def __init__(self, process_group):
        self.group = dist.group.WORLD if process_group is None else process_group
        self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        if self.size % 2:
            raise ValueError(
                f"AGVM: process_group has {self.size} worker{'s' if self.size > 1 else ''}, "
                "expected an even number of them: the halves of a batch are those of the workers. "
                "Leave the hook out and call micro_batch() after each backward pass."
            )
        ranks = dist.get_process_group_ranks(self.group)
        half = self.size // 2
        below = self.rank < half
        self.half = self.pair = self.group
        if half > 1:
            own = ranks[:half] if below else ranks[half:]
            self.half = dist.new_group(own, use_local_synchronization=True)
            pair = [ranks[self.rank % half], ranks[self.rank % half + half]]
            self.pair = dist.new_group(pair, use_local_synchronization=True)
        self.buckets = {}  # index -> its dots; filled on the first rank of the group

    def reduce(self, bucket, owner_of, measure):
        """Average a bucket of gradients over the group, and measure its halves on the way."""
        total = bucket.buffer()
        total.div_(self.size)
        if self.size > 2:
            dist.all_reduce(total, group=self.half)
        half = total.clone()
        dist.all_reduce(total, group=self.pair)
        dots = self.buckets[bucket.index()] = Dots()
        if self.rank == 0:  # whose numbers all will use
            rows = []
            for param, y in zip(bucket.parameters(), bucket.gradients(), strict=True):
                if param in owner_of:
                    at = half.storage_offset() + y.storage_offset() - total.storage_offset()
                    x = half.as_strided(y.shape, y.stride(), at)
                    rows.append((param, owner_of[param], x, y))
            measure.dots(dots, rows, ((2.0, 0.0), (-2.0, 2.0)))
        done = torch.futures.Future()
        done.set_result(total)
        return done

    def by_module(self, num_modules, device):
        """Return ``[num_modules, 3]``, the same bits on every rank."""
        dots = Dots()
        for index in sorted(self.buckets):
            dots.owners += self.buckets[index].owners
            dots.parts += self.buckets[index].parts
        sums = dots.by_module(num_modules, device)
        dist.broadcast(sums, dist.get_global_rank(self.group, 0), group=self.group)
        return sums


def _dense_grad(param):
    """Return what this rank holds of a parameter's gradient, laid out like the parameter."""
    if param.grad.is_sparse:
        raise RuntimeError("AGVM does not support sparse gradients")
    return Shards().add(0, param, param.grad)[1]


def _as_real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _laid_out(tensor, like):
    """Return the tensor with the strides of another, copied only if they differ."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
