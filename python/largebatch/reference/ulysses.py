# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Ulysses sequence parallelism: which rank has which heads, what is sent, and attention itself.

Jacobs et al. 2023, "DeepSpeed Ulysses: System Optimizations for Enabling Training of Extreme Long
Sequence Transformer Models", arXiv 2309.14509, section 3.1. Tokens of a sequence are shared out
among P ranks everywhere but in attention, where heads are. One all-to-all exchanges tokens for
heads before it, another one goes back after it.

**Heads.** :math:`H_q` query heads, :math:`H_{kv}` kv heads, :math:`g = H_q / H_{kv}`. Rank p
attends with :math:`n_p` q heads from :math:`o_p` on, in groups of c that share a kv head on every
rank:

.. math::
    n_p &= \begin{cases}
        g\, (\lfloor H_{kv} / P \rfloor + [p < H_{kv} \bmod P])
            & H_{kv} \ge P \text{ and } P \nmid H_q \\
        \lfloor H_q / P \rfloor + [p < H_q \bmod P] & \text{else}
    \end{cases} \\
    c &= \gcd(g, n_0, n_1, \dots, o_0, o_1, \dots)

Its kv heads are :math:`\lfloor (o_p + j c) / g \rfloor` for j = 0, 1, ... :math:`n_p / c - 1`: a kv
head is sent to g / c places.

**Wire.** A message has one block for each rank, end to end, and a block is

.. math:: [\text{tokens}][\text{batch}][\text{heads of tensor 0} | \text{of tensor 1} | \dots]

with the dim elements of a head next to each other. Blocks that several ranks send to one are, end
to end, ``[all tokens, batch, ...]``, however many tokens each has.

