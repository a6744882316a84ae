# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that share sequences, attention for them, and what each should have."""

import os
import warnings
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist

from largebatch.reference import ulysses as reference

HEADS = [(8, 8), (8, 2), (8, 1), (7, 7), (9, 3), (12, 3), (24, 8), (28, 4), (5, 1), (2, 2)]
BATCHES = (1, 2, 3)
LENGTHS = ("equal", "ragged", "zeros")
LAYOUTS = ("bshd", "sbhd", "bhsd", "thd", "fused")
DIMS = (8, 40, 64, 3)
V_DIMS = (0, 5)  # added to that of q and k


@contextmanager
def ranks(rank, folder):
    """Join the processes of a test; their number is the name of the folder."""
    world = int(Path(folder).name)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of plans that are slow on purpose
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    torch.manual_seed(0)
    yield world
    dist.barrier()
    dist.destroy_process_group()


def cases():
    """Return the grid of (heads, batch, lengths, layout, dim, v_dim).

    By default all of the first three, with the rest in turn; all of all with LARGEBATCH_FULL_GRID.
    """
    outer = list(product(HEADS, BATCHES, LENGTHS))
    inner = list(product(LAYOUTS, DIMS, V_DIMS))
    if os.environ.get("LARGEBATCH_FULL_GRID") == "1":
        pairs = product(outer, inner)
    else:
        # 7 and 40 have no common divisor: neighbours differ in everything, and all come up.
        pairs = ((case, inner[7 * i % len(inner)]) for i, case in enumerate(outer))
    found = []
    for (heads, batch, lengths), (layout, dim, more) in pairs:
        batch = 1 if layout == "thd" else batch
        v_dim = dim if layout == "fused" else dim + more
        found.append((heads, batch, lengths, layout, dim, v_dim))
    return list(dict.fromkeys(found))


def lengths_of(kind, world):
    """Return the tokens of each rank."""
    return {
        "equal": [3] * world,
        "ragged": [2 + rank for rank in range(world)],
        "zeros": [5 * (rank == world - 1) for rank in range(world)],
    }[kind]


def to_bshd(x, layout):
    """Return x of a layout as [B, s, H, D]."""
    if layout == "thd":
        return x.unsqueeze(0)
    return x.permute({"bshd": (0, 1, 2, 3), "sbhd": (1, 0, 2, 3), "bhsd": (0, 2, 1, 3)}[layout])


def from_bshd(x, layout):
    """Return [B, s, H, D] as a view in a layout."""
    if layout == "thd":
        return x.squeeze(0)
    return x.permute({"bshd": (0, 1, 2, 3), "sbhd": (1, 0, 2, 3), "bhsd": (0, 2, 1, 3)}[layout])


def attend(layout, causal=True):
    """Return the oracle's attention, in a layout."""

    def attn_fn(q, k, v):
        bshd = [to_bshd(x, layout) for x in (q, k, v)]
        return from_bshd(reference.attention(*bshd, causal=causal), layout)

    return attn_fn


def tensors(heads, batch, tokens, dim, v_dim, dtype=torch.float64):
    """Return q, k, v and a gradient of o, [B, S, H, D], the same on all ranks."""
    generator = torch.Generator().manual_seed(1)
    q_heads, kv_heads = heads
    shapes = [(q_heads, dim), (kv_heads, dim), (kv_heads, v_dim), (q_heads, v_dim)]
    draw = [torch.randn(batch, tokens, *s, generator=generator, dtype=dtype) for s in shapes]
    return draw


def mine(x, lengths, rank):
    """Return the tokens of a rank of [B, S, ...]."""
    start = sum(lengths[:rank])
    return x[:, start : start + lengths[rank]]


def leaves(q, k, v, layout):
    """Return (leaves, (q, k, v)) in a layout; of "fused", one leaf that all three are cut from."""
    if layout == "fused":
        leaf = torch.cat([q, k, v], dim=2).requires_grad_()
        return [leaf], leaf.split([q.shape[2], k.shape[2], v.shape[2]], dim=2)
    found = [from_bshd(x, layout).contiguous().requires_grad_() for x in (q, k, v)]
    return found, found
