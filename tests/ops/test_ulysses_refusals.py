# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What packing and unpacking refuse, in one line, before anything is written."""

import numpy as np
import pytest
import torch

from largebatch import _C, ops
from tests.helpers import same_bits

Q, KV = torch.ones(3, 2, 4, 5), torch.ones(3, 2, 2, 5)
COUNTS, REPLICAS = [[[3, 1], [1, 3]]], [1, 2]
SIZE = 3 * 2 * 8 * 5
WIRE = torch.ones(SIZE)

SECOND = r"tensors\[1\]"
# name -> (arguments in place of those above, or a second tensor, what is raised, what it names).
BAD_PACK = {
    "kind of tensors": (dict(tensors=Q), TypeError, "tensors is a Tensor, expected a list"),
    "kind of a tensor": (dict(tensor=[1.0]), TypeError, f"{SECOND} is a list"),
    "no tensors": (
        dict(tensors=[], counts=[[[], []]], replicas=[]),
        ValueError,
        "replicas|tensors",
    ),
    "dimensions": (dict(tensor=KV[0]), ValueError, rf"{SECOND} has shape \[2, 2, 5\]"),
    "five dimensions": (dict(tensor=KV[None]), ValueError, f"{SECOND} has shape"),
    "a number": (dict(tensor=torch.tensor(1.0)), ValueError, rf"{SECOND} has shape \[\]"),
    "tokens": (dict(tensor=KV[1:]), ValueError, rf"{SECOND} has shape \[2, 2, 2, 5\]"),
    "batch": (dict(tensor=KV[:, 1:]), ValueError, rf"{SECOND} has shape \[3, 1, 2, 5\]"),
    "dtype": (dict(tensor=KV.half()), TypeError, f"{SECOND} has dtype"),
    "dtype of one size": (dict(tensor=KV.int()), TypeError, f"{SECOND} has dtype"),
    "bits of one size": (
        dict(tensors=[Q.to(torch.float8_e4m3fn), KV.to(torch.float8_e5m2)]),
        TypeError,
        f"{SECOND} has dtype",
    ),
    "bits that numbers have": (
        dict(tensors=[Q.to(torch.complex128), KV.double()]),
        TypeError,
        f"{SECOND} has dtype",
    ),
    "negative strides": (
        dict(tensor=np.ones((3, 2, 2, 5), np.float32)[::-1]),
        ValueError,
        f"{SECOND} has a negative stride",
    ),
    "device": (dict(tensor=KV.to("meta")), ValueError, f"{SECOND} is on meta"),
    "counts as a number": (dict(counts=3), ValueError, "counts: got 3"),
    "flat counts": (dict(counts=[3, 1, 1, 3]), ValueError, "counts: got"),
    "counts of one message": (dict(counts=[[3, 1], [1, 3]]), ValueError, "counts: got"),
    "counts without messages": (dict(counts=[]), ValueError, "counts"),
    "counts without ranks": (dict(counts=[[]]), ValueError, "counts"),
    "counts of text": (dict(counts=[[["a", 1], [1, 3]]]), ValueError, "counts"),
    "counts of halves": (dict(counts=[[[3.5, 1], [1.5, 3]]]), ValueError, "counts"),
    "uneven ranks": (dict(counts=[[[3, 1], [1, 3]], [[0, 0]]]), ValueError, "counts: got"),
    "uneven tensors": (dict(counts=[[[3, 1], [1]]]), ValueError, "counts: got"),
    "counts of one tensor": (dict(counts=[[[3], [1], [1]]]), ValueError, "counts"),
    "counts of three tensors": (
        dict(counts=[[[3, 1, 0], [1, 3, 0], [0, 0, 0]]]),
        ValueError,
        "counts",
    ),
    "too few heads": (dict(counts=[[[3, 1], [0, 3]]]), ValueError, r"counts of tensors\[0\]"),
    "too many heads": (dict(counts=[[[3, 1], [2, 3]]]), ValueError, r"counts of tensors\[0\]"),
    "too few copies": (dict(counts=[[[3, 1], [1, 2]]]), ValueError, rf"counts of {SECOND}"),
    "copies of none": (dict(replicas=[1, 1]), ValueError, rf"counts of {SECOND}"),
    "negative": (dict(counts=[[[5, 1], [-1, 3]]]), ValueError, "counts: got -1"),
    "replicas as a number": (dict(replicas=2), TypeError, "replicas: got 2, expected a list"),
    "replicas of halves": (dict(replicas=[1, 1.5]), TypeError, "replicas: got"),
    "no heads of very many": (
        dict(
            tensor=KV[:, :, :1, :1].expand(3, 2, 2**32, 1),
            replicas=[1, 2**32],
            counts=[[[3, 0], [1, 0]]],
        ),
        ValueError,
        rf"counts of {SECOND} add up to 0",
    ),
    "too few replicas": (dict(replicas=[1]), ValueError, "replicas"),
    "too many replicas": (dict(replicas=[1, 2, 1]), ValueError, "replicas"),
    "replicas of 0": (dict(replicas=[1, 0]), ValueError, "replicas"),
    "negative replicas": (dict(replicas=[1, -2]), ValueError, "replicas"),
}


