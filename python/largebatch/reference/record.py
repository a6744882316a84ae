# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Records: what a compressor keeps of one or more tensors, and where it lies in a payload.

The tensors of a record, one after the other, are one space of `numel` elements; `slots` of them are
kept. The parts of a record are those of :mod:`~largebatch.reference.wire`.
"""

from dataclasses import dataclass

SELECTS = "dense", "topk", "block", "threshold", "random", "strided"
VALUES = "float32", "float16", "bfloat16", "float64", "int8", "int4", "int2", "sign"
INDICES = "none", "abs32", "blk16", "blk12"
HEADER = 64  # bytes
ALIGN = 16  # bytes
INDEX_BLOCK = 65536  # elements that share a count in blk16

_BITS = dict(zip(VALUES, (32, 16, 16, 64, 8, 4, 2, 1), strict=True))


@dataclass
class Record:
    """What is kept of one or more tensors, and where it lies in a payload.

    `block`, `kept` and `tau` are 0 where the selection has no use for them.
    """

    select: str
    values: str
    indices: str
    nearest: bool
    numel: int
    slots: int
    block: int
    kept: int
    tau: float
    scale_block: int
    seed: int
    id: int

    # Among the records of a plan: first and number of tensors, slots before, bytes before.
    first_tensor: int
    tensors: int
    first_slot: int
    offset: int

    @property
    def scales_at(self):
        """Where the scales begin."""
        return HEADER

    @property
    def values_at(self):
        """Where the values begin."""
        return self.scales_at + aligned(self.scale_bytes)

    @property
    def indices_at(self):
        """Where the indices begin."""
        return self.values_at + aligned(self.value_bytes)

    @property
    def bytes(self):
        """Bytes of the record."""
        return self.indices_at + aligned(self.index_bytes)

    @property
    def scale_bytes(self):
        """Bytes of the scales."""
        if self.values in ("int8", "int4", "int2"):
            return 4 * -(-self.slots // self.scale_block)
        return 4 if self.values == "sign" else 0

    @property
    def value_bytes(self):
        """Bytes of the values."""
        if self.values == "sign":
            return -(-self.slots // 32) * 4
        return -(-self.slots * _BITS[self.values] // 8)

    @property
    def index_bytes(self):
        """Bytes of the indices."""
        if self.indices == "abs32":
            return 4 * self.slots
        if self.indices == "blk16":
            return 4 * -(-self.numel // INDEX_BLOCK) + 2 * self.slots
        if self.indices == "blk12":
            whole, rest = divmod(self.numel, self.block)
            return whole * (self.kept // 2 * 3) + (self.kept_of(rest) + 1) // 2 * 3
        return 0

    def kept_of(self, length):
        """Return what is kept of a block of `length` elements."""
        return -(-self.kept * length // self.block)


def aligned(count):
    """Return the next multiple of 16.

    Examples
    --------
    >>> aligned(0), aligned(17)
    (0, 32)
    """
    return -(-count // ALIGN) * ALIGN


def make_record(numel, options, *, first_tensor=0, first_slot=0, offset=0):
    """Return the record of `numel` elements in all from its options, a dict as plans take it.

    Examples
    --------
    >>> make_record(10, {"select": "topk", "k": 2}).bytes
    96
    """
    select, block, k = options["select"], 0, options.get("k", 0)
    kept = 0
    if select == "dense":
        slots = numel
    elif select == "block":
        block, kept = options["block"], k
        whole, rest = divmod(numel, block)
        slots = whole * kept + -(-kept * rest // block)
    else:
        slots = k
    return Record(
        select,
        options.get("values", "float32"),
        _index_mode(options.get("indices", "auto"), select, numel, slots, block, kept),
        options.get("rounding", "stochastic") == "nearest",
        numel,
        slots,
        block,
        kept,
        options.get("tau", 0.0),
        options.get("scale_block", 2048),
        options.get("seed", 0),
        options.get("id", 0),
        first_tensor,
        options.get("tensors", 1),
        first_slot,
        offset,
    )


def _index_mode(mode, select, numel, slots, block, kept):
    if select in ("dense", "random", "strided"):
        return "none"
    if mode != "auto":
        return mode
    if select == "block" and block <= 4096 and kept % 2 == 0:
        return "blk12"
    blk16 = 2 * slots + 4 * -(-numel // INDEX_BLOCK)
    return "blk16" if blk16 < 4 * slots or numel >= 2**32 else "abs32"
