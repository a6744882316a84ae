# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The rule by which MKOR-H goes on without preconditioning, on losses whose rates are known."""

import math

import pytest

from largebatch.reference import mkor


def switch(losses, **options):
    """Return the first step after which the switch has come, or None."""
    rule = mkor.Hybrid(**options)
    seen = [rule.observe(loss) for loss in losses]
    assert seen == sorted(seen)  # one way
    return seen.index(True) if True in seen else None


def test_switch_of_a_loss_that_stops_falling():
    options = dict(interval=10, patience=2, min_steps=0, momentum=0.0)
    falling = [10.0 - 0.1 * t for t in range(51)]
    assert switch(falling, **options) is None
    # From 50 on it stands still: the checks at 60 and 70 see that.
    assert switch(falling + [5.0] * 50, **options) == 70
    assert switch(falling + [5.0] * 50, **{**options, "patience": 1}) == 60
    # At a tenth of the rate and a bit more it goes on, at a bit less it does not.
    for rate, expected in ((0.0101, None), (0.0099, 70)):
        slower = [5.0 - rate * t for t in range(1, 50)]
        assert switch(falling + slower, **options) == expected


def test_switch_waits_for_min_steps_and_a_run_of_slow_checks():
    still = [10.0] * 11 + [0.0] * 400  # falls once, between the checks at 10 and at 20
    options = dict(interval=10, momentum=0.0)
    assert switch(still, patience=3, min_steps=0, **options) == 50
    assert switch(still, patience=3, min_steps=100, **options) == 120
    assert switch(still, patience=3, min_steps=101, **options) == 130
    # A fast check in between starts the count again.
    again = [10.0] * 11 + [5.0] * 30 + [0.0] * 100
    assert switch(again, patience=3, min_steps=0, **options) == 80


def test_there_is_no_way_back():
    losses = [10.0] * 11 + [9.0] * 100 + [float(-t) for t in range(100)]
    assert switch(losses, interval=10, patience=2, min_steps=0, momentum=0.0) == 40


@pytest.mark.parametrize("momentum", [0.95, 0.99])
def test_rates_are_those_of_the_averaged_loss(momentum):
    falls = [math.exp(-t / 15) for t in range(1000)]
    step = switch(falls, momentum=momentum)
    average, averages, rates = falls[0], [falls[0]], []
    for t, loss in enumerate(falls):
        average = momentum * average + (1 - momentum) * loss
        if t > 0 and t % 20 == 0:
            averages.append(average)
            rates.append((averages[-2] - averages[-1]) / 20)
    slow = [rate < 0.1 * max(rates[: k + 1]) for k, rate in enumerate(rates)]
    checks = [k for k in range(4, len(slow)) if all(slow[max(4, k - 2) : k + 1]) and k >= 6]
    assert step == 20 * (checks[0] + 1)
    assert switch([1.0 / (1 + t) for t in range(141)]) == 140  # no earlier


def test_loss_that_never_falls_does_not_switch():
    assert switch([1.0] * 500) is None
    assert switch([1.0 + t for t in range(500)]) is None


def test_losses_that_are_not_finite_leave_the_average():
    options = dict(interval=10, patience=2, min_steps=0)
    losses = [max(10.0 - 0.1 * t, 5.0) for t in range(200)]
    assert switch(losses, momentum=0.0, **options) == 70
    for t in (0, 13, 50, 70):  # the first one, one between checks, at a check, at the last
        broken = list(losses)
        broken[t] = math.nan if t % 20 else math.inf
        assert switch(broken, momentum=0.0, **options) == 70
    rule = mkor.Hybrid(momentum=0.75)
    for loss in (math.inf, 4.0, math.nan, 8.0):
        rule.observe(loss)
    assert rule.average == 5.0
    assert switch([math.nan] * 200, **options) is None
