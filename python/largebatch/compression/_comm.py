# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What ranks tell each other besides gradients, and whether a payload is what was sent."""

import hashlib
import zlib

import torch
import torch.distributed as dist

from .exchange import CRC_AT, HEADER

all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def gather_rows(row, group):
    """Return ``[W, n]``: the row that each rank has given."""
    world = dist.get_world_size(group)
    rows = row.new_empty(world * len(row))
    all_gather(rows, row, group=group)
    return rows.view(world, -1)


def agree(fields, group, device):
    """Raise ValueError on every rank unless all have the same text in each field.

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
        f"hook: {who} another {' and '.join(differ)} than rank 0, expected the same on all; this "
        f"rank has {shown}."
    )


def crossing(tensors):
    """Note on CUDA that this stream uses what another one made."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def done(value):
    """Return a future that is."""
    future = torch.futures.Future(devices=[value.device] if value.is_cuda else None)
    future.set_result(value)
    return future


# ---- Checksums -----------------------------------------------------------------------------------


def seal(plan, payload):
    """Write the CRC-32 of each record of a payload into its header."""
    sums = torch.tensor(_sums(plan, payload), dtype=torch.int64).to(torch.uint32)
    for record, one in zip(plan.layout, sums.view(-1, 1), strict=True):
        at = record["offset"] + CRC_AT
        payload[at : at + 4] = one.view(torch.uint8).to(payload.device)


def check_seals(plan, payloads, names):
    """Raise RuntimeError for a record of a rank that is not what it was when sealed."""
    for rank, payload in enumerate(payloads.cpu()):
        for record, name, found in zip(plan.layout, names, _sums(plan, payload), strict=True):
            at = record["offset"] + CRC_AT
            told = int.from_bytes(payload[at : at + 4].numpy().tobytes(), "little")
            if told != found:
                raise RuntimeError(
                    f"hook: payload of rank {rank}, record of {name!r}: got CRC-32 {found:#010x}, "
                    f"expected {told:#010x} as it was sent. It has changed on its way."
                )


def _sums(plan, payload):
    """Return the CRC-32 of all of each record that comes after the header."""
    data = payload.cpu().numpy()
    ends = [(r["offset"] + HEADER, r["offset"] + r["bytes"]) for r in plan.layout]
    return [zlib.crc32(data[start:end]) for start, end in ends]
