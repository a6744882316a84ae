# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The MKOR oracle against autograd, dense K-FAC, and what follows from the equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from largebatch.reference import kfac, kron, mkor
from tests.conftest import assert_close
from tests.helpers import same_bits

F64 = torch.float64


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def definite(d, seed=0):
    x = gaussian(d, d, seed=seed)
    return x @ x.T / d + 0.1 * torch.eye(d, dtype=F64)


def joined(weight, bias):
    """Return the gradients of both as one matrix."""
    return torch.cat([weight.grad.flatten(1), bias.grad[:, None]], dim=1)


def differentiated(layer, *inputs):
    """Call a layer, with a loss that is a mean over the batch; return the gradients of outputs."""
    outputs = [layer(x) for x in inputs]
    for y in outputs:
        y.retain_grad()
    sum((y.flatten(1).sum(dim=1).sin() + y.square().flatten(1).sum(dim=1)).mean()
        for y in outputs).backward()  # fmt: skip
    return [y.grad for y in outputs]


# ---- Statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4)])
def test_statistics_of_linear_are_those_of_autograd(shape):
    layer, x = nn.Linear(4, 3, dtype=F64), gaussian(*shape)
    (dy,) = differentiated(layer, x)
    a, g = mkor.linear_statistics(x, dy)
    assert_close(g, layer.bias.grad, "formula")
    assert_close(a, torch.cat([x.flatten(0, -2).mean(dim=0), torch.ones(1)]), "formula")
    A, D = F.pad(x, (0, 1), value=1.0).flatten(0, -2), dy.flatten(0, -2)
    assert_close(D.T @ A, joined(layer.weight, layer.bias), "formula")
    assert same_bits(mkor.linear_statistics(x, dy, fold_bias=False)[0], a[:-1])


def test_calls_are_averaged_and_their_gradients_added():
    layer, x = nn.Linear(4, 3, dtype=F64), [gaussian(6, 4), gaussian(2, 5, 4, seed=1)]
    dy = differentiated(layer, *x)
    a, g = mkor.linear_statistics(x, dy)
    assert_close(g, layer.bias.grad, "formula")
    assert_close(a[:-1], (x[0].mean(dim=0) + x[1].mean(dim=(0, 1))) / 2, "formula")


