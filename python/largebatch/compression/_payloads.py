# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How a result crosses streams, and whether a payload is what was sent."""

import zlib

import torch

from .exchange import CRC_AT, HEADER


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
