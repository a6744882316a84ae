# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The AGVM oracle against what follows from the paper."""

import math

import pytest
import torch

from largebatch.reference import agvm
from tests.conftest import assert_close

F64 = torch.float64


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# ---- phi -----------------------------------------------------------------------------------------


def test_variance_is_the_one_of_the_paper_without_the_rate():
    # Paper, section 3: the variance of normalised halves, Phi = 1/2 E |a/|a| - b/|b||^2.
    a, b = gaussian(50), gaussian(50, seed=1)
    phi = agvm.variances(agvm.half_dots([a], [b], ((1, 0), (0, 1))))
    expected = (a / a.norm() - b / b.norm()).square().sum() / 2
    assert_close(phi, expected[None], "formula")


def test_variance_has_no_scale():
    a, b = gaussian(50), gaussian(50, seed=1)
    sums = agvm.half_dots([a, 3 * a], [b, 3 * b], ((1, 0), (0, 1)))
    phi = agvm.variances(sums)
    assert_close(phi[0], phi[1], "formula")
    unequal = agvm.variances(agvm.half_dots([a], [b], ((5, 0), (0, 0.1))))
    assert_close(unequal[0], phi[0], "formula")


def test_of_parallel_orthogonal_and_opposite_halves():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0])
    sums = agvm.half_dots([a, a, a], [a, b, -a], ((1, 0), (0, 1)))
    assert agvm.variances(sums).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "sums", [(0, 1, 0), (1, 0, 0), (0, 0, 0), (math.inf, 1, 1), (1, math.nan, 1), (1, 1, math.nan)]
)
def test_degenerate_halves_have_no_variance(sums):
    phi = agvm.variances(torch.tensor([sums, (1, 1, 0.5)], dtype=F64))
    assert phi.isnan().tolist() == [True, False]


def test_norms_whose_product_overflows_have_one():
    phi = agvm.variances(torch.tensor([[1e300, 1e300, 5e299]], dtype=F64))
    assert phi.item() == pytest.approx(0.5)


@pytest.mark.parametrize(("trace", "batch"), [(30.0, 64), (3000.0, 64), (3000.0, 8)])
def test_known_gradient_and_noise_give_the_known_variance(trace, batch):
    # Halves of batches drawn from G and Sigma; the closed form is a ratio of means.
    n, draws = 2000, 200
    g = gaussian(n)
    deviation = gaussian(n, seed=1).exp()  # Sigma is diagonal, and not a multiple of 1
    deviation *= math.sqrt(trace) / deviation.norm()
    noise = gaussian(2, draws, n, seed=2) * deviation * math.sqrt(2 / batch)
    sums = agvm.half_dots(list(g + noise[0]), list(g + noise[1]), ((1, 0), (0, 1)))
    measured = agvm.variances(sums.mean(dim=0, keepdim=True)).item()
    expected = agvm.expected_variance(g, trace, batch).item()
    assert measured == pytest.approx(expected, rel=0.02)
    x = 2 * trace / (batch * g.square().sum().item())
    assert expected == pytest.approx(x / (1 + x), rel=1e-12)


# ---- The identities ------------------------------------------------------------------------------


def test_sum_and_alternating_sum_hold_both_halves():
    grads = [gaussian(40, seed=j) for j in range(6)]
    s = sum(grads)
    h = sum((-1) ** j * g for j, g in enumerate(grads))
    a, b = sum(grads[::2]), sum(grads[1::2])
    raw = agvm.half_dots([s], [h], ((1, 0), (0, 1)))
    expected = torch.stack([a @ a, b @ b, a @ b])[None]
    assert_close(agvm.from_sum_and_difference(raw), expected, "formula")
    combined = agvm.half_dots([s], [h], ((0.5, 0.5), (0.5, -0.5)))
    assert_close(combined, expected, "formula")


# ---- Adam-type -----------------------------------------------------------------------------------


