# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How the tests tell a step that looks at each tensor from one that does not."""

from tests.helpers import leaves, run

SHAPES = [(20, 30), (100,), (7,), (), (0,), (3, 4, 5)]


def forbid(monkeypatch, optimizer, method):
    """Let the test fail if the optimizer calls a method from now on."""

    def called(*_):
        raise AssertionError(f"{method} was called")

    monkeypatch.setattr(optimizer, method, called)


def looking(optimizer):
    """Let every step of the optimizer look at every tensor, as the first one does."""
    optimizer._step_plain = lambda: False
    return optimizer


def family_after(family, data, steps):
    """Return the parameters after some steps that look at every tensor."""
    params = leaves(data.to().params)
    run(looking(family.make(params)), params, data.grads[:steps])
    return params
