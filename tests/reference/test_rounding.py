# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Random bits, stochastic rounding and int8 blocks against vectors, scalars and statistics."""

import math

import numpy as np
import pytest
import torch

from largebatch.reference import rounding
from tests.helpers import same_bits

INF, NAN = math.inf, math.nan
ALL_BITS = torch.arange(65536)  # every value that 16 random bits can have


# ---- Random bits ---------------------------------------------------------------------------------

# Random123's kat_vectors: counter, key, output.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter, key, expected):
    assert [w.item() for w in rounding.philox(words(counter), words(key))] == words(expected)


def philox_of_integers(counter, key):
    """Philox4x32-10 as the paper has it, on Python's unbounded integers."""
    left0, right0, left1, right1 = counter
    key0, key1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * left0, 0xCD9E8D57 * left1
        left0, right0 = product1 // 2**32 ^ right0 ^ key0, product1 % 2**32
        left1, right1 = product0 // 2**32 ^ right1 ^ key1, product0 % 2**32
        key0, key1 = (key0 + 0x9E3779B9) % 2**32, (key1 + 0xBB67AE85) % 2**32
    return [left0, right0, left1, right1]


@pytest.mark.parametrize(
    ("seed", "tensor_id", "step"),
    [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0x123456789ABCDEF0, 0xFEDCBA9876543210, 70000)],
)
@pytest.mark.parametrize("numel", [0, 1, 3, 4, 5, 1001])
def test_random_bits_are_those_of_the_counter(numel, seed, tensor_id, step):
    weight, momentum = rounding.random_bits(numel, step, seed=seed, tensor_id=tensor_id)
    assert weight.shape == momentum.shape == (numel,)
    key = seed % 2**32, seed >> 32 ^ tensor_id >> 32
    for i in range(numel):
        counter = i // 4, 0, step, tensor_id % 2**32
        word = philox_of_integers(counter, key)[i % 4]
        assert (weight[i].item(), momentum[i].item()) == (word % 2**16, word >> 16)


def test_random_bits_of_a_step_on_the_device():
    a = rounding.random_bits(9, torch.tensor(5.0), seed=3, tensor_id=4)
    assert same_bits(a, rounding.random_bits(9, 5, seed=3, tensor_id=4))
    assert not same_bits(a, rounding.random_bits(9, 6, seed=3, tensor_id=4))


def test_random_bits_of_negative_seeds_are_those_modulo_2_64():
    a = rounding.random_bits(9, 0, seed=-1, tensor_id=0)
    assert same_bits(a, rounding.random_bits(9, 0, seed=2**64 - 1, tensor_id=0))


def test_random_bits_are_uniform():
    draws = torch.cat(rounding.random_bits(2**17, 3, seed=7, tensor_id=1))
    counts = torch.bincount(draws >> 8, minlength=256).double()
    chi2 = ((counts - 1024).square() / 1024).sum()
    assert abs(chi2 - 255) < 4 * (2 * 255) ** 0.5
    both = torch.stack(rounding.random_bits(2**17, 3, seed=7, tensor_id=1)).double()
    assert abs(torch.corrcoef(both)[0, 1]) < 4 / 2**8.5


# ---- bf16 ----------------------------------------------------------------------------------------


def floats(*patterns):
    return torch.from_numpy(np.array(patterns, dtype=np.uint32).view(np.float32))


def patterns_of(x):
    return [value & 0xFFFF for value in x.view(torch.int16).tolist()]


@pytest.mark.parametrize(
    "x", [1.0, -1.0, 1 / 3, -1 / 3, 1e-3, 3e-39, -1e-45, 1e-41, 3.38e38, 0.0, -0.0, 1.00390625]
)
def test_bfloat16_goes_up_as_often_as_its_bits_say(x):
    x = torch.tensor(x)
    low = x.view(torch.int32).item() & 0xFFFF
    down = (x.view(torch.int32) & -65536).view(torch.float32)
    up = (x.view(torch.int32) & -65536).add(65536).view(torch.float32)
    rounded = rounding.round_bfloat16(x.expand(65536), ALL_BITS).float()
    assert (rounded == up).sum() == low  # all of the draws, each once
    assert (rounded == down).sum() == 65536 - low
    if low:
        mean = rounded.double().mean()
        assert mean == x.double()  # exactly


