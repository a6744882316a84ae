# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Adan as a function: what test_steps.py does not say of every step."""

import copy

import pytest

from largebatch import ops
from tests.helpers import same_bits
from tests.ops.steps import ADAN_STEP

HYPER, tensors = ADAN_STEP.hyper, ADAN_STEP.tensors


def test_first_step_does_not_look_at_the_previous_gradient(backend):
    results = []
    for filling in (0.0, float("nan")):
        lists = tensors(backend.device, steps=0)
        for t in lists["neg_pre_grads"]:
            t.fill_(filling)
        ops.adan_step(**lists, **HYPER)
        results.append([t for given in lists.values() for t in given])
    assert same_bits(*results)


def test_parts_of_a_tensor_get_the_bits_of_the_whole(backend):
    whole = tensors(backend.device, [(400,)])
    parts = copy.deepcopy(whole)
    total = ops.multi_tensor_sq_sum(whole["grads"]).sum()
    ops.adan_step(**whole, grad_sq_sum=total, **HYPER)
    for a, b in ((0, 1), (1, 34), (34, 34), (34, 400)):
        part = {
            name: [given[0].clone() if name == "steps" else given[0][a:b]]
            for name, given in parts.items()
        }
        ops.adan_step(**part, grad_sq_sum=total, **HYPER)
    for name in ("params", *ADAN_STEP.states):
        assert same_bits(parts[name], whole[name])


def test_bad_gradient_skips_the_step_under_a_scaler(backend):
    """By the norm that it takes itself, with no grad_sq_sum given."""
    lists = tensors(backend.device)
    lists["grads"][0][0, 0] = float("nan")
    before = copy.deepcopy(lists)
    ops.adan_step(**lists, grad_scale=lists["steps"][0].clone(), **HYPER)
    for argument, given in lists.items():
        assert same_bits(given, before[argument])


def test_three_betas_are_needed():
    with pytest.raises(ValueError, match="betas"):
        ops.adan_step(**tensors(shapes=[(5,)]), **HYPER | dict(betas=(0.9, 0.9)))