CONVOLUTIONS = {
    "plain": dict(kernel_size=3),
    "one": dict(kernel_size=1),
    "stride": dict(kernel_size=(3, 2), stride=(2, 3)),
    "padding": dict(kernel_size=(2, 3), padding=(1, 2)),
    "dilation": dict(kernel_size=(2, 3), dilation=(3, 2)),
    "all": dict(kernel_size=(3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 3)),
    "same": dict(kernel_size=(3, 4), padding="same", dilation=(2, 1)),
    "valid": dict(kernel_size=3, padding="valid"),
    "circular": dict(kernel_size=3, padding=(2, 1), padding_mode="circular"),
    "reflect": dict(kernel_size=2, padding="same", padding_mode="reflect"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_statistics_of_conv_are_those_of_autograd(name):
    conv, x = nn.Conv2d(3, 5, dtype=F64, **CONVOLUTIONS[name]), gaussian(4, 3, 9, 8)
    (dy,) = differentiated(conv, x)
    A, D, positions = mkor.conv_rows(conv, x, dy)
    assert positions == dy[0, 0].numel()
    A = F.pad(A, (0, 1), value=1.0)
    assert_close(D.T @ A, joined(conv.weight, conv.bias), "formula")  # also: the order of rows
    a, g = mkor.conv_statistics(conv, x, dy)
    assert_close(g, conv.bias.grad / positions, "formula")
    assert_close(a, A.mean(dim=0), "formula")
    # The cheap way: the patches of the mean image.
    mean = mkor.conv_rows(conv, x.mean(dim=0, keepdim=True), dy[:1])[0].mean(dim=0)
    assert_close(a[:-1], mean, "formula")


def test_calls_of_conv_may_differ_in_size():
    conv, x = nn.Conv2d(3, 5, 3, dtype=F64), [gaussian(4, 3, 9, 8), gaussian(2, 3, 5, 5, seed=1)]
    dy = differentiated(conv, *x)
    alone = [mkor.conv_statistics(conv, *call) for call in zip(x, dy, strict=True)]
    a, g = mkor.conv_statistics(conv, x, dy)
    assert_close(a, (alone[0][0] + alone[1][0]) / 2, "formula")
    assert_close(g, alone[0][1] + alone[1][1], "formula")


def test_statistics_of_gradients_are_means():
    G = gaussian(3, 5)
    a, g = mkor.gradient_statistics(G)
    assert_close(a, torch.ones(3, dtype=F64) @ G / 3, "formula")
    assert_close(g, G @ torch.ones(5, dtype=F64) / 5, "formula")


def test_clipping_keeps_what_is_not_finite():
    v = torch.tensor([-101.0, 99.0, 1e30, math.inf, -math.inf, math.nan])
    clipped = mkor.clip_statistic(v, 100.0)
    assert clipped[:5].tolist() == [-100.0, 99.0, 100.0, math.inf, -math.inf]
    assert clipped[5].isnan()
    assert mkor.clip_statistic(v, None) is v


# ---- Preconditioning -----------------------------------------------------------------------------


def test_preconditioning_is_the_inverse_of_a_kronecker_product():
    # vec stacks columns: (R x L)^-1 vec(G) = vec(L^-1 G R^-1).
    L, R, G = definite(3), definite(4, seed=1), gaussian(3, 4)
    found = mkor.precondition(G, *kfac.kfac_inverses(L, R, damping=0.0))
    expected = torch.linalg.solve(torch.kron(R, L), G.T.flatten()).view(4, 3).T
    assert_close(found, expected, "fp64")


def test_factors_of_one_sample_are_its_fisher_matrix():
    layer, x = nn.Linear(4, 3, dtype=F64), gaussian(1, 4)
    (dy,) = differentiated(layer, x)
    L, R = torch.zeros(3, 3, dtype=F64), torch.zeros(5, 5, dtype=F64)
    kfac.kfac_update(L, R, F.pad(x, (0, 1), value=1.0), dy, gamma=0.0)
    vec = joined(layer.weight, layer.bias).T.flatten()
    assert_close(torch.kron(R, L), torch.outer(vec, vec), "formula")


def test_absent_sides_are_the_identity():
    G, M_L, M_R = gaussian(3, 4), definite(3), definite(4)
    for sides in ((M_L, None), (None, M_R), (None, None)):
        full = [
            torch.eye(d).double() if M is None else M for d, M in zip((3, 4), sides, strict=True)
        ]
        assert same_bits(mkor.precondition(G, *sides), mkor.precondition(G, *full))


def test_rescaling_keeps_the_norm_and_the_direction():
    G, preconditioned = gaussian(3, 4), 1e-6 * gaussian(3, 4, seed=1)
    found = mkor.rescale(G, preconditioned)
    assert found.norm().item() == pytest.approx(G.norm().item(), rel=1e-14)
    assert_close(found / found.norm(), preconditioned / preconditioned.norm(), "formula")
    assert same_bits(mkor.rescale(G, G), G)


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_without_a_usable_norm_the_gradient_passes(value):
    G, broken = gaussian(3, 4), torch.full((3, 4), value, dtype=F64)
    assert same_bits(mkor.rescale(G, broken), G)
    assert torch.equal(mkor.rescale(broken, G).nan_to_num(9.0), broken.nan_to_num(9.0))


# ---- MKOR ----------------------------------------------------------------------------------------

SHAPES = [(3, 5), (6, 3), (2, 2)]  # of G; the second has no bias


def batches(steps, rows=4, shapes=SHAPES, biased=(True, False, True), scale=0.5):
    """Return [(A, D)] of the layers, for each step."""
    return [
        [
            (
                0.3 + scale * gaussian(rows, columns - bias, seed=100 * t + i),
                gaussian(rows, d_out, seed=100 * t + i + 50) / rows,
            )
            for i, ((d_out, columns), bias) in enumerate(zip(shapes, biased, strict=True))
        ]
        for t in range(steps)
    ]


def expanded(A, columns):
    return F.pad(A, (0, columns - A.shape[1]), value=1.0)


OPTIONS = {
    "leaky": dict(update_every=1),
    "leaky, other": dict(leak=0.7, rho=5.0, update_every=3, warmup_steps=2),
    "exact": dict(variant="exact", gamma=0.8, update_every=1, stabilizer_norm="inf"),
    "paper": dict(variant="paper", update_every=1, stabilizer_threshold=1.2),
    "paper, other": dict(
        variant="paper", gamma=0.9, update_every=2, stabilizer_threshold=1.05, stabilizer_blend=0.3
    ),
    "clipped": dict(update_every=1, stat_clip=0.2),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_are_those_of_the_equations(name):
    options = {"stat_clip": 100.0, "warmup_steps": 0, "stabilizer_norm": "max", **OPTIONS[name]}
    variant, clip = options.get("variant", "leaky"), options["stat_clip"]
    blend = options.get("leak", {"leaky": 0.95, "exact": 0.9, "paper": 0.4}[variant])
    blend = options.get("stabilizer_blend", blend)
    constants = dict(gamma=options.get("gamma", 0.95), rho=options.get("rho", 1.0))
    optimizer = mkor.MKOR(SHAPES, **options)
    factors = [[torch.eye(d, dtype=F64) for d in shape] for shape in SHAPES]
    fired = 0
    for t, batch in enumerate(batches(steps=20)):
        found = optimizer.step(batch)
        for sides, shape, (A, D), step in zip(factors, SHAPES, batch, found, strict=True):
            A = expanded(A, shape[1])
            due = t < options["warmup_steps"] or t % options["update_every"] == 0
            for i, v in enumerate((D.sum(dim=0), A.mean(dim=0)) if due else ()):
                sizes = sides[i].abs()
                if options["stabilizer_norm"] == "inf":
                    sizes = sizes.sum(dim=1)
                over = (sizes.max() > options.get("stabilizer_threshold", 2.0)).item()
                fired += over
                z = blend if over or variant == "leaky" else None
                v = v.clamp(-clip, clip)
                sides[i] = kron.dense_inverse(variant, sides[i], v, blend=z, **constants)
            G = D.T @ A
            expected = sides[0] @ G @ sides[1]
            assert_close(step, expected * G.norm() / expected.norm(), "fp64", scale=1e-2)
    for layer, sides in enumerate(factors):
        assert_close(optimizer.inverses(layer), sides, "fp64")
    assert optimizer.counters.sum(dim=0).tolist() == [0, fired, 0]
    assert (fired > 0) == (variant != "leaky")


def test_factors_move_only_when_an_update_is_due():
    optimizer = mkor.MKOR(SHAPES, update_every=4, warmup_steps=2)
    moved = []
    for batch in batches(steps=10):
        before = [M.clone() for M in optimizer.blocks]
        optimizer.step(batch)
        moved.append(not same_bits(optimizer.blocks, before))
    assert [t for t, m in enumerate(moved) if m] == [0, 1, 4, 8]


def test_exact_in_batches_of_one_row_is_kfac():
    options = dict(gamma=0.9, update_every=2, warmup_steps=1)
    exact = mkor.MKOR(SHAPES, variant="exact", stabilizer_threshold=math.inf, **options)
    dense = kfac.KFAC(SHAPES, damping=0.0, **options)
    for batch in batches(steps=12, rows=1):
        assert_close(exact.step(batch), dense.step(batch), "fp64")


@pytest.mark.parametrize("variant", ["leaky", "exact", "paper"])
def test_gradients_of_rank_one_keep_their_direction_in_the_first_step(variant):
    optimizer = mkor.MKOR(SHAPES, variant=variant)
    batch = batches(steps=1, rows=1)[0]
    gradients = [D.T @ expanded(A, c) for (A, D), (_, c) in zip(batch, SHAPES, strict=True)]
    assert_close(optimizer.step(batch), gradients, "formula")


@pytest.mark.parametrize("variant", ["leaky", "exact", "paper"])
def test_every_step_descends_and_keeps_the_norm(variant):
    optimizer = mkor.MKOR(SHAPES, variant=variant, update_every=1)
    for batch in batches(steps=200):
        found = optimizer.step(batch)
        for (A, D), (_, columns), preconditioned in zip(batch, SHAPES, found, strict=True):
            G = D.T @ expanded(A, columns)
            assert (preconditioned * G).sum() > 0
            assert preconditioned.norm().item() == pytest.approx(G.norm().item(), rel=1e-13)
    assert optimizer.norms.max() < 50
    assert optimizer.counters[:, [0, 2]].eq(0).all()


def test_scale_of_a_factor_does_not_reach_the_step():
    optimizer = mkor.MKOR(SHAPES, update_every=100)
    data = batches(steps=2)
    optimizer.step(data[0])
    before = optimizer.step(data[1])
    for k, M in enumerate(optimizer.blocks):
        M *= 2.0**k
    assert same_bits(optimizer.step(data[1]), before)


def test_paper_without_its_stabilizer_diverges_on_aligned_inputs():
    # A constant 1 and inputs that have a mean: |a|^2 > 1 from the first update on.
    calm, wild = (
        mkor.MKOR(SHAPES, variant="paper", update_every=1, stabilizer_threshold=threshold)
        for threshold in (None, math.inf)
    )
    for batch in batches(steps=100):
        calm.step(batch)
        wild.step(batch)
    assert wild.norms.max() > 65504 > 50 > calm.norms.max()


@pytest.mark.parametrize("sides", ["L", "R"])
def test_one_side_alone(sides):
    both, one = mkor.MKOR(SHAPES), mkor.MKOR(SHAPES, sides=sides)
    (batch,) = batches(steps=1)
    both.step(batch)
    found = one.step(batch)
    for layer, ((A, D), shape) in enumerate(zip(batch, SHAPES, strict=True)):
        G, (M_L, M_R) = D.T @ expanded(A, shape[1]), both.inverses(layer)
        expected = M_L @ G if sides == "L" else G @ M_R
        assert list(one.factors[layer]) == [sides]
        assert_close(found[layer], expected * G.norm() / expected.norm(), "formula")


def test_large_dimensions():
    shapes, bias = [(10, 5), (4, 9)], (True, True)
    data = batches(steps=3, shapes=shapes, biased=bias)
    options = dict(max_factor_dim=4, update_every=1)
    orders = {
        "block": [{"L": [4, 4, 2], "R": [3, 2]}, {"L": [4], "R": [3, 3, 3]}],
        "skip_side": [{}, {"L": [4]}],
        "skip_layer": [{}, {}],
    }
    for large_dims, expected in orders.items():
        optimizer = mkor.MKOR(shapes, large_dims=large_dims, **options)
        found = [
            {side: [len(M) for M in blocks] for side, blocks in sides.items()}
            for sides in optimizer.factors
        ]
        assert found == expected
        whole = mkor.MKOR(shapes, large_dims=large_dims, update_every=1)
        for batch in data:
            steps, others = optimizer.step(batch), whole.step(batch)
        assert not same_bits(steps[0], others[0])
    G = [D.T @ expanded(A, c) for (A, D), (_, c) in zip(data[-1], shapes, strict=True)]
    assert same_bits(steps, G)  # no side is left


def test_blocks_are_factors_of_parts_of_the_vectors():
    optimizer = mkor.MKOR([(4, 6)], max_factor_dim=4, large_dims="block", update_every=1)
    (batch,) = batches(steps=1, shapes=[(4, 6)], biased=[True])
    optimizer.step(batch)
    a = expanded(batch[0][0], 6).mean(dim=0)
    parts = [mkor.MKOR([(3, 3)]), mkor.MKOR([(3, 3)])]
    for k, part in enumerate(parts):
        part.update([(a[3 * k : 3 * k + 3], torch.zeros(3, dtype=F64))])
        assert same_bits(optimizer.factors[0]["R"][k], part.factors[0]["R"][0])


def test_positions_of_a_convolution_divide_g():
    conv, x = nn.Conv2d(3, 5, 2, dtype=F64), gaussian(4, 3, 4, 4)
    (dy,) = differentiated(conv, x)
    shape = (5, 13)
    optimizer, expected = mkor.MKOR([shape]), mkor.MKOR([shape])
    found = optimizer.step([mkor.conv_rows(conv, x, dy)])
    pair = mkor.conv_statistics(conv, x, dy)
    assert_close(found, expected.apply([joined(conv.weight, conv.bias)], [pair]), "fp64")
    assert_close(optimizer.blocks, expected.blocks, "formula")


def test_layers_that_were_not_called_keep_their_factors():
    optimizer = mkor.MKOR(SHAPES[:2], update_every=1)
    gradients = [gaussian(*shape) for shape in SHAPES[:2]]
    pairs = [(gaussian(5), gaussian(3)), (gaussian(3), gaussian(6))]
    optimizer.apply(gradients, pairs)
    before = [M.clone() for M in optimizer.blocks]
    optimizer.apply(gradients, [pairs[0], None])
    assert [same_bits(*pair) for pair in zip(optimizer.blocks, before, strict=True)] == [
        False,
        False,
        True,
        True,
    ]


def test_statistics_that_are_not_finite_are_dropped_and_gradients_passed():
    optimizer = mkor.MKOR(SHAPES, update_every=1)
    first, second = batches(steps=2)
    optimizer.step(first)
    before = [M.clone() for M in optimizer.blocks]
    second[0][0][0, 0] = math.inf
    found = optimizer.step(second)
    assert not found[0].isfinite().all()
    assert found[1].isfinite().all()
    assert same_bits(optimizer.factors[0]["R"], before[1:2])  # a of the first layer
    assert optimizer.counters[:, 0].tolist() == [0, 1, 0, 0, 0, 0]


# ---- K-FAC ---------------------------------------------------------------------------------------


def test_kfac_is_the_damped_inverse_of_moving_averages():
    optimizer = kfac.KFAC(SHAPES, gamma=0.7, damping=0.3, update_every=2, rescaled=False)
    scaled = kfac.KFAC(SHAPES, gamma=0.7, damping=0.3, update_every=2)
    factors = [[torch.eye(d, dtype=F64) for d in shape] for shape in SHAPES]
    for t, batch in enumerate(batches(steps=5)):
        found, kept = optimizer.step(batch), scaled.step(batch)
        for layer, ((A, D), shape) in enumerate(zip(batch, SHAPES, strict=True)):
            A, N = expanded(A, shape[1]), len(A)
            if t % 2 == 0:
                L, R = factors[layer]
                # Each row of D is 1/N of the gradient of its sample.
                samples = [torch.outer(N * d, N * d) for d in D]
                L = 0.7 * L + 0.3 * sum(samples) / N
                R = 0.7 * R + 0.3 * sum(torch.outer(a, a) for a in A) / N
                factors[layer] = [L, R]
            L, R = (X + 0.3 * torch.eye(len(X), dtype=F64) for X in factors[layer])
            G = D.T @ A
            expected = torch.linalg.solve(R, torch.linalg.solve(L, G).T).T
            assert_close(found[layer], expected, "fp64")
            assert_close(kept[layer], expected * G.norm() / expected.norm(), "fp64")


def test_shapes_and_scales_are_those_of_curvlinops():
    curvlinops = pytest.importorskip(
        "curvlinops", reason="needs curvlinops-for-pytorch, which brings a dozen packages"
    )
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    x, y = torch.randn(16, 5).double(), torch.randint(3, (16,))
    params = list(layer.parameters())
    theirs = curvlinops.KFACLinearOperator(
        layer,
        nn.CrossEntropyLoss(),
        params,
        [(x, y)],
        fisher_type="empirical",
        separate_weight_and_bias=False,
    )
    output = layer(x)
    (grads,) = torch.autograd.grad(F.cross_entropy(output, y), output)
    left, right = torch.zeros(3, 3).double(), torch.zeros(6, 6).double()
    kfac.kfac_update(left, right, F.pad(x, (0, 1), value=1.0), grads, 0.0)
    weight, bias = torch.randn(3, 5).double(), torch.randn(3).double()
    product = theirs @ torch.cat([weight.flatten(), bias])
    expected = left @ torch.cat([weight, bias[:, None]], dim=1) @ right
    assert_close(product, torch.cat([expected[:, :5].flatten(), expected[:, 5]]), "formula")
