# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What one rank of eight copies around its exchanges: q, k and v of 16k tokens in bf16.

Bytes per element: 2 read and 2 written. The baselines are the chains of permutations and copies
that other libraries do around their collectives, written in torch, with memory of their own that
they write again and again; "new memory" is given by the system each time, as it is to a program
that calls them: on a CPU its pages are cleared first.

chunks (verl): a contiguous chunk for each rank, concatenated again by the receiver.
permutation (Transformer Engine): ranks outermost, and back to their place by the receiver.

What largebatch receives is in place as it comes. The percentage of a copy can be above 100: beyond
the caches it writes past them, which torch's copy does not.
"""

from functools import partial

import pytest
import torch
from entries import floor, ours, peer

import largebatch
from largebatch import ops

RANKS = 8
COUNTS = [4, 1, 1] * RANKS


def _bf16(tensors):
    return [t.to(torch.bfloat16) for t in tensors]


def _by_tokens(tensors):
    return [t.transpose(0, 1) for t in _bf16(tensors)]


def _pack(tensors):
    given = _by_tokens(tensors)
    messages = [given[0].new_empty(sum(t.numel() for t in given))]
    return lambda: largebatch._C.ulysses_pack(given, messages, COUNTS, [1, 1, 1])


def _pack_new(tensors):
    given = _by_tokens(tensors)
    return lambda: torch.ops.largebatch.ulysses_pack(given, 1, COUNTS, [1, 1, 1])


def _copy(tensors):
    source = torch.cat([t.flatten() for t in _bf16(tensors)])
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _copy_new(tensors):
    source = torch.cat([t.flatten() for t in _bf16(tensors)])
    return source.clone


def _chunks(tensors):
    given = _bf16(tensors)
    sent = [[c.contiguous() for c in x.tensor_split(RANKS, 2)] for x in given]
    received = [torch.cat(chunks, 1) for chunks in sent]

    def chain():
        for x, chunks, all_ in zip(given, sent, received, strict=True):
            for chunk, part in zip(chunks, x.tensor_split(RANKS, 2), strict=True):
                chunk.copy_(part)
            torch.cat(chunks, 1, out=all_)

    return chain


def _permuted(x):
    return x.unflatten(2, (RANKS, -1)).permute(2, 0, 1, 3, 4)


def _permutation(tensors):
    given = _bf16(tensors)
    sent = [_permuted(x).contiguous() for x in given]
    received = [x.transpose(0, 1).contiguous() for x in sent]

    def chain():
        for x, ranks, all_ in zip(given, sent, received, strict=True):
            ranks.copy_(_permuted(x))
            all_.copy_(ranks.transpose(0, 1))

    return chain


def _permutation_new(tensors):
    given = _bf16(tensors)
    return lambda: [_permuted(x).contiguous().transpose(0, 1).contiguous() for x in given]


TO_HEADS = {
    "largebatch": ours(_pack, 4),
    "torch, chunks": peer(_chunks),
    "torch, permutation": peer(_permutation),
    "torch, a copy": floor(_copy, 4),
}
TO_HEADS_NEW = {
    "largebatch": ours(_pack_new, 4),
    "torch, permutation": peer(_permutation_new),
    "torch, a copy": floor(_copy_new, 4),
}


@pytest.mark.parametrize("implementation", TO_HEADS)
def bench_seq_to_heads(bench_op, heads, implementation):
    bench_op("q, k, v to heads", heads, TO_HEADS, implementation, "bfloat16")


@pytest.mark.parametrize("implementation", TO_HEADS_NEW)
def bench_seq_to_heads_new(bench_op, heads, implementation):
    bench_op("q, k, v to heads, new memory", heads, TO_HEADS_NEW, implementation, "bfloat16")


def _unpack(replicas, tensors):
    """Gradients of q, k and v, each kv head on `replicas` ranks."""
    given = _by_tokens(tensors)
    given[1:] = [x[:, :, : 8 // replicas] for x in given[1:]]
    messages = ops.ulysses_pack(given, [[[4, 1, 1]] * RANKS], [1, replicas, replicas])
    outs = [torch.empty_like(x) for x in given]
    return lambda: largebatch._C.ulysses_unpack(messages, outs, COUNTS, [1, replicas, replicas])


def _added(tensors):
    """The same with four copies of each kv head, in torch: once it is permuted."""
    given = [_permuted(x).contiguous() for x in _bf16(tensors)]

    def chain():
        q, *kv = (x.permute(1, 2, 0, 3, 4).contiguous() for x in given)
        return q, *(x.unflatten(2, (2, 4)).float().sum(3).to(x.dtype) for x in kv)

    return chain


TO_TOKENS = {"largebatch": ours(partial(_unpack, 1), 4)}
ADDED = {"largebatch": ours(partial(_unpack, 4)), "torch": peer(_added)}


@pytest.mark.parametrize("implementation", TO_TOKENS)
def bench_heads_to_seq(bench_op, heads, implementation):
    bench_op("gradients to tokens", heads, TO_TOKENS, implementation, "bfloat16")


@pytest.mark.parametrize("implementation", ADDED)
def bench_added(bench_op, heads, implementation):
    bench_op("gradients, 4 copies added", heads, ADDED, implementation, "bfloat16")
