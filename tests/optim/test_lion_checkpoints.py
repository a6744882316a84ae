# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion's state from elsewhere: other dtypes, layouts and implementations; and what is refused."""

import copy

import pytest
import torch

from largebatch.optim import Lion, LionK
from largebatch.reference import rounding
from tests.helpers import leaves, problem, run, same_bits, values
from tests.optim.test_state import through_file

HYPER = dict(lr=2.0**-7, betas=(0.9, 0.99), weight_decay=0.1)
SHAPES = [(70, 80), (40, 33), (4096,)]
CODED = [True, False, True]  # whether a momentum in 8 bits is kept in 8 bits
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def momentum(state):
    """Return the value of a momentum, in the shape of its parameter."""
    m = state["exp_avg"]
    if m.dtype != torch.int8:
        return m.float()
    flat = rounding.decode_int8(rounding.memory_order(m), state["exp_avg_scale"])
    value = torch.empty_like(m, dtype=torch.float32)
    rounding.memory_order(value).copy_(flat)
    return value


def rounded(value, state_dtype, coded):
    """Return (bits, scales) of a value rounded to nearest into a dtype."""
    if state_dtype == "int8" and coded:
        codes, scales = rounding.encode_int8(rounding.memory_order(value))
        m = torch.empty_like(value, dtype=torch.int8)
        rounding.memory_order(m).copy_(codes)
        return m, scales
    return value.to(torch.bfloat16 if state_dtype == "bfloat16" else torch.float32), None


def saved_by(state_dtype, device="cpu"):
    """Return (parameters, state_dict without the setting of the dtype) of a run in progress."""
    data = problem(SHAPES, steps=3).to(device)
    params = leaves(data.params)
    optimizer = Lion(params, **HYPER, state_dtype=state_dtype)
    run(optimizer, params, data.grads)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["state_dtype"]
    return params, saved


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("into", DTYPES)
@pytest.mark.parametrize("of", DTYPES)
def test_a_momentum_of_another_dtype_is_rounded_to_nearest(backend, of, into, fused):
    params, saved = saved_by(of, backend.device)
    other_params = leaves(values(params))
    other = Lion(other_params, state_dtype=into, fused=fused)
    other.load_state_dict(saved)
    for i, (p, coded) in enumerate(zip(other_params, CODED, strict=True)):
        given, state = saved["state"][i], other.state[p]
        if of == into:
            assert same_bits(state["exp_avg"], given["exp_avg"])
            assert ("exp_avg_scale" in state) == ("exp_avg_scale" in given)
            if "exp_avg_scale" in given:
                assert same_bits(state["exp_avg_scale"], given["exp_avg_scale"])
            continue
        m, scales = rounded(momentum(given), into, coded)
        assert same_bits(state["exp_avg"], m)
        assert ("exp_avg_scale" in state) == (scales is not None)
        if scales is not None:
            assert same_bits(state["exp_avg_scale"], scales)
    data = problem(SHAPES, steps=1, seed=1).to(backend.device)
    run(other, other_params, data.grads)  # and it goes on from there
    assert [other.state[p]["step"].item() for p in other_params] == [4, 4, 4]


@pytest.mark.parametrize("state_dtype", DTYPES)
def test_loading_into_another_layout_keeps_every_element(backend, state_dtype):
    data = problem([(8, 16, 7, 9)], steps=3).to(backend.device)
    params = leaves(data.to().params)
    optimizer = Lion(params, **HYPER, state_dtype=state_dtype)
    run(optimizer, params, data.grads)
    moved = leaves([params[0].detach().clone(memory_format=torch.channels_last)])
    other = Lion(moved)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before, after = (momentum(o.state[p[0]]) for o, p in ((optimizer, params), (other, moved)))
    assert other.state[moved[0]]["exp_avg"].stride() == moved[0].stride()
    if state_dtype == "int8":  # in blocks of other elements
        assert (before - after).abs().max() < 0.02 * before.abs().max()
        assert (before - after).norm() < 0.01 * before.norm()
    else:
        assert torch.equal(before, after)


def test_a_group_has_a_dtype_of_its_own(backend):
    data = problem([(5000,)] * 3, steps=2).to(backend.device)
    params = leaves(data.params)
    groups = [dict(params=[p], state_dtype=d) for p, d in zip(params, DTYPES, strict=True)]
    optimizer = Lion(groups, **HYPER)
    run(optimizer, params, data.grads)
    kept = [optimizer.state[p]["exp_avg"].dtype for p in params]
    assert kept == list(DTYPES.values())
    saved = through_file(optimizer.state_dict())
    other_params = leaves(values(params))
    other = Lion([dict(params=[p]) for p in other_params])
    other.load_state_dict(saved)
    assert [other.state[p]["exp_avg"].dtype for p in other_params] == kept


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_complex_weights_have_a_complex_momentum(backend, state_dtype):
    p = torch.nn.Parameter(torch.randn(5000, dtype=torch.complex64, device=backend.device))
    optimizer = Lion([p], **HYPER, state_dtype=state_dtype)
    before, grad = p.detach().clone(), torch.randn_like(p)
    run(optimizer, [p], [[grad]])
    assert optimizer.state[p]["exp_avg"].dtype == torch.complex64
    expected = torch.view_as_real(before) * (1 - HYPER["lr"] * HYPER["weight_decay"])
    expected = expected - HYPER["lr"] * torch.view_as_real(grad).sign()
    assert same_bits(torch.view_as_real(p.detach()), expected)
    other = Lion([torch.nn.Parameter(p.detach().clone())])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    (q,) = other.param_groups[0]["params"]
    assert torch.equal(other.state[q]["exp_avg"], optimizer.state[p]["exp_avg"])


