# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""AGVM's state: saved, loaded and copied."""

import copy
import io
import pickle

import pytest
import torch

from largebatch.optim import AGVM, LAMB, Adan
from tests.helpers import leaves, same_bits, snapshot
from tests.optim.agvm_setting import NAMES, accumulate, batches, modules_of, train, weights


def make(params, optimizer=None, **options):
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9) if optimizer is None else optimizer
    options = dict(anchor="body", interval=2, warmup=1, momentum=0.5) | options
    return AGVM(optimizer, modules_of(params), **options)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, LAMB, Adan], ids=str)
@pytest.mark.parametrize("at", range(1, 7))
def test_resumes_bit_for_bit_at_any_step(kind, at):
    options = dict(interval=3, warmup=2)
    params, given = weights(), batches(8)
    agvm = make(params, kind(params, lr=0.01), **options)
    train(agvm, params, given[:at])
    saved, middle = through_a_file(agvm.state_dict()), [p.detach().clone() for p in params]
    train(agvm, params, given[at:])
    copies = leaves(middle)
    resumed = make(copies, kind(copies, lr=0.5), **options)
    resumed.load_state_dict(saved)
    train(resumed, copies, given[at:])
    assert same_bits(snapshot(resumed), snapshot(agvm))
    for name in ("factors", "variances"):
        assert same_bits(*(list(getattr(a, name).values()) for a in (resumed, agvm)))


def test_loading_forgets_the_micro_batches_before():
    params, given = weights(), batches(3)
    agvm = make(params, interval=1)
    train(agvm, params, given[:1])
    saved, middle = copy.deepcopy(agvm.state_dict()), [p.detach().clone() for p in params]
    train(agvm, params, given[1:])
    expected = [*snapshot(agvm), *agvm.factors.values()]
    accumulate(params, given[0][0])
    agvm.micro_batch()
    agvm.load_state_dict(saved)
    for p, value in zip(params, middle, strict=True):
        p.grad = None
        p.data.copy_(value)
    train(agvm, params, given[1:])
    assert same_bits([*snapshot(agvm), *agvm.factors.values()], expected)


def test_saved_state_is_a_copy_and_of_the_optimizer_too():
    params, given = weights(), batches(4)
    agvm = make(params, interval=1)
    train(agvm, params, given[:2])
    saved = agvm.state_dict()
    assert saved["agvm"]["modules"] == NAMES
    assert saved["agvm"]["step"] == 2
    factors = saved["agvm"]["factors"].clone()
    train(agvm, params, given[2:])
    assert same_bits(saved["agvm"]["factors"], factors)
    torch.optim.SGD(params, lr=1.0).load_state_dict(saved)


def test_state_that_does_not_fit_is_refused():
    params = weights()
    agvm = make(params)
    with pytest.raises(ValueError, match=r"AGVM: state_dict has no 'agvm'.*agvm\.optimizer\.load"):
        agvm.load_state_dict(agvm.optimizer.state_dict())
    saved = agvm.state_dict()
    saved["agvm"]["modules"] = ["body", "head", "neck"]
    with pytest.raises(ValueError, match=r"AGVM: state_dict has the modules .*Name them"):
        agvm.load_state_dict(saved)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_alike(copied):
    params, given = weights(), batches(5)
    agvm = make(params, interval=2)
    train(agvm, params, given[:2])
    twins, twin = copied((params, agvm))
    for own, optimizer in ((params, agvm), (twins, twin)):
        train(optimizer, own, given[2:])
    assert same_bits(snapshot(twin), snapshot(agvm))
    assert same_bits(list(twin.factors.values()), list(agvm.factors.values()))
