# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Where AGVM gets the two halves of a batch's gradient from: micro-batches, or workers."""

import torch
import torch.distributed as dist

from ._dots import Dots
from ._sharding import Shards


class MicroBatches:
    r"""Halves from gradient accumulation: the odd and the even micro-batches.

    After the k-th backward pass ``p.grad`` is the sum :math:`s_k` of the gradients so far. What is
    left of :math:`x = \sum_k (-1)^k s_k` after n of them is, for n even, the sum of the even
    gradients, and for n odd minus the sum of the odd ones. So one buffer beside the gradients holds
    both halves, and nobody has to keep :math:`s_{k-1}` to know a single gradient.
    """

    def __init__(self):
        self.buffers = {}  # param -> x
        self.dots = None

    def add(self, count, owned, measure):
        """Take the gradients after micro-batch `count`; measure, as it may be the last."""
        rows = [(param, owner) for param, owner in owned if param.grad is not None]
        sums = [_dense_grad(param) for param, _ in rows]
        sign = 1 if count % 2 == 0 else -1
        known = [i for i, (param, _) in enumerate(rows) if param in self.buffers]
        if known:
            buffers = [self.buffers[rows[i][0]] for i in known]
            torch._foreach_add_(buffers, [sums[i] for i in known], alpha=sign)
        fresh = [i for i, (param, _) in enumerate(rows) if param not in self.buffers]
        if fresh:
            halves = torch._foreach_mul([sums[i] for i in fresh], sign)
            self.buffers.update(zip((rows[i][0] for i in fresh), halves, strict=True))
        if count < 2:
            return
        # Each half as a mean, times what a user divides by to make s_n one: for equal micro-batches
        # n / (how many there are in it), whatever the scale of the loss.
        odd, even = count / ((count + 1) // 2), count / (count // 2)
        combine = ((-odd, odd), (even, 0.0)) if count % 2 == 0 else ((-odd, 0.0), (even, even))
        self.dots = measure.dots(
            [(p, owner, self.buffers[p], y) for (p, owner), y in zip(rows, sums, strict=True)],
            combine,
        )

    def by_module(self, num_modules, device):
        """Return ``[num_modules, 3]``: the sums of the last measurement."""
        return self.dots.by_module(num_modules, device)


class WorkerHalves:
    """Halves from data-parallel workers: the lower and the upper half of the ranks.

    Each bucket is reduced twice when measuring, once with zeros from the upper half. A reduction in
    two hops, within the halves and across, would send a quarter less; but it needs process groups
    of its own, which all processes of a job would have to make in the same order, and it rounds
    differently: here the average has the bits that it has in every other step.
    """

    def __init__(self, process_group):
        self.group = dist.group.WORLD if process_group is None else process_group
        self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        if self.size < 2:
            raise ValueError(
                "AGVM: process_group has 1 worker, expected 2 or more: the halves of a batch are "
                "those of the workers. Leave the hook out and call micro_batch() after each of "
                "several backward passes."
            )
        self.buckets = {}  # index -> its dots

    def average(self, bucket):
        """Average a bucket of gradients over the group, as DDP does by itself."""
        total = bucket.buffer().div_(self.size)
        work = dist.all_reduce(total, group=self.group, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    def reduce(self, bucket, owner_of, measure):
        """Average a bucket of gradients over the group, and measure its halves on the way."""
        total = bucket.buffer().div_(self.size)
        lower = self.size // 2
        half = total.clone() if self.rank < lower else torch.zeros_like(total)
        dist.all_reduce(half, group=self.group)
        dist.all_reduce(total, group=self.group)
        rows = []
        for param, y in zip(bucket.parameters(), bucket.gradients(), strict=True):
            at = half.storage_offset() + y.storage_offset() - total.storage_offset()
            rows.append((param, owner_of.get(param), half.as_strided(y.shape, y.stride(), at), y))
        a, b = self.size / lower, self.size / (self.size - lower)  # of sums over all: the means
        self.buckets[bucket.index()] = measure.dots(
            [row for row in rows if row[1] is not None], ((a, 0.0), (-b, b))
        )
        done = torch.futures.Future()
        done.set_result(total)
        return done

    def by_module(self, num_modules, device):
        """Return ``[num_modules, 3]``, the same bits on every rank: they measure the same."""
        dots = Dots()
        for index in sorted(self.buckets):
            dots.owners += self.buckets[index].owners
            dots.parts += self.buckets[index].parts
        return dots.by_module(num_modules, device)


def _dense_grad(param):
    """Return what this rank holds of a parameter's gradient, laid out like the parameter."""
    if param.grad.is_sparse:
        raise RuntimeError("AGVM does not support sparse gradients")
    return Shards().add(0, param, param.grad)[1]