def test_preconditioned_half_is_the_step_of_adam_without_momentum():
    p = torch.nn.Parameter(gaussian(20))
    adam = torch.optim.Adam([p], lr=1.0, betas=(0.0, 0.8), eps=1e-3)
    for seed in range(3):
        p.grad = gaussian(20, seed=seed)
        adam.step()
    v = adam.state[p]["exp_avg_sq"].clone()
    half, before = gaussian(20, seed=9), p.detach().clone()
    p.grad = half
    adam.step()
    # Adam divides v by 1 - beta2^t: told of an eps and a v that this cancels in, it is the same.
    correction = math.sqrt(1 - 0.8**4)
    direction = agvm.precondition(half, v, beta2=0.8, eps=1e-3 * correction) * correction
    assert_close(before - p.detach(), direction, "formula")


def test_grad_scale_and_unequal_weights_reach_the_preconditioned_halves():
    x, y, v = gaussian(30), gaussian(30, seed=1), gaussian(30, seed=2).square()
    options = dict(exp_avg_sq=[v], beta2=0.7, eps=0.01)
    scaled = agvm.half_dots(
        [5 * x], [5 * y], ((2, 1), (0, 3)), grad_scale=torch.tensor(5.0), **options
    )
    a, b = (agvm.precondition(h, v, 0.7, 0.01) for h in (2 * x + y, 3 * y))
    assert_close(scaled, torch.stack([a @ a, b @ b, a @ b])[None], "formula")


# ---- mu ------------------------------------------------------------------------------------------


def factors(phi, before=None, **options):
    phi = torch.tensor(phi, dtype=F64)
    before = torch.ones_like(phi) if before is None else torch.tensor(before, dtype=F64)
    return agvm.next_factors(before, phi, anchor=0, **options).tolist()


def test_noisier_modules_get_smaller_factors():
    found = factors([0.2, 0.1, 0.2, 0.3], momentum=0.0)
    roots = [1.0, math.sqrt(2), 1.0, math.sqrt(2 / 3)]
    assert found == pytest.approx(roots, rel=1e-5)


def test_ratio_is_clamped_before_the_root():
    found = factors([0.1, 0.1 / 30, 1.0], momentum=0.0)
    assert found == pytest.approx([1.0, math.sqrt(10), math.sqrt(0.5)], rel=1e-12)
    found = factors([0.1, 0.001, 1.0], momentum=0.0, clamp=(0.25, 4.0))
    assert found == pytest.approx([1.0, 2.0, 0.5], rel=1e-12)


def test_millionth_is_in_numerator_and_denominator():
    found = factors([0.0, 1e-6], momentum=0.0)
    assert found == pytest.approx([1.0, math.sqrt(0.5)], rel=1e-12)
    assert factors([1e-6, 0.0], momentum=0.0)[1] == pytest.approx(math.sqrt(2), rel=1e-12)


def test_momentum_is_a_moving_average():
    found = factors([0.4, 0.1], before=[1.0, 1.5])
    assert found[1] == pytest.approx(0.97 * 1.5 + 0.03 * 2.0, rel=1e-5)
    assert factors([0.4, 0.1], before=[1.0, 1.5], momentum=0.5)[1] == pytest.approx(1.75, rel=1e-5)


def test_anchor_stays_one_to_the_bit():
    mu = [1.0, 1.0]
    for k in range(50):
        mu = factors([0.1 + 0.01 * k, 0.3], before=mu, momentum=0.9)
        assert mu[0] == 1.0


def test_a_module_without_a_variance_keeps_its_factor_and_all_do_without_the_anchors():
    nan = math.nan
    found = factors([0.4, nan, 0.1], before=[1.0, 0.8, 1.0], momentum=0.0)
    assert found == pytest.approx([1.0, 0.8, 2.0], rel=1e-5)
    assert factors([nan, 0.1, 0.1], before=[1.0, 0.8, 1.2]) == [1.0, 0.8, 1.2]