def test_bfloat16_mean_of_random_draws():
    # Shares p of the draws go up: their number is binomial.
    for x in (0.1, -0.7, 1e-40, 12345.678):
        value = torch.full((65536,), x)
        share = (value.view(torch.int32)[0].item() & 0xFFFF) / 65536
        bits, _ = rounding.random_bits(65536, 0, seed=11, tensor_id=0)
        rounded = rounding.round_bfloat16(value, bits).float()
        ups = (rounded.abs() > abs(value[0])).sum().item()
        assert abs(ups - share * 65536) < 4 * (65536 * share * (1 - share)) ** 0.5


def test_bfloat16_beyond_the_largest_is_infinity_as_its_bits_say():
    x = floats(0x7F7F4000, 0xFF7F4000).repeat_interleave(65536)  # a quarter above the largest
    rounded = rounding.round_bfloat16(x, ALL_BITS.repeat(2)).float()
    assert torch.isinf(rounded[:65536]).sum() == torch.isinf(rounded[65536:]).sum() == 0x4000
    assert (rounded[:65536] > 0).all() and (rounded[65536:] < 0).all()


@pytest.mark.parametrize("bits", [None, torch.tensor([0xFFFF]), torch.tensor([0])])
def test_bfloat16_of_what_is_not_finite(bits):
    given = [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x7F800001, 0x7FFFFFFF]
    expected = [0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7FC0, 0x7FFF]
    for pattern, kept in zip(given, expected, strict=True):
        assert patterns_of(rounding.round_bfloat16(floats(pattern), bits)) == [kept]


def test_bfloat16_nearest_is_torchs():
    g = torch.Generator().manual_seed(0)
    pattern = torch.randint(-(2**31), 2**31, (100_000,), generator=g, dtype=torch.int64)
    ties = pattern.clone() & ~0xFFFF | 0x8000
    x = torch.cat([pattern, ties]).to(torch.int32).view(torch.float32)
    x = x[~x.isnan()]
    assert same_bits(rounding.round_bfloat16(x), x.bfloat16())


