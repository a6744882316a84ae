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
        for (param, _), total in zip(rows, sums, strict=True):
            if param not in self.buffers:
                self.buffers[param] = torch.mul(total, sign)
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
    """Halves from data-parallel workers: the lower and the upper half of the ranks."""

    def __init__(self, process_group):
        self.group = dist.group.WORLD if process_group is None else process_group
        self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        if self.size % 2:
            raise ValueError(
                f"AGVM: process_group has {self.size} worker{'s' if self.size > 1 else ''}, "
                "expected an even number: the halves of a batch are those of the workers. Leave "
                "the hook out and call micro_batch() after each of two or more backward passes."
            )
        ranks = dist.get_process_group_ranks(self.group)
        half = self.size // 2
        self.half = self.pair = self.group
        if half > 1:
            own = ranks[:half] if self.rank < half else ranks[half:]
            self.half = dist.new_group(own, use_local_synchronization=True)
            pair = [ranks[self.rank % half], ranks[self.rank % half + half]]
            self.pair = dist.new_group(pair, use_local_synchronization=True)
        self.buckets = {}  # index -> its dots, on the first rank of the group

    def reduce(self, bucket, owner_of, measure):
        """Average a bucket of gradients over the group, and measure its halves on the way."""
        total = bucket.buffer()
        total.div_(self.size)
        if self.size > 2:
            dist.all_reduce(total, group=self.half)
        half = total.clone()
        dist.all_reduce(total, group=self.pair)
        rows = []
        if self.rank == 0:  # whose numbers all will use: other ranks would round differently
            for param, y in zip(bucket.parameters(), bucket.gradients(), strict=True):
                if param in owner_of:
                    at = half.storage_offset() + y.storage_offset() - total.storage_offset()
                    x = half.as_strided(y.shape, y.stride(), at)
                    rows.append((param, owner_of[param], x, y))
        # The half was divided by all workers, of which it has one in two.
        self.buckets[bucket.index()] = measure.dots(rows, ((2.0, 0.0), (-2.0, 2.0)))
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
