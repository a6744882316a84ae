# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The two phases of LARS as functions: what test_steps.py does not say of every step."""

import copy

import pytest

from largebatch import ops
from tests.helpers import same_bits
from tests.ops.steps import LARS_STEP

HYPER, tensors = LARS_STEP.hyper, LARS_STEP.tensors


def test_first_phase_writes_nothing(backend):
    lists = tensors(backend.device)
    before = copy.deepcopy(lists)
    ops.lars_norms(lists["params"], lists["grads"])
    for argument, given_ in lists.items():
        assert same_bits(given_, before[argument])


def test_momentum_needs_buffers():
    lists = tensors(shapes=[(2, 3), (5,)]) | dict(momentum_buffers=[])
    before = copy.deepcopy(lists)
    with pytest.raises(ValueError, match="momentum_buffers"):
        LARS_STEP(ops, lists, HYPER)
    for argument, given in lists.items():
        assert same_bits(given, before[argument])


def test_dampening_with_lr_in_momentum_is_refused():
    with pytest.raises(ValueError, match="dampening"):
        LARS_STEP(ops, tensors(shapes=[(5,)]), HYPER | dict(dampening=0.5, lr_in_momentum=True))