Going back, copies of a head are added up in ascending order, the first one taken as it is, in
float32 (float64 for float64), and the sum is rounded once. A single copy keeps all bits.
"""

from math import gcd
from typing import NamedTuple

import torch


class HeadPlan(NamedTuple):
    """Who attends with which heads; see :func:`head_plan`."""

    q: list  # n_p, q heads of each rank
    first_q: list  # o_p, the first of them
    group: int  # c, q heads of a rank that share a kv head
    kv: list  # kv heads of each rank
    sources: list  # of each rank: the kv head of the whole model in each place


def head_plan(ranks, q_heads, kv_heads):
    """Return who attends with which heads; the equations stand at the top of this file.

    Parameters
    ----------
    ranks, q_heads, kv_heads : int
        q_heads is a multiple of kv_heads.

    Examples
    --------
    >>> head_plan(2, 9, 3)
    HeadPlan(q=[6, 3], first_q=[0, 6], group=3, kv=[2, 1], sources=[[0, 1], [2]])
    >>> head_plan(4, 4, 1).sources
    [[0], [0], [0], [0]]
    """
    g = q_heads // kv_heads
    if kv_heads >= ranks and q_heads % ranks != 0:
        q = [g * (kv_heads // ranks + (p < kv_heads % ranks)) for p in range(ranks)]
    else:
        q = [q_heads // ranks + (p < q_heads % ranks) for p in range(ranks)]
    first_q = [sum(q[:p]) for p in range(ranks)]
    c = gcd(g, *q, *first_q)
    kv = [n // c for n in q]
    sources = [[(first_q[p] + j * c) // g for j in range(kv[p])] for p in range(ranks)]
    return HeadPlan(q, first_q, c, kv, sources)


def pack(tensors, counts, replicas):
    """Return messages, as :func:`largebatch.ops.ulysses_pack` does.

    Parameters
    ----------
    tensors : list of Tensor
        ``[tokens, batch, heads, dim]``, the same tokens and batch.
    counts : list
        ``[messages][ranks][tensors]`` ints: heads in each block.
    replicas : list of int
        Copies of each head of each tensor.

    Examples
    --------
    >>> q, kv = torch.arange(4.0).view(1, 1, 4, 1), torch.tensor([[[[7.0]]]])
    >>> pack([q, kv], [[[2, 1], [2, 1]]], [1, 2])
    [tensor([0., 1., 7., 2., 3., 7.])]
    """
    messages = []
    for message in _deal(counts):
        blocks = []
        for copies_of in message:
            heads = [[m // replicas[i] for m in copies] for i, copies in enumerate(copies_of)]
            parts = [x[:, :, h].flatten(2) for x, h in zip(tensors, heads, strict=True)]
            blocks.append(torch.cat(parts, dim=2).flatten())
        messages.append(torch.cat(blocks))
    return messages


def unpack(messages, tokens, batch, head_dims, counts, replicas):
    """Return tensors, as :func:`largebatch.ops.ulysses_unpack` does.

    Parameters
    ----------
    messages : list of Tensor
        Flat. With copies to add up, of a floating dtype.
    tokens, batch : int
    head_dims : list of int
        The last dimension of each tensor.
    counts, replicas
        As of :func:`pack`.

    Examples
    --------
    >>> wire = torch.tensor([0.0, 1.0, 7.0, 2.0, 3.0, 7.0])
    >>> q, kv = unpack([wire], 1, 1, [1, 1], [[[2, 1], [2, 1]]], [1, 2])
    >>> q.flatten(), kv.flatten()
    (tensor([0., 1., 2., 3.]), tensor([14.]))
    """
    found = [{} for _ in head_dims]  # of each tensor: number of a copy -> [tokens, batch, dim]
    for wire, message in zip(messages, _deal(counts), strict=True):
        sizes = [_width(copies_of, head_dims) * tokens * batch for copies_of in message]
        for block, copies_of in zip(wire.split(sizes), message, strict=True):
            block = block.view(tokens, batch, _width(copies_of, head_dims))
            at = 0
            for i, copies in enumerate(copies_of):
                for m in copies:
                    found[i][m] = block[:, :, at : at + head_dims[i]]
                    at += head_dims[i]
    tensors = []
    for copies, dim, n in zip(found, head_dims, replicas, strict=True):
        heads = [_sum([copies[h * n + r] for r in range(n)]) for h in range(len(copies) // n)]
        none = messages[0].new_empty(tokens, batch, 0, dim)
        tensors.append(torch.stack(heads, dim=2) if heads else none)
    return tensors


def attention(q, k, v, causal=False):
    r"""Return :math:`\text{softmax}(q k^\top / \sqrt{D})\, v` of each head, in the dtype of q.

    Parameters
    ----------
    q : Tensor
        ``[batch, tokens, q heads, D]``
    k, v : Tensor
        ``[batch, tokens, kv heads, D or Dv]``; q head h attends with kv head h // g.
    causal : bool
        Whether a token sees itself and those before it only.

    Returns
    -------
    Tensor
        ``[batch, tokens, q heads, Dv]``

    Examples
    --------
    >>> q, k = torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 1, 4)
    >>> attention(q, k, torch.tensor([[[[1.0]], [[3.0]]]]), causal=True)[0, :, :, 0]
    tensor([[1., 1.],
            [2., 2.]])
    """
    g = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(g, dim=2), v.repeat_interleave(g, dim=2)
    scores = torch.einsum("bshd,bthd->bhst", q, k) / q.shape[3] ** 0.5
    if causal:
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return torch.einsum("bhst,bthd->bshd", scores.softmax(dim=3), v)


def _deal(counts):
    """Return the numbers of the copies in each block, ``[messages][ranks][tensors]`` ranges.

    Copies are dealt to rank 0, 1, ... in order, and those of a rank to message 0, 1, ...
    """
    tensors = len(counts[0][0])
    dealt, given = [[[] for _ in message] for message in counts], [0] * tensors
    for p in range(len(counts[0])):
        for k in range(len(counts)):
            for i in range(tensors):
                dealt[k][p].append(range(given[i], given[i] + counts[k][p][i]))
                given[i] += counts[k][p][i]
    return dealt


def _width(copies_of, head_dims):
    return sum(len(copies) * dim for copies, dim in zip(copies_of, head_dims, strict=True))


def _sum(copies):
    """Add copies up in order, in float32 or float64, and round once; one alone keeps its bits."""
    first, *others = copies
    if not others:
        return first
    total = first.to(torch.promote_types(first.dtype, torch.float32))
    for copy in others:
        total = total + copy
    return total.to(first.dtype)
