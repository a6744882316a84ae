# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What ranks tell each other besides tensors."""

import hashlib

import torch
import torch.distributed as dist

all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def gather_rows(row, group):
    """Return ``[W, n]``: the row that each rank has given."""
    world = dist.get_world_size(group)
    rows = row.new_empty(world * len(row))
    all_gather(rows, row, group=group)
    return rows.view(world, -1)


def agree(where, fields, group, device):
    """Raise ValueError on every rank unless all have the same text in each field.

    where : str
        What the message begins with.
    fields : dict
        What it is called: the text.
    """
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in fields.values()]
    row = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    rows = gather_rows(torch.tensor(row, device=device), group).cpu()
    ranks = [r for r in range(len(rows)) if not torch.equal(rows[r], rows[0])]
    if not ranks:
        return
    differ = [name for c, name in enumerate(fields) if (rows[:, c] != rows[0, c]).any()]
    shown = "; ".join(fields[name] if len(fields[name]) < 300 else "..." for name in differ)
    who = f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {ranks} have"
    raise ValueError(
        f"{where}: {who} another {' and '.join(differ)} than rank 0, expected the same on all; "
        f"this rank has {shown}."
    )
