# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The two phases of LAMB as functions: what test_steps.py does not say of every step."""

import copy

import pytest
import torch

from largebatch import ops
from largebatch.reference import lamb as reference
from tests.helpers import same_bits
from tests.ops.steps import LAMB_STEP, SHAPES

HYPER, tensors, second = LAMB_STEP.hyper, LAMB_STEP.tensors, LAMB_STEP.second


def test_first_phase_does_not_touch_weights(backend):
    lists = tensors(backend.device)
    before = copy.deepcopy(lists)
    ops.lamb_moments(**lists, **HYPER)
    assert same_bits(lists["params"], before["params"])
    assert same_bits(lists["grads"], before["grads"])
    assert [t.item() for t in lists["steps"]] == [4.0] * len(SHAPES)


def test_phases_write_what_is_theirs():
    lists = tensors(shapes=[(30,)])
    versions = {name: given[0]._version for name, given in lists.items()}
    sums = ops.lamb_moments(**lists, **HYPER)
    moved = {name for name, given in lists.items() if given[0]._version > versions[name]}
    assert moved == {"exp_avgs", "exp_avg_sqs", "steps"}
    versions = {name: given[0]._version for name, given in lists.items()}
    ops.lamb_apply(**second(lists), sums=sums, **HYPER)
    moved = {name for name, given in lists.items() if given[0]._version > versions[name]}
    assert "params" in moved
    assert "grads" not in moved


def test_second_phase_under_a_scaler_needs_the_gradient_norm():
    lists = tensors()
    sums = torch.ones(len(SHAPES), 2, dtype=torch.float64)
    before = copy.deepcopy(lists)
    for module in (ops, reference):
        with pytest.raises(ValueError, match="grad_sq_sum"):
            module.lamb_apply(**second(lists), sums=sums, **HYPER, grad_scale=torch.tensor(2.0))
    assert same_bits(lists["params"], before["params"])


@pytest.mark.parametrize(
    "sums",
    [torch.ones(2, 2), torch.ones(3, 2).double(), torch.ones(4).double(), None],
    ids=["fp32", "rows", "flat", "None"],
)
def test_bad_sums_are_named(sums):
    lists = tensors(shapes=[(2, 3), (5,)])
    before = copy.deepcopy(lists)
    with pytest.raises((TypeError, ValueError), match="sums"):
        ops.lamb_apply(**second(lists), sums=sums, **HYPER)
    assert same_bits(lists["params"], before["params"])


def test_unknown_choice_is_named():
    with pytest.raises(ValueError, match="decay"):
        ops.lamb_moments(**tensors(shapes=[(5,)]), **HYPER | dict(decay="none"))