def assert_one_line(caught, op):
    text = str(caught.value)
    assert text.startswith(f"{op}: ")
    assert "\n" not in text
    assert text.endswith(".")


@pytest.mark.parametrize("name", BAD_PACK)
def test_bad_input_of_pack_gets_one_line(name):
    over, problem, pattern = BAD_PACK[name]
    over = dict(over)
    tensors = [Q, over.pop("tensor", KV)]
    given = dict(tensors=tensors, counts=COUNTS, replicas=REPLICAS) | over
    with pytest.raises(problem, match=f"^ulysses_pack: ({pattern})") as caught:
        ops.ulysses_pack(**given)
    assert_one_line(caught, "ulysses_pack")


BAD_UNPACK = {
    "kind of messages": (dict(messages=WIRE), TypeError, "messages is a Tensor, expected a list"),
    "kind of a message": (dict(messages=[1.0]), TypeError, r"messages\[0\] is a float"),
    "no messages": (dict(messages=[]), ValueError, "messages|counts"),
    "a message for each rank": (
        dict(messages=[WIRE[: SIZE // 2]] * 2),
        ValueError,
        "messages|counts",
    ),
    "two messages": (dict(messages=[WIRE, WIRE]), ValueError, "messages|counts"),
    "one of two messages": (
        dict(counts=[[[3, 1], [1, 3]], [[0, 0]] * 2]),
        ValueError,
        "messages|counts",
    ),
    "a short message": (
        dict(messages=[WIRE[1:]]),
        ValueError,
        rf"messages\[0\] has shape \[{SIZE - 1}\]",
    ),
    "a long message": (
        dict(messages=[torch.ones(SIZE + 1)]),
        ValueError,
        r"messages\[0\] has shape",
    ),
    "a message of two dimensions": (
        dict(messages=[WIRE.view(2, -1)]),
        ValueError,
        r"messages\[0\] has",
    ),
    "a message of none": (
        dict(messages=[torch.tensor(1.0)]),
        ValueError,
        r"messages\[0\] has shape \[\]",
    ),
    "device": (
        dict(messages=[WIRE, WIRE.to("meta")], counts=[*COUNTS] * 2),
        ValueError,
        r"messages\[1\] is on meta",
    ),
    "dtype": (
        dict(messages=[WIRE, WIRE.half()], counts=[*COUNTS] * 2),
        TypeError,
        r"messages\[1\] has dtype",
    ),
    "bits of one size": (
        dict(messages=[WIRE.bool(), WIRE.to(torch.uint8)], counts=[*COUNTS] * 2),
        TypeError,
        r"messages\[1\] has dtype",
    ),
    "tokens": (dict(tokens=4), ValueError, r"messages\[0\] has shape"),
    "negative tokens": (dict(tokens=-3), ValueError, "tokens"),
    "negative batch": (dict(batch=-2), ValueError, "batch"),
    "negative dim": (dict(head_dims=[5, -5]), ValueError, "head_dims"),
    "tokens of halves": (dict(tokens=1.5), TypeError, r"tokens and batch: got \[1.5, 2\]"),
    "dims as a number": (dict(head_dims=5), TypeError, "head_dims: got 5, expected a list"),
    "too few dims": (dict(head_dims=[5]), ValueError, "counts|head_dims|replicas"),
    "too many dims": (dict(head_dims=[5, 5, 5]), ValueError, "counts|head_dims|replicas"),
    "no dims": (
        dict(head_dims=[], counts=[[[], []]], replicas=[]),
        ValueError,
        "head_dims|replicas",
    ),
    "layout": (dict(layout="shbd"), ValueError, "layout: got 'shbd', expected one of"),
    "uneven tensors": (dict(counts=[[[3, 1], [1]]]), ValueError, "counts: got"),
    "negative": (dict(counts=[[[5, 1], [-1, 3]]]), ValueError, "counts: got -1"),
    "half a head": (
        dict(counts=[[[3, 1], [1, 2]]], messages=[WIRE[:210]]),
        ValueError,
        rf"counts of {SECOND}",
    ),
    "replicas of 0": (dict(replicas=[1, 0]), ValueError, "replicas"),
    "too few replicas": (dict(replicas=[1]), ValueError, "replicas"),
    **{
        f"copies of {dtype}": (dict(messages=[WIRE.to(dtype)]), TypeError, f"{SECOND} has dtype")
        for dtype in (
            torch.int32,
            torch.int64,
            torch.int16,
            torch.uint8,
            torch.bool,
            torch.complex64,
            torch.complex128,
            torch.float8_e4m3fn,
        )
    },
}


@pytest.mark.parametrize("name", BAD_UNPACK)
def test_bad_input_of_unpack_gets_one_line(name):
    over, problem, pattern = BAD_UNPACK[name]
    given = dict(
        messages=[WIRE], tokens=3, batch=2, head_dims=[5, 5], counts=COUNTS, replicas=REPLICAS
    )
    with pytest.raises(problem, match=f"^ulysses_unpack: ({pattern})") as caught:
        ops.ulysses_unpack(**given | over)
    assert_one_line(caught, "ulysses_unpack")


# ---- The functions of the extension, which write into what they are given ------------------------


def call(op, tensors, messages):
    flat = [3, 1, 1, 3]
    if op == "ulysses_pack":
        _C.ulysses_pack(tensors, messages, flat, REPLICAS)
    else:
        _C.ulysses_unpack(messages, tensors, flat, REPLICAS)


SHARED = torch.ones(2 * SIZE)
BAD_BUFFERS = {
    "a tensor with gaps in rows": (
        dict(tensor=torch.ones(3, 2, 2, 10)[..., ::2]),
        ValueError,
        SECOND,
    ),
    "a message with gaps": (dict(message=torch.ones(2 * SIZE)[::2]), ValueError, r"messages\[0\]"),
    "a short message": (dict(message=torch.ones(SIZE - 1)), ValueError, r"messages\[0\]"),
    "another dtype": (
        dict(message=torch.ones(SIZE).double()),
        TypeError,
        r"messages\[0\] has dtype",
    ),
    "bits of another kind": (
        dict(message=torch.ones(SIZE).int()),
        TypeError,
        r"messages\[0\] has dtype",
    ),
    "memory of a tensor": (
        dict(tensor=SHARED[:60].view(3, 2, 2, 5), message=SHARED[59 : 59 + SIZE]),
        ValueError,
        r"messages\[0\]|tensors\[1\]",
    ),
}


@pytest.mark.parametrize("op", ["ulysses_pack", "ulysses_unpack"])
@pytest.mark.parametrize("name", BAD_BUFFERS)
def test_bad_buffers_get_one_line_and_nothing_is_call(op, name):
    over, problem, pattern = BAD_BUFFERS[name]
    tensors = [2 * Q, over.get("tensor", 3 * KV)]
    messages = [over.get("message", 4 * WIRE)]
    before = [x.clone() for x in (*tensors, *messages, SHARED)]
    with pytest.raises(problem, match=f"^{op}: ({pattern})") as caught:
        call(op, tensors, messages)
    assert_one_line(caught, op)
    assert same_bits([*tensors, *messages, SHARED], before)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 2, 1, 5).expand(3, 2, 2, 5),
        torch.zeros(1, 2, 2, 5).expand(3, 2, 2, 5),
        torch.zeros(60).as_strided((3, 2, 2, 5), (20, 10, 4, 1)),
        torch.zeros(60).as_strided((3, 2, 2, 5), (3, 10, 5, 1)),
        Q[:, :, :2],
    ],
    ids=["heads", "tokens", "rows", "strides", "another tensor"],
)
def test_unpack_writes_no_memory_twice(tensor):
    q, before = Q.clone(), tensor.clone()
    first = Q if tensor.data_ptr() == Q.data_ptr() else q  # of which the last one is a part
    with pytest.raises(ValueError, match=r"^ulysses_unpack: tensors\[[01]\] ") as caught:
        call("ulysses_unpack", [first, tensor], [WIRE])
    assert_one_line(caught, "ulysses_unpack")
    assert same_bits(tensor, before)
    assert same_bits(q, Q)


def test_messages_must_not_overlap():
    x, shared = torch.zeros(1, 1, 4, 8), torch.ones(32)
    with pytest.raises(ValueError, match=r"^ulysses_pack: messages\[[01]\] ") as caught:
        _C.ulysses_pack([x], [shared[:16], shared[8:24]], [2, 2], [1])
    assert_one_line(caught, "ulysses_pack")
    assert (shared == 1).all()


def test_tensors_that_are_only_read_may_overlap():
    x = torch.arange(40.0).view(1, 1, 5, 8)
    (message,) = ops.ulysses_pack([x[:, :, :4], x[:, :, 1:], x[:, :, 1:]], [[[4, 4, 4]]])
    assert same_bits(message, torch.cat([x[:, :, :4], x[:, :, 1:], x[:, :, 1:]], 2).flatten())


def test_read_only_arrays_of_numpy_are_taken():
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    x.flags.writeable = False
    (message,) = ops.ulysses_pack([x], [[[3]]])
    assert message.tolist() == list(range(12))
