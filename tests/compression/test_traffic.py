# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes that are told before training: test_hook_workers.py has those that go over the wire."""

import pytest
import torch

from largebatch.compression import (
    EF21,
    BlockTopK,
    Quantize,
    RandomK,
    Sign,
    TopK,
    break_even,
    traffic,
)

MODEL = [torch.zeros(2000, 1000), torch.zeros(1000), torch.zeros(0)]


@pytest.mark.parametrize(
    ("compressor", "bits"),
    [
        (TopK(ratio=0.01, indices="abs32"), 0.01 * 64),
        (TopK(ratio=0.01, values="bfloat16"), 0.01 * 32),
        (BlockTopK(k=64, block=4096, values="bfloat16"), 28 / 64),
        (BlockTopK(k=64, block=4096, values=Quantize(bits=2)), 14 / 64),
        (RandomK(ratio=0.01), 0.01 * 32),
        (Sign(), 1),
        (Quantize(bits=4), 4),
    ],
    ids=repr,
)
def test_payloads_have_the_bits_of_their_format(compressor, bits):
    told = traffic(EF21(compressor), MODEL, world=9)
    whole = 4 * 1000 + 3 * 64  # the small tensor is sent whole; three headers
    assert told.payload == pytest.approx(2_000_000 * bits / 8 + whole, rel=0.01)
    assert told.compressed == 8 * told.payload
    assert told.dense == 2 * 4 * 2_001_000 * 8 // 9
    assert told.payload % 16 == 0


@pytest.mark.parametrize(
    ("world", "bits", "percent"),
    [(8, (32, 32), 6.3), (64, (16, 16), 1.6), (256, (16, 12), 0.45), (64, (2, 12), 3.6)],
)
def test_where_sparse_and_dense_meet(world, bits, percent):
    """The table of docs/compression.md, against dense bf16."""
    density = break_even(world, *bits)
    assert 100 * density == pytest.approx(percent, rel=0.03)
    if bits == (32, 32):
        for factor, pays in ((0.97, True), (1.03, False)):
            method = EF21(TopK(ratio=factor * density, indices="abs32"))
            assert traffic(method, MODEL[:1], world, torch.bfloat16).pays == pays


def test_traffic_is_what_an_all_gather_brings():
    parameters = [torch.zeros(1000, 100), torch.zeros(50)]
    method = EF21(TopK(ratio=0.01, values="bfloat16"))
    state = method.init(parameters)
    payload = method.encode(state, parameters)
    told = traffic(method, parameters, world=8)
    assert told.compressed == 7 * payload.numel()
    assert told.dense == 2 * 4 * 100_050 * 7 // 8
    assert told.pays
    assert not traffic(method, parameters, world=300, dtype=torch.bfloat16).pays


def test_a_line_says_which_is_fewer():
    line = str(traffic(EF21(TopK(ratio=0.01)), [torch.zeros(100_000)], world=8))
    assert line == "8 ranks: 42,560 bytes compressed, 700,000 dense: fewer (0.06 times)"
    assert "no fewer" in str(traffic(EF21(TopK(ratio=0.5)), MODEL, world=64))
    regions = traffic(EF21(TopK(ratio=0.01)), MODEL, world=512, exchange="regions")
    assert regions.pays
    assert not traffic(EF21(TopK(ratio=0.01)), MODEL, world=512).pays


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: traffic(EF21(TopK(k=1)), [], 1.5), "traffic: world: got 1.5, expected an integer"),
        (lambda: traffic(EF21(TopK(k=1)), [], 0), "traffic: world: got 0, expected an integer of"),
        (lambda: traffic(EF21(TopK(k=1)), [], 2, exchange="x"), "traffic: exchange: got 'x', exp"),
        (lambda: break_even(0, 1, 1), "break_even: world: got 0, expected an integer of at least"),
        (lambda: break_even(2, -1, 1), "break_even: value_bits: got -1, expected a number of at"),
        (lambda: break_even(2, 0, 0), "break_even: value_bits, index_bits: got (0, 0), expected "),
    ],
)
def test_refusals(call, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
