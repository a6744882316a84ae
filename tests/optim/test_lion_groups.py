# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion-K with functions of groups and of whole tensors: what their steps must be, in any shape.

By definition where there is one (a row of the step of the group lasso has a root mean square of 1),
and by the oracle.
"""

import pytest
import torch

from largebatch.optim import LionK, kappa
from largebatch.reference import lion
from tests.conftest import assert_close
from tests.helpers import leaves, problem, run, same_bits

# Rows longer than a tile of 16384, many short ones, few columns and many, more dimensions.
SHAPES = [(3, 40000), (5000, 3), (1820, 9), (300, 70), (70, 129, 3, 3), (1, 7), (7, 1)]


def first_step(backend, k, grads):
    """Return u = K'(g) as the first step of weights at 0 shows it, on the CPU."""
    params = leaves([torch.zeros_like(g, device=backend.device) for g in grads])
    optimizer = LionK(params, lr=1.0, betas=(0.0, 0.9), kappa=k)
    run(optimizer, params, [[g.to(backend.device) for g in grads]])
    return [-p.detach().cpu() for p in params]


def gradients(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def rows(x, axis, size=1):
    x = x.movedim(axis, 0)
    return x.reshape(x.shape[0] // size, -1)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("axis", ["row", "column"])
def test_groups_are_normalised_by_themselves(backend, axis, size):
    grads, axis_number = [size * g for g in gradients()], int(axis == "column")
    for g in grads:
        g.select(axis_number, 0).zero_()
    for g, u in zip(grads, first_step(backend, kappa.GroupLasso(axis), grads), strict=True):
        given, found = rows(g, axis_number), rows(u, axis_number)
        assert not found[0].any()
        norm = given[1:].double().norm(dim=1, keepdim=True)
        assert_close(found[1:], given[1:].double() / norm * given.shape[1] ** 0.5)
        rms = found[1:].double().square().mean(dim=1).sqrt()
        assert torch.allclose(rms, torch.ones_like(rms), rtol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((96, 200), 0), ((200, 96), 1), ((96, 4, 5), 0)])
@pytest.mark.parametrize("heads", [1, 2, 6])
def test_heads_are_normalised_together(backend, shape, axis, heads):
    size = 96 // heads
    sizes = 10.0 ** (torch.arange(96) // size)  # of a head each its own
    g = (torch.randn(shape).movedim(axis, -1) * sizes).movedim(-1, axis).contiguous()
    k = kappa.GroupLasso.heads(size, axis="column" if axis else "row")
    (u,) = first_step(backend, k, [g])
    found = rows(u, axis, size)
    assert found.shape[0] == heads
    rms = found.double().square().mean(dim=1).sqrt()
    assert torch.allclose(rms, torch.ones(heads).double(), rtol=1e-6)
    each = rows(u, axis).double().square().mean(dim=1).sqrt()
    assert (each - 1).abs().max() > 1e-2  # and not one by one
    assert torch.equal(u.sign(), g.sign())


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    ("k", "mean"),
    [
        (kappa.L2(), lambda u: u.square().mean().sqrt()),
        (kappa.Lp(1.5), lambda u: (u.abs() ** 3).mean() ** (1 / 3)),
        (kappa.LInf(), lambda u: u.abs().mean()),
        (kappa.L2Inf(), lambda u: rows(u, 0).square().mean(dim=1).sqrt().mean()),
    ],
    ids=["l2", "lp", "l_inf", "l2_inf"],
)
def test_steps_of_norms_have_a_mean_of_one(backend, k, mean, size):
    grads = [size * g for g in gradients()]
    for g, u in zip(grads, first_step(backend, k, grads), strict=True):
        assert mean(u.double()).item() == pytest.approx(1, rel=1e-6)
        assert (u.double() * g.double()).sum() > 0


@pytest.mark.parametrize("axis", ["row", "column"])
def test_entropies_sum_to_one(backend, axis):
    grads = gradients()
    axis_number = int(axis == "column")
    for u in first_step(backend, kappa.Entropy(0.5, axis), grads):
        total = rows(u, axis_number).double().sum(dim=1)  # u is the negative of a softmax
        assert torch.allclose(total, -torch.ones_like(total), rtol=1e-5)
    for u, g in zip(first_step(backend, kappa.SignedEntropy(0.5, axis), grads), grads, strict=True):
        total = rows(u, axis_number).double().abs().sum(dim=1)
        assert (total <= 1 + 1e-6).all()
        assert torch.equal(u.sign(), g.sign())


@pytest.mark.parametrize("k", [kappa.LInf(), kappa.L2Inf(), kappa.TopK(1)], ids=repr)
def test_of_equals_the_first_moves(backend, k):
    g = torch.zeros(40, 500)
    g[[3, 7, 30], [400, 2, 2]] = torch.tensor([-2.0, 2.0, 2.0])
    (u,) = first_step(backend, k, [g])
    assert u.nonzero().tolist() == [[3, 400]]
    assert u[3, 400] < 0


@pytest.mark.parametrize(
    "k",
    [
        kappa.Huber(0.5, relative=True),
        kappa.TruncatedL1(0.5, relative=True),
        kappa.SoftSign(0.5, relative=True),
        kappa.LogCosh(0.5, relative=True),
    ],
    ids=repr,
)
def test_relative_thresholds_follow_the_size_of_the_momentum(backend, k):
    grads = [g.clone() for g in gradients()]
    expected = first_step(backend, k, grads)
    for size in (2.0**-60, 2.0**60):
        scaled = first_step(backend, k, [size * g for g in grads])
        assert_close(scaled, expected)
    assert not any(u.any() for u in first_step(backend, k, [torch.zeros_like(g) for g in grads]))


@pytest.mark.parametrize("name", ["group_lasso", "l2", "l_inf", "l2_inf", "squared_l1"])
def test_a_row_that_is_not_finite_leaves_the_others_of_its_kind_alone(backend, name):
    data = problem([(30, 400), (70,)], steps=1)
    clean = data.to()
    data.grads[0][0][4, 100] = torch.nan
    results = []
    for given in (data, clean):
        given = given.to(backend.device)
        params = leaves(given.params)
        optimizer = LionK(params, lr=0.01, kappa=name)
        run(optimizer, params, given.grads)
        results.append([p.detach().cpu() for p in params])
        counted = optimizer.nonfinite.item()
        assert counted == (len(results) == 1)
    (broken, other), (whole, same) = results
    assert same_bits(other, same)  # another tensor
    if name == "group_lasso":  # and another row
        others = torch.arange(30) != 4
        assert same_bits(broken[others], whole[others])


GROUPED = [
    kappa.GroupLasso(),
    kappa.GroupLasso("column", scale="none"),
    kappa.Entropy(0.01),
    kappa.SignedEntropy(0.01, axis="column"),
    kappa.Entropy(0.01, axis=None),
    kappa.L2Inf("column"),
    kappa.L2(),
    kappa.Lp(3.0),
    kappa.SquaredL1(),
    kappa.Huber(0.5, relative=True),
]


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("k", GROUPED, ids=repr)
def test_matches_the_oracle(backend, k, state_dtype):
    data = problem(SHAPES[:4], steps=3)
    params = [p.clone() for p in data.params]
    coded = {None: torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[state_dtype]
    exp_avgs = [torch.zeros_like(p, dtype=coded) for p in params]
    scales = [torch.zeros(-(-p.numel() // 128)) for p in params]
    steps = [torch.zeros(()) for _ in params]
    hyper = dict(lr=2.0**-7, betas=(0.9, 0.99), weight_decay=0.1, stochastic_rounding=True)
    for grads in data.grads:
        lion.lion_step(params, grads, exp_avgs, steps, kappa=k, scales=scales, **hyper)
    data = data.to(backend.device)
    ours = leaves(data.params)
    optimizer = LionK(ours, **hyper, kappa=k, state_dtype=state_dtype)
    run(optimizer, ours, data.grads)
    assert same_bits([optimizer.state[p]["exp_avg"].cpu() for p in ours], exp_avgs)
    assert_close([p.detach() for p in ours], params, scale=0.05)


@pytest.mark.parametrize("grads", ["like the weights", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "k", [kappa.GroupLasso(), kappa.GroupLasso("column"), kappa.L2()], ids=repr
)
def test_sixteen_bit_weights_without_masters(backend, k, dtype, grads):
    data = problem(SHAPES[:4], steps=2)
    data = data.to(dtype=dtype, grad_dtype=dtype if grads == "like the weights" else None)
    hyper = dict(lr=2.0**-5, betas=(0.9, 0.99), weight_decay=0.1, stochastic_rounding=False)
    params = [p.clone() for p in data.params]
    exp_avgs = [torch.zeros_like(p, dtype=torch.float32) for p in params]
    steps = [torch.zeros(()) for _ in params]
    for g in data.grads:
        lion.lion_step(params, g, exp_avgs, steps, kappa=k, **hyper)
    data = data.to(backend.device)
    ours = leaves(data.params)
    for p in ours:
        if hasattr(p, "grad_dtype"):  # a torch that would refuse wider gradients
            p.grad_dtype = None
    optimizer = LionK(ours, **hyper, kappa=k, master_weights=False)
    run(optimizer, ours, data.grads)
    assert same_bits([optimizer.state[p]["exp_avg"].cpu() for p in ours], exp_avgs)
    for p, expected in zip(ours, params, strict=True):
        # Sums in another order may turn a rounding: one unit in the last place, of few weights.
        p = p.detach().cpu()
        largest = expected.abs().max().item()
        assert torch.allclose(p, expected, rtol=0, atol=torch.finfo(dtype).eps * largest)
        assert (p != expected).float().mean() < 1e-2


@pytest.mark.parametrize("state_dtype", [None, "int8"])
@pytest.mark.parametrize("k", [kappa.L1(), kappa.Huber(0.003)], ids=repr)
def test_cautious_updates_count_over_tensors_of_any_size(backend, k, state_dtype):
    data = problem([(3, 40000), (5000, 3), (31,), (1,)], steps=3)
    results = []
    for fused in (None, False):  # the second is the oracle
        given = data.to(backend.device)
        params = leaves(given.params)
        optimizer = LionK(
            params, lr=2.0**-7, kappa=k, cautious=True, state_dtype=state_dtype, fused=fused
        )
        run(optimizer, params, given.grads)
        results.append([p.detach() for p in params])
        results[-1] += [optimizer.state[p]["exp_avg"] for p in params]
    assert same_bits(*results)
