# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The memory of states: small ones lie side by side, and for all else are tensors like others."""

import io
import math
from itertools import pairwise

import pytest
import torch
from torch.nn import Parameter

from largebatch.optim._arena import Arena
from tests.helpers import leaves, run

SMALL = 4096
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.complex64]


def storages(tensors):
    """Return the bytes of each storage that tensors lie in, by its address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def layouts():
    """Return tensors of every layout that a parameter may have."""
    x = torch.zeros(6, 5, 4, 3)
    return {
        "contiguous": x,
        "channels last": x.to(memory_format=torch.channels_last),
        "permuted": x.permute(3, 1, 0, 2),
        "with gaps": x[:, ::2],
        "expanded": torch.zeros(5, 1).expand(5, 7),
        "one": torch.zeros(1, 1),
        "0-dim": torch.zeros(()),
        "empty": torch.zeros(3, 0),
        "parameter": Parameter(x),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes_and_strides_are_those_of_empty_like(layout, dtype):
    tensor = layouts()[layout]
    arena = Arena()
    arena.empty_like(torch.zeros(3), dtype)  # not at the beginning of a storage
    made = arena.empty_like(tensor, dtype)
    like = torch.empty_like(tensor, dtype=dtype, memory_format=torch.preserve_format)
    assert (made.dtype, made.shape, made.stride()) == (dtype, like.shape, like.stride())
    assert (made.device, made.requires_grad, made._base) == (tensor.device, False, None)
    assert made.zero_().eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_two_share_an_element(dtype):
    arena = Arena()
    numels = [1, 2, 15, 16, 17, 63, 64, 65, 1000, SMALL, SMALL + 1] * 40
    tensors = [arena.empty_like(torch.empty(n), dtype).fill_(i % 100) for i, n in enumerate(numels)]
    assert all(tensor.eq(i % 100).all() for i, tensor in enumerate(tensors))
    ends = [(t.data_ptr(), t.data_ptr() + t.numel() * t.itemsize) for t in tensors]
    ends.sort()
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ends))


def test_small_ones_lie_in_order_a_line_apart_at_most():
    arena = Arena()
    numels = [1 + 7 * i % 100 for i in range(200)]
    tensors = [arena.empty_like(torch.empty(n), torch.float32) for n in numels]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)
    assert sorted(storages(tensors).values()) == [4096, 8192, 16384, 32768]
    for one, other in pairwise(tensors):
        if one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr():
            length = math.ceil(one.numel() / 16) * 64
            assert other.data_ptr() == one.data_ptr() + length


def test_large_ones_have_storages_of_their_own():
    arena = Arena()
    small, large = (arena.empty_like(torch.empty(n), torch.float32) for n in (SMALL, SMALL + 1))
    assert large.untyped_storage().nbytes() == 4 * (SMALL + 1)
    assert small.untyped_storage().data_ptr() != large.untyped_storage().data_ptr()


def test_storages_are_twice_as_large_as_what_lies_in_them_but_for_their_ends():
    arena, tensors = Arena(), []
    for n in [64, 1024, SMALL] * 100:
        tensors.append(arena.empty_like(torch.empty(n), torch.float32))
        used, lengths = sum(tensor.nbytes for tensor in tensors), storages(tensors).values()
        assert sum(lengths) <= max(4096, 2 * used + 4 * SMALL * len(lengths))
    assert max(storages(tensors).values()) == 2**20


def test_steps_are_not_taken_for_imaginary_parts():
    arena = Arena()
    steps = [arena.scalar(float(i), torch.device("cpu")) for i in range(600)]
    assert [step.item() for step in steps] == list(range(600))
    assert all((step.dtype, step.shape) == (torch.float32, ()) for step in steps)
    assert all(step.data_ptr() % 8 == 0 for step in steps)


def test_states_of_an_optimizer_share(family):
    params = leaves([torch.ones(1 + 7 * i % 100) for i in range(300)] + [torch.ones(SMALL + 1)])
    optimizer = family.make(params)
    run(optimizer, params, [[torch.ones_like(p) for p in params]])
    states = [t for p in params[:-1] for t in optimizer.state[p].values()]
    assert len(storages(states)) < len(states) / 20
    large = optimizer.state[params[-1]]
    assert not {*storages(states)} & {*storages(t for t in large.values() if t.numel() > 1)}


def test_a_checkpoint_is_hardly_larger_than_what_is_in_it(family):
    params = leaves([torch.ones(100) for _ in range(500)])
    optimizer = family.make(params)
    run(optimizer, params, [[torch.ones_like(p) for p in params]])

    def saved(states):
        file = io.BytesIO()
        torch.save(states, file)
        return len(file.getvalue())

    together = optimizer.state_dict()["state"]
    apart = {i: {k: v.clone() for k, v in state.items()} for i, state in together.items()}
    assert saved(together) <= saved(apart)


def test_states_that_are_dropped_free_what_they_share(family):
    params = leaves([torch.ones(100) for _ in range(1000)])
    optimizer = family.make(params)
    run(optimizer, params, [[torch.ones_like(p) for p in params]])
    first = {id(p): [*optimizer.state[p].values()] for p in params[:500]}
    last = storages(optimizer.state[params[-1]].values())  # where there is room for others
    shared = [t.untyped_storage() for state in first.values() for t in state]
    one = max(shared, key=lambda s: (s.data_ptr() not in last, s.nbytes()))
    del first, shared
    assert one.data_ptr() not in last
    assert torch._C._storage_Use_Count(one._cdata) > 10
    optimizer.state.clear()
    assert torch._C._storage_Use_Count(one._cdata) == 1
