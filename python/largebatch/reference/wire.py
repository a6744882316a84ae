# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""The wire format of compressed gradients, version 1: what a rank sends of each record.

A *record* is what is kept of one or more tensors: `slots` of their `numel` elements. Its bytes are
a header of 64, then scales, values and indices, each part padded with zeros to a multiple of 16.
Numbers are little endian. How many bytes they are is known before there is data, so ranks need not
tell each other.

=====  ====  ======================================================================================
byte   type  header
=====  ====  ======================================================================================
0      u32   0x4347424C, "LBGC"
4      u16   version 1
6      u16   flags: 1 dense, 2 some number was not finite
8      u8    :data:`~largebatch.reference.record.SELECTS`
9      u8    :data:`VALUES`
10     u8    :data:`INDICES`
11     u8    0
12     u32   elements per block of a block-wise selection, else 0
16     u64   numel
24     u64   slots
32     u64   id
40     u64   step
48     u32   kept of every block, else 0
52     u32   bytes of the record, this header included
56     u32   numbers that were not finite, 0xFFFFFFFF for more
60     u32   0, or the crc32 of what follows the header
=====  ====  ======================================================================================

**Values.** float32, float16, bfloat16, float64: what the format can hold, rounded to nearest, ties
to even; beyond its largest number, that one. The others have float32 scales.

Integers of b bits, in chunks of `scale_block` slots that share a scale, the largest finite
:math:`|v|`:

.. math::
    s = \text{scale} / a, \qquad
    \text{code} = \operatorname{clamp}(\lfloor (v / s + c) + u \rfloor,\, c - a,\, c + a), \qquad
    \text{decoded} = (\text{code} - c)\, s

in float32, with (a, c) = (127, 0), (7, 0), (3/2, 3/2) for b = 8, 4, 2, and u either uniform in
[0, 1), so that the mean of what is decoded is v, or 1/2. Code 0 where s = 0 or v is not finite.
Codes of 8 and 4 bits are two's complement; earlier slots lie in lower bits.

sign: one bit per element, 1 for negative, and one scale, the mean of :math:`|v|`.

