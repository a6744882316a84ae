# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion-K: every function against the oracle, spelt in every way; cautious updates; bad input."""

import copy
from dataclasses import dataclass

import pytest
import torch

from largebatch.optim import Lion, LionK, kappa
from largebatch.reference import lion
from tests.conftest import assert_close
from tests.helpers import leaves, problem, run, same_bits, snapshot, values
from tests.optim.test_state import through_file

HYPER = dict(lr=2.0**-6, betas=(0.9, 0.99), weight_decay=0.1)

# Functions with a kernel; which of them are made of operations that IEEE 754 pins to the last bit.
KERNELS = {
    "l1": kappa.L1(),
    "truncated_l1": kappa.TruncatedL1(0.004),
    "huber": kappa.Huber(0.003),
    "soft_sign": kappa.SoftSign(0.003),
    "log_cosh": kappa.LogCosh(0.003),
    "power": kappa.Power(1.5),
    "power below": kappa.Power(1.01),
    "power above": kappa.Power(3.0),
    "quadratic": kappa.Quadratic(),
}
EXACT = ("l1", "truncated_l1", "huber", "soft_sign", "quadratic")
REDUCING = {  # kernels that sum over groups
    "huber relative": kappa.Huber(0.5, relative=True),
    "truncated_l1 relative": kappa.TruncatedL1(0.5, relative=True),
    "soft_sign relative": kappa.SoftSign(0.5, relative=True),
    "log_cosh relative": kappa.LogCosh(0.5, relative=True),
    "entropy": kappa.Entropy(0.01),
    "entropy whole": kappa.Entropy(0.01, axis=None),
    "signed_entropy": kappa.SignedEntropy(0.01, axis="column"),
    "l2": kappa.L2(),
    "lp": kappa.Lp(1.5),
    "l_inf": kappa.LInf(),
    "group_lasso": kappa.GroupLasso(),
    "group_lasso column": kappa.GroupLasso("column"),
    "l2_inf": kappa.L2Inf(),
    "squared_l1": kappa.SquaredL1(),
}
TORCH_OPS = {
    "top_k": kappa.TopK(7),
    "sorted_l1": kappa.SortedL1((1.0, 0.5, 0.25)),
    "nuclear": kappa.Nuclear(),
    "spectral": kappa.Spectral("huber", e=0.01),
}
ALL = KERNELS | REDUCING | TORCH_OPS
# Less than a vector, around tiles of 16384, rows longer than one, many short rows, columns.
SHAPES = [(), (1,), (31,), (33,), (16385,), (3, 6000), (900, 3), (60, 70), (9, 16, 3, 3), (0, 4)]


def oracle(data, k, dtype=None, **over):
    """Return weights and momenta after the steps of a problem, by the reference."""
    params = [p.to(dtype or p.dtype, copy=True) for p in data.params]
    exp_avgs = [torch.zeros_like(p) for p in params]
    steps = [torch.zeros(()) for _ in params]
    for grads in data.grads:
        lion.lion_step(params, grads, exp_avgs, steps, kappa=k, **{**HYPER, **over})
    return params, exp_avgs


def solved(backend, data, k, **over):
    """Return weights and momenta after the same steps, by the optimizer, on the CPU."""
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = LionK(params, kappa=k, **{**HYPER, **over})
    run(optimizer, params, data.grads)
    return [p.detach().cpu() for p in params], [optimizer.state[p]["exp_avg"].cpu() for p in params]


# ---- Against the oracle --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_matches_the_oracle(backend, name):
    data = problem(SHAPES, steps=4)
    params, exp_avgs = oracle(data, ALL[name])
    ours = solved(backend, data, ALL[name])
    assert same_bits(ours[1], exp_avgs)
    exact = name in EXACT or (name in TORCH_OPS and backend.device.type == "cpu")
    if exact:
        assert same_bits(ours[0], params)
    else:
        assert_close(ours[0], params, scale=0.05)
    assert not any(same_bits(p, q) for p, q in zip(params, data.params, strict=True) if p.numel())


@pytest.mark.parametrize("name", KERNELS | REDUCING)
def test_kernels_match_the_oracle_in_float64(backend, name):
    data = problem(SHAPES, steps=4).to(dtype=torch.float64, grad_dtype=torch.float64)
    params, exp_avgs = oracle(data, ALL[name])
    ours = solved(backend, data, ALL[name])
    assert_close(ours[0], params, "fp64", scale=0.05)
    assert_close(ours[1], exp_avgs, "fp64", scale=0.01)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("name", KERNELS)
