# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What a step refuses that takes tensors without a look at each: as ever, with nothing written."""

import pytest
import torch

from tests.helpers import assign, run, same_bits, snapshot, values
from tests.optim.plain_setting import SHAPES, family_after, forbid, looking


def _wrong_rate(optimizer, params):
    optimizer.param_groups[0]["lr"] = -1.0


def _wrong_state(optimizer, params):
    state = optimizer.state[params[4]]
    name = next(name for name in state if name != "step")
    state[name] = torch.zeros(99)


def _wrong_step(optimizer, params):
    optimizer.state[params[-1]]["step"] = torch.zeros((), dtype=torch.float64)


def _wrong_gradient(optimizer, params):
    params[-1].data = params[-1].data.double()
    params[-1].grad = params[-1].grad.double()
    params[-1].data = params[-1].data.float()


def _missing_setting(optimizer, params):
    del optimizer.param_groups[0]["betas" if "betas" in optimizer.param_groups[0] else "eps"]


def _sparse_gradient(optimizer, params):
    params[1].grad = torch.ones(100).to_sparse()


def _shared_memory(optimizer, params):
    params[1].data = params[0].data.view(-1)[:100]


def _overlap(optimizer, params):
    params[1].data = torch.ones(1).expand(100)


WRONGS = [
    _wrong_rate,
    _wrong_state,
    _wrong_step,
    _wrong_gradient,
    _missing_setting,
    _sparse_gradient,
    _shared_memory,
    _overlap,
]


@pytest.mark.parametrize("spoil", WRONGS, ids=lambda spoil: spoil.__name__[1:])
def test_what_is_wrong_is_said_as_ever_with_nothing_written(family, spoil):
    said = []
    for prepare in (lambda optimizer: optimizer, looking):
        data, params, optimizer = family.start(SHAPES, steps=3)
        prepare(optimizer)
        run(optimizer, params, data.grads[:2])
        assign(params, data.to().grads[2])
        spoil(optimizer, params)
        before, versions = snapshot(optimizer), [p._version for p in params]
        with pytest.raises((KeyError, RuntimeError, TypeError, ValueError)) as error:
            optimizer.step()
        assert same_bits(snapshot(optimizer), before)
        assert [p._version for p in params] == versions
        said.append((error.type, str(error.value)))
    assert said[0] == said[1]


def test_an_error_leaves_no_trace_in_later_steps(family, monkeypatch):
    data, params, optimizer = family.start(SHAPES)
    run(optimizer, params, data.grads[:2])
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        run(optimizer, params, data.grads[2:3])
    optimizer.param_groups[0]["lr"] = rate
    forbid(monkeypatch, optimizer, "_collect")
    run(optimizer, params, data.grads[2:])
    assert same_bits(values(params), values(family_after(family, data, 4)))
