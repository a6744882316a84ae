# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The tests' own instruments must be able to say no."""

import pytest
import torch

from tests.conftest import assert_close
from tests.helpers import Padded, problem, same_bits, ulp_distance


def test_padding_notices_a_write_on_either_side():
    for offset in (0, 1):
        for where in (-1, 5):
            padded = Padded([torch.ones(5), torch.ones(3)], offset=offset)
            assert padded.intact()
            first = padded.tensors[0]
            assert first.data_ptr() % 64 == 4 * offset
            beyond = first.as_strided((1,), (1,), first.storage_offset() + where)
            beyond.zero_()
            assert not padded.intact()


def test_same_bits_tells_zeros_dtypes_and_nans_apart():
    assert same_bits(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
    assert not same_bits([torch.zeros(1)], [])


def test_ulp_distance_counts_numbers():
    a = torch.tensor([1.0, 1.0, 0.0, -1.0], dtype=torch.bfloat16)
    b = torch.tensor([1.0, 1 + 2**-7, -0.0, -1 + 2**-8], dtype=torch.bfloat16)
    assert ulp_distance(a, b).tolist() == [0, 1, 0, 1]


def test_assert_close_refuses_a_ten_thousandth_of_a_percent_and_nan():
    expected = torch.randn(1000, dtype=torch.float64)
    assert_close(expected * (1 + 9e-7), expected)
    for wrong in (expected * (1 + 1.1e-6), expected * float("nan"), expected[:-1]):
        with pytest.raises(AssertionError):
            assert_close(wrong, expected)
    assert_close(torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError):
        assert_close(torch.full((3,), 1e-30), torch.zeros(3))


def test_problems_repeat():
    first, second = problem([(5,), (3, 2)]), problem([(5,), (3, 2)])
    assert same_bits(first.params, second.params)
    assert same_bits(first.grads[9], second.grads[9])
    assert not same_bits(first.grads[0], first.grads[1])
