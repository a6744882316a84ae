# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of the processes that attend with all kinds of heads and lengths; see test_grid.py."""

import sys

import torch

from largebatch.reference import ulysses as reference
from largebatch.sequence import UlyssesAttention, UlyssesPlan, heads_to_seq, qkv_to_heads
from tests.sequence import setting


def largest(x):
    return x.abs().max().item() if x.numel() else 0.0


def exchanged(case, plan, rank, world):
    """Return whether each element is where it belongs after either exchange."""
    heads, batch, kind, layout, dim, v_dim = case
    lengths = setting.lengths_of(kind, world)
    *whole, _ = setting.tensors(heads, batch, sum(lengths), dim, v_dim)
    own = [setting.mine(x, lengths, rank) for x in whole]
    layout_ = "bshd" if layout == "fused" else layout
    _, given = setting.leaves(*own, layout)
    got = qkv_to_heads(*given, plan, layout_)
    kv = plan.kv_indices
    expected = [whole[0][:, :, plan.q_slice], whole[1][:, :, kv], whole[2][:, :, kv]]
    equal = [
        torch.equal(setting.to_bshd(x, layout_), y) for x, y in zip(got, expected, strict=True)
    ]
    back = setting.to_bshd(heads_to_seq(got[0], plan, layout_), layout_)
    return all(equal) and torch.equal(back, own[0])


def attended(case, plan, rank, world):
    """Return the largest difference from one process: of o and of the gradients of q, k and v."""
    heads, batch, kind, layout, dim, v_dim = case
    lengths = setting.lengths_of(kind, world)
    *whole, grad = setting.tensors(heads, batch, sum(lengths), dim, v_dim)
    inputs = [x.clone().requires_grad_() for x in whole]
    expected = reference.attention(*inputs, causal=True)
    expected.backward(grad)

    layout_ = "bshd" if layout == "fused" else layout
    attend = UlyssesAttention(setting.attend(layout_), plan, layout_)
    owners, given = setting.leaves(*(setting.mine(x, lengths, rank) for x in whole), layout)
    o = attend(*given)
    o.backward(setting.from_bshd(setting.mine(grad, lengths, rank), layout_))
    grads = [x.grad for x in owners]
    if layout == "fused":
        grads = grads[0].split([*heads, heads[1]], dim=2)
    pairs = [(o, expected), *((g, x.grad) for g, x in zip(grads, inputs, strict=True))]
    return [largest(setting.to_bshd(x, layout_) - setting.mine(y, lengths, rank)) for x, y in pairs]


def main(rank, folder):
    found = {}
    with setting.ranks(rank, folder) as world:
        for case in setting.cases():
            lengths = setting.lengths_of(case[2], world)
            plan = UlyssesPlan(None, *case[0], lengths)
            placed = exchanged(case, plan, rank, world)
            errors = attended(case, plan, rank, world)
            most = max(plan.heads.kv_counts)
            if most > 1:
                plan = UlyssesPlan(None, *case[0], lengths, head_chunks=min(most, 3))
                errors += attended(case, plan, rank, world)
            found[case] = placed, max(errors)
    torch.save(found, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