# ---- Other implementations -----------------------------------------------------------------------

PEERS = ("timm", "lion-pytorch", "pytorch_optimizer")


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("name", PEERS)
def test_a_checkpoint_of_a_peer_goes_on(name, state_dtype):
    import baselines  # of bench/, which pytest puts on the path

    data = problem(SHAPES, steps=5)
    their_params = leaves(data.to().params)
    try:
        theirs = baselines.BASELINES["lion"][name].make(their_params)
    except ImportError as error:
        pytest.skip(str(error))
    run(theirs, their_params, data.grads[:3])
    params = leaves(values(their_params))
    ours = Lion(params, state_dtype=state_dtype)
    ours.load_state_dict(through_file(theirs.state_dict()))
    assert ours.param_groups[0]["lr"] == 1e-4
    assert ours.param_groups[0]["weight_decay"] == 0.1
    for p, q, coded in zip(params, their_params, CODED, strict=True):
        m, _ = rounded(theirs.state[q]["exp_avg"], state_dtype, coded)
        assert same_bits(ours.state[p]["exp_avg"], m)
    if state_dtype is None:
        run(theirs, their_params, data.grads[3:])
        run(ours, params, data.grads[3:])
        for p, q in zip(params, their_params, strict=True):
            assert ((p - q).abs() > 1e-6).double().mean() < 1e-3  # where rounding decides signs


def test_caution_of_timm_is_cautious():
    params, saved = saved_by(None)
    for group in saved["param_groups"]:
        del group["cautious"]
        group["caution"] = True
    other = Lion(leaves(values(params)))
    other.load_state_dict(saved)
    assert other.param_groups[0]["cautious"] is True
    assert "caution" in saved["param_groups"][0]  # what was given is as it was


FOREIGN = {
    "corrected_weight_decay": True,
    "adanorm": True,
    "use_gc": True,
    "fixed_decay": True,
    "weight_decouple": False,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_switches_without_counterpart_are_refused(name):
    params, saved = saved_by(None)
    other = Lion(leaves(values(params)))
    saved["param_groups"][0][name] = not FOREIGN[name]
    other.load_state_dict(saved)
    saved["param_groups"][0][name] = FOREIGN[name]
    message = f"^Lion: the checkpoint has {name}={FOREIGN[name]}"
    with pytest.raises(ValueError, match=message) as caught:
        other.load_state_dict(saved)
    assert "\n" not in str(caught.value)


def test_codes_without_scales_are_refused():
    params, saved = saved_by("int8")
    del saved["state"][0]["exp_avg_scale"]
    with pytest.raises(ValueError, match="exp_avg has dtype int8 and there is no exp_avg_scale"):
        Lion(leaves(values(params))).load_state_dict(saved)


# ---- Bad input -----------------------------------------------------------------------------------


def one(cls=Lion, **options):
    return cls([torch.nn.Parameter(torch.ones(3))], **options)


@pytest.mark.parametrize("cls", [Lion, LionK])
@pytest.mark.parametrize("bad", ["int4", "fp32", torch.bfloat16, 8, ["int8"]])
def test_unknown_state_dtype_is_one_line(cls, bad):
    with pytest.raises(ValueError, match=f"^{cls.__name__}: state_dtype: got ") as caught:
        one(cls, state_dtype=bad)
    assert repr(bad) in str(caught.value)
    assert "expected one of None, 'float32', 'bfloat16', 'int8'." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_state_dtype_made_bad_later_stops_the_step():
    data = problem([(30,)], steps=2)
    params = leaves(data.params)
    optimizer = Lion(params)
    run(optimizer, params, data.grads[:1])
    before = values(params)
    optimizer.param_groups[0]["state_dtype"] = "float8"
    with pytest.raises(ValueError, match="state_dtype"):
        run(optimizer, params, data.grads[1:])
    assert same_bits(values(params), before)


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("bad", [dict(weight_decay=-1.0), dict(lr=-1.0), dict(seed=0.5)])
def test_setting_made_bad_later_stops_both_paths(fused, bad):
    data = problem([(30,)], steps=2)
    params = leaves(data.params)
    optimizer = Lion(params, fused=fused)
    run(optimizer, params, data.grads[:1])
    before = values(params)
    optimizer.param_groups[0].update(bad)
    with pytest.raises(ValueError, match=next(iter(bad))):
        run(optimizer, params, data.grads[1:])
    assert same_bits(values(params), before)


def test_scales_that_do_not_fit_are_named():
    data = problem([(5000,)], steps=1)
    params = leaves(data.params)
    optimizer = Lion(params, state_dtype="int8")
    run(optimizer, params, data.grads)
    state = optimizer.state[params[0]]
    before = values(params)
    state["exp_avg_scale"] = state["exp_avg_scale"][:-1].clone()
    with pytest.raises(ValueError, match=r"scales\[0\] has shape \[39\], expected \[40\]"):
        run(optimizer, params, data.grads)
    assert same_bits(values(params), before)


def test_lion_takes_no_kappa():
    with pytest.raises(TypeError, match="kappa"):
        one(kappa="huber")
