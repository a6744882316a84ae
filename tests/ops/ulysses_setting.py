# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors of heads as models keep them, and who gets how many of them."""

import random

import torch

from largebatch import ops
from largebatch.reference import ulysses as reference
from tests.helpers import same_bits

REALS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
OTHERS = [
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.int64,
    torch.complex64,
    torch.complex128,
]
# Dimensions of [tokens, batch, heads, dim] in the order of memory, the slowest first.
ORDERS = {"sbhd": (0, 1, 2, 3), "bshd": (1, 0, 2, 3), "bhsd": (1, 2, 0, 3)}

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def in_order(x, layout):
    """Return [tokens, batch, heads, dim] with the same elements, in memory as a layout says."""
    order = ORDERS[layout]
    return x.permute(order).contiguous().permute([order.index(d) for d in range(4)])


def lies_in(x, layout):
    """Tell whether memory has no gaps and the order of a layout."""
    return x.permute(ORDERS[layout]).is_contiguous()


def noise(shape, dtype, device="cpu", seed=0):
    """Return numbers of any bits: of floating dtypes also NaN with payloads, and subnormals."""
    generator = torch.Generator().manual_seed(seed)
    size = (*shape[:-1], shape[-1] * torch.empty((), dtype=dtype).element_size())
    random_bytes = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        return (random_bytes > 127).to(device)
    return random_bytes.view(dtype).to(device)


def gaussian(shape, dtype, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def as_bits(x):
    """Return the bits as integers, two for a number of 16 bytes: the oracle moves any of these."""
    if x.element_size() == 16:
        x = torch.view_as_real(x.resolve_conj()).flatten(-2)
    return x.view(_BITS[x.element_size()])


def deal(total, places, seed=0):
    """Return `places` counts that add up to `total`, some of them 0."""
    draw = random.Random(seed)
    ends = sorted(draw.randint(0, total) for _ in range(places - 1))
    return [b - a for a, b in zip([0, *ends], [*ends, total], strict=True)]


def deal_heads(heads, replicas, ranks, messages=1, seed=0):
    """Return counts [messages][ranks][tensors] that give all copies of all heads away."""
    shares = [
        deal(n * copies, ranks * messages, seed + i)
        for i, (n, copies) in enumerate(zip(heads, replicas, strict=True))
    ]
    return [
        [[share[k * ranks + p] for share in shares] for p in range(ranks)] for k in range(messages)
    ]


def flat(counts):
    """Return counts as the functions of the extension take them."""
    return [count for message in counts for row in message for count in row]


def lengths(tokens, batch, head_dims, counts):
    """Return the number of elements of each message."""
    return [
        tokens * batch * sum(n * d for row in message for n, d in zip(row, head_dims, strict=True))
        for message in counts
    ]


def unpack_like(messages, tensors, counts, replicas, **options):
    """Unpack messages that tensors have been packed into."""
    tokens, batch = tensors[0].shape[:2]
    head_dims = [x.shape[3] for x in tensors]
    return ops.ulysses_unpack(messages, tokens, batch, head_dims, counts, replicas, **options)


def assert_moved(tensors, counts, replicas=None):
    """Pack and unpack numbers that say which they are, and compare with the oracle."""
    device = tensors[0].device
    replicas = replicas or [1] * len(tensors)
    messages = ops.ulysses_pack(tensors, counts, replicas)
    expected = reference.pack([as_bits(x.cpu()) for x in tensors], counts, replicas)
    assert same_bits([as_bits(m) for m in messages], expected)
    assert all(m.device.type == device.type and m.dtype == tensors[0].dtype for m in messages)
    if max(replicas) == 1:
        assert same_bits(unpack_like(messages, tensors, counts, replicas), list(tensors))