**Indices** of the kept elements, ascending. abs32: u32. blk16: for each 65536 elements a u32, how
many were kept up to their end; then for each slot a u16 offset. blk12: for each block of the
selection, its offsets two by two in three bytes, the first in the lower twelve bits. none: all
elements, or drawn at random, from `seed`, `id` and the step in the header.
A slot that a threshold has left empty holds 0xFFFFFFFF in abs32, and is not counted in blk16.
"""

import struct

import torch

from .draw import random_indices, random_words, rank_seed, strided_indices
from .record import HEADER, INDEX_BLOCK, INDICES, SELECTS, VALUES

MAGIC = 0x4347424C
VERSION = 1

_HEADER = struct.Struct("<IHHBBBBIQQQQIIII")
_FLOATS = {name: getattr(torch, name) for name in VALUES[:4]}
_INTEGERS = {"int8": (8, 127.0, 0.0), "int4": (4, 7.0, 0.0), "int2": (2, 1.5, 1.5)}  # b, a, c
_U32, _U64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def pack(record, values, indices, nonfinite, step, rank, out):
    """Write a record.

    Parameters
    ----------
    record : Record
    values : Tensor
        ``[slots]`` float32 or float64.
    indices : Tensor or None
        ``[slots]`` int64; `numel` where a slot is empty. Unused where none are sent.
    nonfinite, step, rank : int
    out : Tensor
        ``[record.bytes]`` uint8, written.
    """
    flags = (record.select == "dense") + 2 * (nonfinite > 0)
    codes = SELECTS.index(record.select), VALUES.index(record.values)
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        flags,
        *codes,
        INDICES.index(record.indices),
        0,
        record.block,
        record.numel,
        record.slots,
        record.id & _U64,
        step & _U64,
        record.kept,
        record.bytes & _U32,
        min(nonfinite, _U32),
        0,
    )
    parts = {0: torch.frombuffer(bytearray(header), dtype=torch.uint8)}
    parts[record.scales_at], parts[record.values_at] = _pack_values(record, values, step, rank)
    if record.indices != "none":
        parts[record.indices_at] = _pack_indices(record, indices)
    out.zero_()
    for at, part in parts.items():
        out[at : at + part.numel()] = part


def unpack(record, payload, dtype):
    """Return the decoded values and the indices of a record.

    Parameters
    ----------
    record : Record
    payload : Tensor
        ``[record.bytes]`` uint8.
    dtype : torch.dtype
        Of the values: float32 or float64.

    Returns
    -------
    values : Tensor
        ``[slots]``.
    indices : Tensor
        ``[slots]`` int64; `numel` where a slot is empty.
    """
    scales = payload[record.scales_at :][: record.scale_bytes].view(torch.float32)
    data = payload[record.values_at :][: record.value_bytes]
    if record.values in _INTEGERS:
        values = dequantise(_unpack_codes(record, data), scales, record.values, record.scale_block)
    elif record.values == "sign":
        bits = data.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1
        values = torch.where(bits.reshape(-1)[: record.slots] == 1, -scales, scales)
    else:
        values = data.view(_FLOATS[record.values])
    if record.indices == "none":
        indices = drawn_indices(record, header(payload)["step"])
    else:
        indices = _unpack_indices(record, payload[record.indices_at :][: record.index_bytes])
    return values.to(dtype), indices


def header(payload):
    """Return the fields of a header that a receiver needs: a dict.

    Examples
    --------
    >>> from largebatch.reference.record import make_record
    >>> record = make_record(4, {"select": "dense"})
    >>> out = torch.empty(record.bytes, dtype=torch.uint8)
    >>> pack(record, torch.zeros(4), None, 0, 7, 0, out)
    >>> header(out)["slots"], header(out)["step"]
    (4, 7)
    """
    fields = _HEADER.unpack(payload[:HEADER].numpy().tobytes())
    names = "magic version flags select values indices _ block numel slots id step kept bytes"
    return dict(zip([*names.split(), "nonfinite", "crc32"], fields, strict=True))


def drawn_indices(record, step):
    """Return the indices of a record that sends none: all elements, or those drawn in a step."""
    if record.select == "dense":
        return torch.arange(record.numel)
    draw = random_indices if record.select == "random" else strided_indices
    return draw(record.numel, record.slots, step, seed=record.seed, id=record.id)


# ---- Values --------------------------------------------------------------------------------------


def quantise(values, name, scale_block, words=None):
    """Return the codes and scales of integer values; the equations stand at the top of this file.

    Parameters
    ----------
    values : Tensor
        ``[slots]`` float32 or float64.
    name : "int8", "int4" or "int2"
    scale_block : int
    words : Tensor or None
        ``[slots]`` int64 in [0, 2^32), whose upper 24 bits are u. None: u = 1/2.

    Returns
    -------
    codes : Tensor
        ``[slots]`` int64.
    scales : Tensor
        ``[ceil(slots / scale_block)]`` float32.

    Examples
    --------
    >>> quantise(torch.tensor([1.0, -0.5, 0.2]), "int2", 64)
    (tensor([3, 1, 2]), tensor([1.]))
    """
    _, a, c = _INTEGERS[name]
    v = values.float()
    finite = torch.isfinite(v)
    chunks = -(-v.numel() // scale_block)
    magnitude = torch.where(finite, v.abs(), 0.0)
    padded = torch.nn.functional.pad(magnitude, (0, chunks * scale_block - v.numel()))
    scales = padded.view(chunks, scale_block).amax(dim=1) if chunks else padded
    step = (scales / a).repeat_interleave(scale_block)[: v.numel()]
    u = 0.5 if words is None else (words >> 8).float() * 2.0**-24
    code = torch.floor((v / step + c) + u).clamp(c - a, c + a)
    return torch.where(finite & (step > 0), code, 0.0).long(), scales


def dequantise(codes, scales, name, scale_block):
    """Return the float32 values of codes.

    Examples
    --------
    >>> dequantise(torch.tensor([3, 1, 2]), torch.tensor([1.0]), "int2", 64)
    tensor([ 1.0000, -0.3333,  0.3333])
    """
    _, a, c = _INTEGERS[name]
    step = (scales / a).repeat_interleave(scale_block)[: codes.numel()]
    return (codes.float() - c) * step


def _pack_values(record, values, step, rank):
    """Return the bytes of the scales and of the values."""
    none = torch.empty(0, dtype=torch.uint8)
    if record.values == "sign":
        total = values.abs().double().sum().item()
        scale = torch.tensor([total / max(1, record.numel)], dtype=torch.float32)
        bits = torch.nn.functional.pad((values < 0).to(torch.uint8), (0, -record.slots % 32))
        weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
        return scale.view(torch.uint8), (bits.view(-1, 8) * weights).sum(1).to(torch.uint8)
    if record.values in _INTEGERS:
        words = None
        if not record.nearest:
            seed = rank_seed(record.seed, rank)
            words = random_words(record.slots, step, seed=seed, id=record.id)
        codes, scales = quantise(values, record.values, record.scale_block, words)
        return scales.view(torch.uint8), _pack_codes(record, codes)
    dtype = _FLOATS[record.values]
    most = torch.finfo(dtype).max
    if dtype.itemsize < 4:  # by way of float32, also from float64
        return none, values.clamp(-most, most).float().to(dtype).view(torch.uint8)
    return none, values.clamp(-most, most).to(dtype).view(torch.uint8)


def _pack_codes(record, codes):
    bits = _INTEGERS[record.values][0]
    per_byte = 8 // bits
    fields = torch.nn.functional.pad(codes & (1 << bits) - 1, (0, -codes.numel() % per_byte))
    shifted = fields.view(-1, per_byte) << bits * torch.arange(per_byte)
    return shifted.sum(dim=1).to(torch.uint8)


def _unpack_codes(record, data):
    bits, _, c = _INTEGERS[record.values]
    fields = data.long().unsqueeze(1) >> bits * torch.arange(8 // bits) & (1 << bits) - 1
    codes = fields.reshape(-1)[: record.slots]
    top = 1 << bits - 1
    return codes if c else (codes ^ top) - top  # two's complement


# ---- Indices -------------------------------------------------------------------------------------


def _pack_indices(record, indices):
    taken = indices[indices < record.numel]
    empty = record.slots - taken.numel()
    if record.indices == "abs32":
        padded = torch.nn.functional.pad(taken, (0, empty), value=_U32)
        return padded.to(torch.uint32).view(torch.uint8)
    if record.indices == "blk16":
        blocks = -(-record.numel // INDEX_BLOCK)
        ends = torch.searchsorted(taken, torch.arange(1, blocks + 1) * INDEX_BLOCK)
        offsets = torch.nn.functional.pad(taken % INDEX_BLOCK, (0, empty))
        parts = ends.to(torch.uint32), offsets.to(torch.uint16)
        return torch.cat([part.view(torch.uint8) for part in parts])
    offsets, whole = indices % record.block, record.numel // record.block * record.kept
    pieces = []
    for part in (offsets[:whole], offsets[whole:]):
        first, second = torch.nn.functional.pad(part, (0, part.numel() % 2)).view(-1, 2).T
        triples = first & 0xFF, first >> 8 | (second & 0xF) << 4, second >> 4
        pieces.append(torch.stack(triples, dim=1).reshape(-1).to(torch.uint8))
    return torch.cat(pieces)


def _unpack_indices(record, data):
    if record.indices == "abs32":
        indices = data.view(torch.uint32).long()
        return torch.where(indices == _U32, record.numel, indices)
    if record.indices == "blk16":
        blocks = -(-record.numel // INDEX_BLOCK)
        ends = data[: 4 * blocks].view(torch.uint32).long()
        offsets = data[4 * blocks :].view(torch.uint16).long()
        counts = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.int64))
        starts = torch.arange(blocks).repeat_interleave(counts) * INDEX_BLOCK
        indices = torch.full((record.slots,), record.numel)
        indices[: starts.numel()] = starts + offsets[: starts.numel()]
        return indices
    triples = data.long().view(-1, 3)
    first = triples[:, 0] | (triples[:, 1] & 0xF) << 8
    second = triples[:, 1] >> 4 | triples[:, 2] << 4
    # An odd last one is paired with nothing, at the very end.
    offsets = torch.stack((first, second), dim=1).reshape(-1)[: record.slots]
    return offsets + torch.arange(record.slots) // max(1, record.kept) * record.block
