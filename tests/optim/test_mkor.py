# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR as a whole, against the oracle in float64."""

import pytest
import torch

from tests.helpers import same_bits, snapshot, values
from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import (
    LAYERS,
    Reference,
    backend_of,
    batches,
    flat,
    make,
    network,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 20
# Of one tensor's largest element, after twenty steps in fp32: measured up to 1.2e-6.
BOUND = 1e-5


def check(kind="SGD", model=None, device="cpu", steps=STEPS, bound=BOUND, ours=(), **options):
    """Train by MKOR and by the oracle, which has no options `ours`; compare weights and factors."""
    model = network(device) if model is None else model
    reference = Reference(model, kind, **{k: v for k, v in options.items() if k not in ours})
    optimizer = backend_of(kind, model)
    mkor = make(model, optimizer, **options)
    given = batches(steps, device=device, dtype=next(model.parameters()).dtype)
    before = values(model.parameters())
    train(mkor, model, given)
    for batch in given:
        reference.step(batch)
    expected = list(reference.model.parameters())
    assert setting.largest_error(list(model.parameters()), expected) < bound
    for p, b, e in zip(model.parameters(), before, expected, strict=True):
        assert (p - b).abs().max() > 10 * bound * e.abs().max()
    assert_factors(mkor.factors, reference.factors, bound)
    return mkor, reference


def assert_factors(actual, expected, bound=BOUND):
    assert actual.keys() == expected.keys()
    for name, own in expected.items():
        assert actual[name].keys() == own.keys()
        for side, dense in own.items():
            found = actual[name][side]
            found = [found] if torch.is_tensor(found) else list(found)
            assert [len(f) for f in found] == [len(d) for d in dense]
            assert setting.largest_error(found, dense) < bound
            assert all(same_bits(f, f.t().contiguous()) for f in found)


# ---- The definition ------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("variant", ["leaky", "exact", "paper"])
def test_matches_the_definition(backend, variant, every):
    check(device=backend.device, variant=variant, update_every=every)


@pytest.mark.parametrize("every", [1, 10])
def test_matches_the_definition_around_lamb(backend, every):
    check("LAMB", device=backend.device, update_every=every)


@pytest.mark.parametrize("kind", ["SGD", "LAMB"])
@pytest.mark.parametrize("variant", ["leaky", "exact", "paper"])
def test_matches_the_definition_in_pure_torch(kind, variant):
    check(kind, variant=variant, update_every=3, fused=False, ours=["fused"])


@pytest.mark.parametrize(
    "options",
    [
        dict(sides="R"),
        dict(sides="L"),
        dict(fold_bias=False),
        dict(stats="grad"),
        dict(stats="grad", fold_bias=False, sides="R"),
        dict(warmup_steps=7),
        dict(update_every=4, warmup_steps=2),
        dict(leak=0.8, rho=0.3),
        dict(leak=0.0),
        dict(variant="exact", gamma=0.8, stabilizer_blend=0.7),
        dict(variant="exact", stabilizer_norm="inf", stabilizer_threshold=3.0),
        dict(variant="exact", stabilizer_threshold=1.2, stabilizer_blend=0.5),
        dict(variant="paper", gamma=0.9, stabilizer_blend=0.3, stabilizer_threshold=1.5),
        dict(stat_clip=1.0),
        dict(stat_clip=None),
        dict(max_factor_dim=11, large_dims="skip_side"),
        dict(max_factor_dim=14, large_dims="block"),
        dict(max_factor_dim=8, large_dims="block", variant="exact"),
        dict(max_factor_dim=20, large_dims="skip_layer"),
    ],
    ids=str,
)
def test_every_setting_reaches_the_step(options):
    plain = dict(update_every=2)
    check(steps=10, **plain | options)


@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_the_stabilizer_fires_in_these_settings(variant):
    mkor, _ = check(variant=variant, update_every=1)
    fired = [own[side]["stabilized"] for own in mkor.counters.values() for side in own]
    assert max(fired) > 0
    assert min(fired) < STEPS


def test_clipping_makes_a_difference():
    found = []
    for clip in (0.05, None):
        model = network()
        mkor = make(model, stat_clip=clip)
        train(mkor, model, batches(1))
        found.append(mkor.factors["body"]["L"].clone())
    assert not same_bits(*found)


def test_defaults_are_those_of_the_released_code():
    model = network()
    reference = Reference(model, "SGD")  # its defaults are written out
    mkor = make(model)
    given = batches(12)
    train(mkor, model, given)
    for batch in given:
        reference.step(batch)
    assert_factors(mkor.factors, reference.factors)


# ---- Numbers -------------------------------------------------------------------------------------


def test_float64_factors_of_a_float64_model():
    model = network(dtype=torch.float64)
    check(model=model, bound=1e-13, update_every=3, factor_dtype=torch.float64,
          ours=["factor_dtype"])  # fmt: skip


def test_float32_factors_of_a_float64_model():
    mkor, _ = check(model=network(dtype=torch.float64), update_every=3)
    assert {f.dtype for f in flat(mkor.factors)} == {torch.float32}


def test_half_precision_factors(backend):
    options = dict(update_every=2, factor_dtype=torch.float16, ours=["factor_dtype"])
    mkor, _ = check(device=backend.device, bound=2e-3, **options)
    assert {f.dtype for f in flat(mkor.factors)} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision(dtype):
    model = network(dtype=dtype)
    mkor = make(model, update_every=1)
    seen = setting.watch(mkor.optimizer)
    for batch in batches(3, dtype=dtype):
        setting.loss_of(model, batch).backward()
        mkor.step()
        assert {g.dtype for g in seen[-1]} == {dtype}
        expected = setting.preconditioned(model, mkor.factors)
        assert setting.largest_error(seen[-1], expected) < torch.finfo(dtype).eps
        mkor.zero_grad()
    assert {f.dtype for f in flat(mkor.factors)} == {torch.float32}
    assert all(f.isfinite().all() for f in flat(mkor.factors))


def test_products_in_half_precision_keep_the_norm():
    model = network()
    mkor = make(model, matmul_dtype=torch.bfloat16)
    seen = setting.watch(mkor.optimizer)
    setting.loss_of(model, batches(1)[0]).backward()
    mkor.step()
    expected = setting.preconditioned(model, mkor.factors)
    assert 1e-6 < setting.largest_error(seen[0], expected) < 4 * torch.finfo(torch.bfloat16).eps
    assert_norms_kept(model, seen[0])


def test_products_in_half_precision_let_gradients_pass_as_they_are():
    model = network()
    mkor = make(model, matmul_dtype=torch.bfloat16)
    seen = setting.watch(mkor.optimizer)
    setting.loss_of(model, batches(1)[0]).backward()
    model.body.weight.grad[0, 0] = torch.inf
    copies = [model.body.weight.grad.clone(), model.body.bias.grad.clone()]
    mkor.step()
    found = dict(zip(model.parameters(), seen[0], strict=True))
    assert same_bits([found[model.body.weight], found[model.body.bias]], copies)


def assert_norms_kept(model, seen):
    found = dict(zip(model.parameters(), seen, strict=True))
    for name in LAYERS:
        own = list(model.get_submodule(name).parameters())
        before = torch.cat([p.grad.flatten() for p in own]).double().norm()
        after = torch.cat([found[p].flatten() for p in own]).double().norm()
        assert after.item() == pytest.approx(before.item(), rel=1e-6)


def test_same_bits_on_every_run(backend):
    results = []
    for _ in range(2):
        model = network(backend.device)
        mkor = make(model, update_every=2)
        train(mkor, model, batches(5, device=backend.device))
        results.append(snapshot(mkor) + flat(mkor.factors))
    assert same_bits(*results)


@pytest.mark.parametrize("blocks", [{}, dict(max_factor_dim=10, large_dims="block")], ids=str)
def test_factors_in_padded_storage_are_the_same(monkeypatch, blocks):
    """On a GPU they are padded such that tensor cores find them aligned."""
    results = []
    for multiple in (1, 16):
        monkeypatch.setattr(
            "largebatch.optim._factors.padded", lambda d, _, m=multiple: -(-d // m) * m
        )
        model = network()
        mkor = make(model, update_every=2, **blocks)
        # Should anything be left of what was there, it would show.
        take = mkor._scratch.take
        mkor._scratch.take = lambda *a, take=take: [t.fill_(torch.nan) for t in take(*a)]
        train(mkor, model, batches(4))
        factors = mkor.factors.values()
        blocks_of = [m if isinstance(m, list) else [m] for own in factors for m in own.values()]
        results.append([*model.parameters(), *(m for own in blocks_of for m in own)])
    assert setting.largest_error(*results) < 1e-6