def test_gradients_of_any_size(backend, name, size):
    data = problem([(700, 30), (11,)], steps=2, grad_scale=size)
    data.grads[0][0][:100] = 0
    data.grads[1][0][:100] = 0
    params, _ = oracle(data, KERNELS[name])
    ours, _ = solved(backend, data, KERNELS[name])
    if name == "power above" and size > 1e20:  # squares overflow, there as here
        assert [p.isfinite().sum() for p in ours] == [p.isfinite().sum() for p in params]
        return
    assert_close(ours, params, scale=0.05)
    assert all(p.isfinite().all() for p in ours)
    decay = (1 - HYPER["lr"] * HYPER["weight_decay"]) ** 2
    assert_close(ours[0][:100], decay * data.params[0][:100])


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_not_finite_goes_where_the_formula_takes_it(backend, name):
    data = problem([(300,)], steps=1)
    data.grads[0][0][:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    (expected,), _ = oracle(data, KERNELS[name])
    (ours,), _ = solved(backend, data, KERNELS[name])
    assert ours.isnan().equal(expected.isnan())
    finite = expected.isfinite()
    assert torch.equal(ours[~finite].nan_to_num(nan=1.5), expected[~finite].nan_to_num(nan=1.5))
    assert_close(ours[finite], expected[finite], scale=0.05)


@pytest.mark.parametrize("name", ALL)
def test_layouts(backend, name):
    data = problem([(9, 16, 3, 3), (40, 70), (30, 8), (20, 6)], steps=3)
    params, _ = oracle(data, ALL[name])
    gaps = torch.zeros(20, 6, 2)[..., 1]
    laid_out = [
        data.params[0].to(memory_format=torch.channels_last),
        data.params[1].t().contiguous().t(),
        data.params[2],
        gaps.copy_(data.params[3]),
    ]
    tensors = leaves([p.to(backend.device) for p in laid_out])
    optimizer = LionK(tensors, **HYPER, kappa=ALL[name])
    strided = [[g.to(backend.device).transpose(0, -1).contiguous().transpose(0, -1) for g in gs]
               for gs in data.grads]  # fmt: skip
    run(optimizer, tensors, strided)
    assert_close([p.detach() for p in tensors], params, scale=0.05)
    assert [p.stride() for p in tensors] == [p.stride() for p in laid_out]


@pytest.mark.parametrize("name", ["huber", "group_lasso", "l2", "huber relative"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_weights_have_a_master(backend, name, dtype):
    data = problem([(60, 70), (33,)], steps=4).to(dtype=dtype, grad_dtype=dtype)
    params, _ = oracle(data, ALL[name], dtype=torch.float32)
    data = data.to(backend.device)
    tensors = leaves(data.params)
    optimizer = LionK(tensors, **HYPER, kappa=ALL[name])
    run(optimizer, tensors, data.grads)
    masters = [optimizer.state[p]["master_param"] for p in tensors]
    assert_close(masters, params, scale=0.05)
    assert same_bits([p.detach() for p in tensors], [m.to(dtype) for m in masters])


@pytest.mark.parametrize("name", ["huber", "group_lasso", "quadratic", "l_inf"])
def test_momentum_in_eight_bits(backend, name):
    data = problem([(60, 70), (33,)], steps=4)
    params, scales = values(data.params), [torch.zeros(33), None]
    exp_avgs = [torch.zeros(60, 70, dtype=torch.int8), torch.zeros(33)]
    steps = [torch.zeros(()) for _ in params]
    for grads in data.grads:
        lion.lion_step(params, grads, exp_avgs, steps, kappa=ALL[name], scales=scales,
                       stochastic_rounding=True, **HYPER)  # fmt: skip
    ours = solved(backend, data, ALL[name], state_dtype="int8")
    assert same_bits(ours[1], exp_avgs)
    assert_close(ours[0], params, scale=0.05)


# ---- Kernels and torch operations side by side ---------------------------------------------------


def test_functions_side_by_side(backend):
    names = ["l2", "huber", "group_lasso", "l1", "power"]
    half = [True, False, False, True, True]  # have a master
    data = problem([(60, 70)] * len(names), steps=3).to(backend.device)
    dtypes = [torch.bfloat16 if h else torch.float32 for h in half]
    data.params = [p.to(d) for p, d in zip(data.params, dtypes, strict=True)]
    data.grads = [[g.to(d) for g, d in zip(gs, dtypes, strict=True)] for gs in data.grads]
    params = leaves(data.to().params)
    optimizer = LionK(
        [dict(params=[p], kappa=ALL[name]) for p, name in zip(params, names, strict=True)], **HYPER
    )
    run(optimizer, params, data.grads)
    for i, name in enumerate(names):
        (alone,) = leaves([data.params[i].clone()])
        other = LionK([alone], **HYPER, kappa=ALL[name])
        run(other, [alone], [[gs[i]] for gs in data.grads])
        assert same_bits(params[i].detach(), alone.detach())
        for entry, value in other.state[alone].items():
            assert same_bits(optimizer.state[params[i]][entry], value)
    data.grads[0][0][0, :3] = torch.nan
    data.grads[0][3][0, :2] = torch.inf
    run(optimizer, params, data.grads[:1])
    assert optimizer.nonfinite.item() == 5


@pytest.mark.parametrize("name", ["huber", "l2"])
def test_a_function_may_change_between_steps(backend, name):
    data = problem([(60, 70)], steps=3)
    params, momenta = values(data.params), [torch.zeros(60, 70)]
    tensors = leaves(data.to(backend.device).params)
    optimizer = LionK(tensors, **HYPER, kappa="l1")
    steps = [torch.zeros(())]
    for k, grads in zip((kappa.L1(), ALL[name], kappa.Huber(0.5)), data.grads, strict=True):
        optimizer.param_groups[0]["kappa"] = k
        lion.lion_step(params, grads, momenta, steps, kappa=k, **HYPER)
        run(optimizer, tensors, [[g.to(backend.device) for g in grads]])
    optimizer.param_groups[0]["kappa"]["e"] = 0.25  # plain data by now
    lion.lion_step(params, data.grads[0], momenta, steps, kappa=kappa.Huber(0.25), **HYPER)
    run(optimizer, tensors, [[g.to(backend.device) for g in data.grads[0]]])
    assert_close([p.detach() for p in tensors], params, scale=0.05)


def test_l1_is_lion(backend):
    data = problem(SHAPES, steps=3).to(backend.device)
    results = []
    for make in (Lion, LionK):
        params = leaves(data.to().params)
        optimizer = make(params, **HYPER)
        run(optimizer, params, data.grads)
        results.append(snapshot(optimizer))
    assert same_bits(*results)


# ---- Cautious ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("name", KERNELS)
def test_cautious(backend, name, fused):
    data = problem([(60, 70), (33,), (1,), (0,)], steps=4)
    params, _ = oracle(data, KERNELS[name], cautious=True)
    plain, _ = oracle(data, KERNELS[name])
    ours, _ = solved(backend, data, KERNELS[name], cautious=True, fused=fused)
    assert_close(ours, params, scale=0.05)
    assert not same_bits(ours[:1], plain[:1])


def test_cautious_moves_what_agrees_by_the_inverse_of_its_share(backend):
    p = torch.nn.Parameter(torch.zeros(5000, device=backend.device))
    optimizer = Lion([p], lr=2.0**-7, cautious=True)
    signs = torch.ones(5000, device=backend.device)
    run(optimizer, [p], [[signs]])
    assert torch.equal(p.detach(), -(2.0**-7) * signs)  # all agree
    signs[1000:] = -0.05  # here the momentum outweighs the gradient
    before = p.detach().clone()
    run(optimizer, [p], [[signs]])
    moved = before - p.detach()
    assert not moved[1000:].any()
    assert torch.equal(moved[:1000], torch.full_like(moved[:1000], 5 * 2.0**-7))
    signs.fill_(-0.001)  # nobody agrees
    run(optimizer, [p], [[signs]])
    assert torch.equal(before - p.detach(), moved)


# ---- Spellings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_name_dict_and_object_are_the_same(name):
    k = ALL[name]
    data = problem([(20, 30), (9,)], steps=2)
    results = []
    for spelling in (k, k.as_dict()):
        params = leaves(data.to().params)
        optimizer = LionK(params, **HYPER, kappa=spelling)
        assert optimizer.param_groups[0]["kappa"] == k.as_dict()
        run(optimizer, params, data.grads)
        saved = through_file(optimizer.state_dict())  # by weights_only
        assert saved["param_groups"][0]["kappa"] == k.as_dict()
        other_params = leaves(values(params))
        other = LionK(other_params)
        other.load_state_dict(saved)
        run(optimizer, params, data.grads)
        run(other, other_params, data.grads)
        assert same_bits(snapshot(other), snapshot(optimizer))
        results.append(snapshot(optimizer))
    assert same_bits(*results)


@pytest.mark.parametrize("name", ["l1", "huber", "power", "l2", "group_lasso", "nuclear"])
def test_bare_names_have_the_parameters_of_get(name):
    data = problem([(20, 30)], steps=2)
    results = []
    for spelling in (name, kappa.get(name)):
        params = leaves(data.to().params)
        optimizer = LionK([dict(params=params, kappa=spelling)], **HYPER)
        run(optimizer, params, data.grads)
        results.append(snapshot(optimizer))
    assert same_bits(*results)
    assert LionK(leaves([torch.ones(2)]), kappa=name).param_groups[0]["kappa"] == name


@dataclass
class Mine:
    """A K of a user: twice the positive part, with a slope that its elements share not."""

    even = False
    elementwise = True

    def subgradient(self, v):
        return 2.0 * (v > 0)


class TwiceHuber(kappa.Huber):
    """A user's own class below one of ours is not ours."""

    def _subgradient(self, v):
        return 2 * super()._subgradient(v)


@pytest.mark.parametrize("k", [Mine(), TwiceHuber(0.01)], ids=["own", "subclass"])
@pytest.mark.parametrize("fused", [None, False])
def test_an_object_of_the_users_own(backend, k, fused):
    data = problem([(60, 70), (33,)], steps=3)
    params, _ = oracle(data, k)
    ours, _ = solved(backend, data, k, fused=fused)
    assert_close(ours, params, scale=0.05)
    optimizer = LionK(leaves(data.params), kappa=k)
    assert optimizer.param_groups[0]["kappa"] is k
    assert copy.deepcopy(optimizer).param_groups[0]["kappa"] == k
    cautious, _ = solved(backend, data, k, cautious=True)
    assert_close(cautious, oracle(data, k, cautious=True)[0], scale=0.05)


# ---- Bad input -----------------------------------------------------------------------------------


BAD = {
    "unknown": ("l3", ValueError, "kappa: name got 'l3', expected one of l1,"),
    "no name": ({"e": 1.0}, ValueError, "kappa: name got None"),
    "out of range": ({"name": "huber", "e": 0.0}, ValueError, "Huber: e got 0.0"),
    "a parameter too many": ({"name": "l2", "e": 1.0}, TypeError, "kappa: l2 got 'e'"),
    "a parameter missing": ("top_k", TypeError, "kappa: top_k needs k"),
    "class": (kappa.L1, TypeError, "kappa: got the class L1"),
    "not a K": (object(), TypeError, "kappa: got object"),
    "number": (2.0, TypeError, "kappa: got float"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_kappa_is_one_line(name):
    spelling, error, message = BAD[name]
    (p,) = leaves([torch.ones(3)])
    optimizer = LionK([torch.nn.Parameter(torch.ones(3))])
    for refused in (
        lambda: LionK([p], kappa=spelling),
        lambda: LionK([dict(params=[p], kappa=spelling)]),
        lambda: optimizer.add_param_group(dict(params=[p], kappa=spelling)),
    ):
        with pytest.raises(error, match=message) as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0]["kappa"] = spelling
    (q,) = optimizer.param_groups[0]["params"]
    with pytest.raises(error, match=message):
        run(optimizer, [q], [[torch.ones(3)]])
    assert torch.equal(q.detach(), torch.ones(3))


@pytest.mark.parametrize("name", REDUCING | TORCH_OPS)
def test_cautious_needs_an_elementwise_function(name):
    with pytest.raises(ValueError, match=r"^LionK: cautious: got True with kappa ") as caught:
        LionK(leaves([torch.ones(3)]), kappa=ALL[name], cautious=True)
    assert "\n" not in str(caught.value)


def test_cautious_set_later_is_checked_before_anything_is_written():
    params = leaves([torch.ones(3), torch.ones(2, 2)])
    optimizer = LionK([dict(params=params[:1]), dict(params=params[1:], kappa="l2")])
    optimizer.param_groups[1]["cautious"] = True
    with pytest.raises(ValueError, match=r"^LionK: cautious"):
        run(optimizer, params, [[torch.ones(3), torch.ones(2, 2)]])
    assert all((p == 1).all() for p in params)


@pytest.mark.parametrize(
    "options",
    [*(dict(kappa=k) for k in TORCH_OPS.values()), dict(kappa=Mine())],
    ids=[*TORCH_OPS, "own"],
)
def test_kernels_only_means_a_kernel(options):
    with pytest.raises(ValueError, match=r"^LionK: fused: got True with ") as caught:
        LionK(leaves([torch.ones(3)]), fused=True, **options)
    assert str(caught.value).endswith("which steps through torch operations. Use fused=None.")
