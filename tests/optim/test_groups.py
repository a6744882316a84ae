# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""param_groups keeps biases and norms out of decay and adaptation."""

import torch

from largebatch.optim import param_groups
from tests.conftest import assert_close
from tests.helpers import assign


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 2),
    )


def test_matrices_in_one_group_vectors_in_the_other():
    net = model()
    matrices, vectors = param_groups(net, weight_decay=0.3)
    assert [p.shape for p in matrices["params"]] == [(4, 3, 3, 3), (2, 16)]
    assert matrices["weight_decay"] == 0.3
    assert all(p.ndim == 1 for p in vectors["params"])
    assert len(vectors["params"]) == 4
    assert (vectors["weight_decay"], vectors["adapt"]) == (0.0, False)


def test_frozen_parameters_are_left_out_and_tied_ones_appear_once():
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    net["b"].bias.requires_grad_(False)
    matrices, vectors = param_groups(net)
    assert [id(p) for p in matrices["params"]] == [id(net["a"].weight)]
    assert [id(p) for p in vectors["params"]] == [id(net["a"].bias)]


def test_optimizers_take_it(family):
    net = model()
    optimizer = family.make(param_groups(net, weight_decay=0.1), **family.independent)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    first = optimizer.param_groups[0]["params"]
    vectors = dict(weight_decay=0.0, adapt=False)  # who has no local rates ignores the latter
    oracle = family.reference(
        [
            dict(params=[p for p in params if p.ndim > 1], weight_decay=0.1),
            dict(
                params=[p for p in params if p.ndim < 2],
                **{k: v for k, v in vectors.items() if k in family.oracle.defaults},
            ),
        ],
        **family.independent,
    )
    assert len(first) == 2
    grads = [torch.randn(p.shape) for p in params]
    assign(params, grads)
    optimizer.step()
    oracle.step(grads)
    assert_close(params, oracle.params)