def test_bfloat16_keeps_shape_and_strides():
    x = torch.randn(5, 3).T
    assert same_bits(rounding.round_bfloat16(x), x.bfloat16())
    assert rounding.round_bfloat16(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert rounding.round_bfloat16(torch.tensor(0.1)).shape == ()


# ---- int8 ----------------------------------------------------------------------------------------


def encoded_by_hand(m, bits):
    """One block, element by element in NumPy's float32."""
    f = np.float32
    m = m.numpy()
    largest = max((abs(x) for x in m if np.isfinite(x)), default=f(0))
    s = max(f(largest), f(2.0**-100))
    codes = []
    for i, x in enumerate(m):
        if not np.isfinite(x):
            codes.append(-128)
            continue
        a = abs(x)
        t = f(127) * f(a / f(f(f(0.5) * s) + f(f(0.5) * a)))
        u = f(0.5) if bits is None else f(bits[i].item()) / f(65536)
        code = min(int(np.floor(f(t + u))), 127)
        codes.append(-code if x < 0 else code)
    return codes, float(s)


def decoded_by_hand(codes, scale):
    f = np.float32
    out = []
    for c in codes:
        a = f(abs(int(c)))
        x = f(scale) * f(a / f(f(254) - a))
        out.append(f(np.nan) if c == -128 else -x if c < 0 else x)
    return out


BLOCKS = {
    "random": torch.randn(128, generator=torch.Generator().manual_seed(1)),
    "wide": torch.randn(128, generator=torch.Generator().manual_seed(2)).pow(9),
    "tiny": 1e-42 * torch.randn(128, generator=torch.Generator().manual_seed(3)),
    "large": 3e38 * torch.linspace(-1, 1, 128),
    "zeros": torch.zeros(128),
    "zeros of both signs": torch.tensor([0.0, -0.0] * 64),
    "broken": torch.tensor([1.0, NAN, -2.0, INF, -INF, 0.5, -0.0]),
    "all broken": torch.tensor([NAN, INF, -INF]),
    "one": torch.tensor([-0.3]),
    "at the floor": torch.tensor([2.0**-100, -(2.0**-101), 2.0**-110]),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_int8_is_its_formula_bit_for_bit(name, stochastic):
    m = BLOCKS[name]
    bits = rounding.random_bits(m.numel(), 0, seed=5, tensor_id=0)[1] if stochastic else None
    codes, scales = rounding.encode_int8(m, bits)
    expected, scale = encoded_by_hand(m, bits)
    assert codes.dtype == torch.int8 and codes.tolist() == expected
    assert scales.dtype == torch.float32 and scales.tolist() == [scale]
    decoded = rounding.decode_int8(codes, scales)
    by_hand = torch.from_numpy(np.array(decoded_by_hand(expected, scale), dtype=np.float32))
    nan = by_hand.isnan()
    assert torch.equal(decoded.isnan(), nan) and same_bits(decoded[~nan], by_hand[~nan])


def test_int8_rounds_at_the_middle_between_codes():
    m = torch.randn(20 * 128, generator=torch.Generator().manual_seed(4))
    codes, _ = rounding.encode_int8(m)
    assert codes.tolist() == [c for block in m.split(128) for c in encoded_by_hand(block, None)[0]]


@pytest.mark.parametrize("numel", [0, 1, 127, 128, 129, 255, 256, 257, 1000])
def test_int8_blocks_are_independent(numel):
    m = torch.randn(numel) * torch.logspace(-30, 30, numel)
    codes, scales = rounding.encode_int8(m)
    assert codes.shape == (numel,) and scales.shape == (-(-numel // 128),)
    for i, block in enumerate(m.split(128) if numel else []):
        own, scale = rounding.encode_int8(block)
        assert same_bits(codes[128 * i : 128 * (i + 1)], own) and same_bits(
            scales[i : i + 1], scale
        )
    assert rounding.decode_int8(codes, scales).shape == (numel,)


@pytest.mark.parametrize("name", [n for n in BLOCKS if "broken" not in n])
def test_int8_error_is_at_most_a_gap_between_codes(name):
    # The gap at |m| = s x is s (1 + x)^2 / 254, the slope of decoding, and up to 1% more as the
    # slope grows until the next code. To nearest: half of it.
    m = BLOCKS[name].double()
    bits = rounding.random_bits(m.numel(), 0, seed=9, tensor_id=0)[1]
    for drawn, gaps in [(None, 0.5), (bits, 1.0)]:
        codes, scales = rounding.encode_int8(m.float(), drawn)
        s = scales.double().item()
        x = m.abs() / s
        error = (rounding.decode_int8(codes, scales).double() - m).abs()
        assert (error <= gaps * s * (1 + x) ** 2 / 254 * 1.01 + 1e-45).all()


@pytest.mark.parametrize("scale", [1.0, 3e38, 2.0**-100, 0.37])
def test_int8_codes_survive_a_round_trip(scale):
    codes = torch.arange(-127, 128).to(torch.int8).roll(1)  # each block holds the largest
    codes = torch.cat([codes[:128], codes[128:], torch.tensor([127], dtype=torch.int8)])
    scales = torch.full((2,), scale)
    again, s = rounding.encode_int8(rounding.decode_int8(codes, scales))
    assert torch.equal(again, codes) and same_bits(s, scales)


@pytest.mark.parametrize("x", [0.9, 0.5, 0.1, 0.01, 3e-3, 1e-3, 1e-6])
def test_int8_mean_is_exact_in_the_code_and_nearly_so_in_the_value(x):
    m = torch.full((517, 128), x)
    m[:, 0] = 1.0  # so that every scale is 1
    bits = torch.zeros(517, 128, dtype=torch.int64)
    drawn = torch.nonzero(m.view(-1) != 1).view(-1)[:65536]
    bits.view(-1)[drawn] = ALL_BITS
    codes, scales = rounding.encode_int8(m.view(-1), bits.view(-1))
    assert (scales == 1).all() and (codes.view(517, 128)[:, 0] == 127).all()
    t = 127 * 2 * x / (1 + x)
    assert abs(codes[drawn].double().mean() - t) <= 2**-16 + 1e-6 * t
    # Decoding is convex: the mean of the values is above x, by at most 254/253 at the least code.
    mean = rounding.decode_int8(codes, scales)[drawn].double().mean()
    draw = 2**-16 / 253  # one draw in 65536
    assert x - draw <= mean <= x * (254 / 253) + draw


def test_int8_one_broken_value_does_not_spread():
    m = BLOCKS["random"].clone()
    m[5] = 0.0
    expected, scale = rounding.encode_int8(m)
    for bad in (NAN, INF, -INF):
        m[5] = bad
        codes, scales = rounding.encode_int8(m)
        assert codes[5] == -128 and rounding.decode_int8(codes, scales)[5].isnan()
        codes[5] = 0
        assert same_bits(codes, expected) and same_bits(scales, scale)
