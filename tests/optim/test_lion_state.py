# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion's momentum in few bits and its random bits: the oracle's, and the same after a resume."""

import copy
import itertools

import pytest
import torch

import largebatch
from largebatch.optim import Lion, LionK, kappa
from largebatch.reference import lion
from tests.helpers import assign, leaves, problem, run, same_bits, snapshot, values
from tests.optim.test_state import through_file

HYPER = dict(lr=2.0**-7, betas=(0.9, 0.99), weight_decay=0.1)
# On both sides of 4096 elements, where a momentum in 8 bits begins; around blocks of 128 and tiles.
SHAPES = [(40, 33), (17,), (64, 64), (0,), (4095,), (16384 + 129,), ()]
STATES = [None, "float32", "bfloat16", "int8"]
ROUNDINGS = [False, True]
BFLOAT16 = torch.bfloat16


def dtype_of(state_dtype, p):
    wide = torch.promote_types(p.dtype, torch.float32)
    if state_dtype == "int8":
        return torch.int8 if p.numel() >= 4096 else wide
    return torch.bfloat16 if state_dtype == "bfloat16" else wide


class Oracle:
    """The reference with the state of the optimizer's dtypes."""

    def __init__(self, params, state_dtype, master_weights=True, ids=None, **hyper):
        self.hyper = {**HYPER, "kappa": kappa.L1(), "stochastic_rounding": True, **hyper}
        self.params = values(params)
        half = [p.dtype in (BFLOAT16, torch.float16) and master_weights for p in params]
        self.weights = [p.float() if h else p for p, h in zip(self.params, half, strict=True)]
        self.exp_avgs = [torch.zeros_like(p, dtype=dtype_of(state_dtype, p)) for p in self.params]
        self.scales = [torch.zeros(-(-p.numel() // 128)) for p in params]
        self.steps = [torch.zeros(()) for _ in params]
        self.ids = list(range(len(params)) if ids is None else ids)

    def step(self, grads):
        rows = [i for i, g in enumerate(grads) if g is not None]
        lists = ([part[i] for i in rows] for part in (
            self.weights, grads, self.exp_avgs, self.steps
        ))  # fmt: skip
        lion.lion_step(
            *lists,
            scales=[self.scales[i] for i in rows],
            tensor_ids=[self.ids[i] for i in rows],
            **self.hyper,
        )
        for p, w in zip(self.params, self.weights, strict=True):
            if p is not w:
                p.copy_(w)
        return self

    def assert_holds(self, optimizer, params):
        for i, p in enumerate(params):
            state = optimizer.state[p]
            assert same_bits(p.detach().cpu(), self.params[i])
            assert same_bits(state["exp_avg"].cpu(), self.exp_avgs[i])
            assert state["step"].item() == self.steps[i].item()
            coded = self.exp_avgs[i].dtype == torch.int8
            assert ("exp_avg_scale" in state) == coded
            if coded:
                assert same_bits(state["exp_avg_scale"].cpu(), self.scales[i])
            if self.weights[i] is not self.params[i]:
                assert same_bits(state["master_param"].cpu(), self.weights[i])


def compare(backend, state_dtype, dtype=torch.float32, steps=4, **options):
    """Step optimizer and oracle over the same problem; return what else is needed."""
    data = problem(SHAPES, steps).to(dtype=dtype, grad_dtype=dtype)
    fused = options.pop("fused", None)
    oracle = Oracle(data.params, state_dtype, **options)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = Lion(params, **HYPER, state_dtype=state_dtype, fused=fused, **options)
    for grads in data.grads:
        oracle.step([g.cpu() for g in grads])
        run(optimizer, params, [grads])
        oracle.assert_holds(optimizer, params)
    return oracle


# ---- The bits of the oracle ----------------------------------------------------------------------


@pytest.mark.parametrize("stochastic", ROUNDINGS, ids=["to nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("state_dtype", STATES)
def test_all_bits_are_those_of_the_oracle(backend, state_dtype, dtype, stochastic):
    compare(backend, state_dtype, dtype, stochastic_rounding=stochastic, seed=2**64 - 3)


@pytest.mark.parametrize("stochastic", ROUNDINGS, ids=["to nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [BFLOAT16, torch.float16], ids=str)
@pytest.mark.parametrize("state_dtype", STATES)
def test_all_bits_without_masters(backend, state_dtype, dtype, stochastic):
    compare(backend, state_dtype, dtype, master_weights=False, stochastic_rounding=stochastic)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_all_bits_of_the_pure_torch_path(state_dtype):
    class Here:
        device = torch.device("cpu")

    compare(Here, state_dtype, BFLOAT16, master_weights=False, fused=False, seed=7)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["huber", "power"])
def test_lion_k_rounds_alike(backend, state_dtype, name):
    # Of a function with its own arithmetic: momenta do not depend on it, and so neither do bits.
    data = problem(SHAPES, steps=3)
    oracle = Oracle(data.params, state_dtype)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = LionK(params, **HYPER, kappa=name, state_dtype=state_dtype)
    for grads in data.grads:
        oracle.step([g.cpu() for g in grads])
        run(optimizer, params, [grads])
    for p, m, scale in zip(params, oracle.exp_avgs, oracle.scales, strict=True):
        assert same_bits(optimizer.state[p]["exp_avg"].cpu(), m)
        if m.dtype == torch.int8:
            assert same_bits(optimizer.state[p]["exp_avg_scale"].cpu(), scale)


def test_blocks_follow_memory(backend):
    # Of a transposed weight they run down its columns.
    data = problem([(70, 80)], steps=3)
    weight = data.params[0].t().contiguous().t()
    params = leaves([weight.to(backend.device)])
    optimizer = Lion(params, **HYPER, state_dtype="int8", stochastic_rounding=True)
    oracle = Oracle([weight.t()], "int8")
    for (g,) in data.grads:
        oracle.step([g.t().contiguous()])
        run(optimizer, params, [[g.to(backend.device)]])
    (p,) = params
    assert optimizer.state[p]["exp_avg"].stride() == p.stride()
    assert same_bits(p.detach().cpu().t(), oracle.params[0])
    assert same_bits(optimizer.state[p]["exp_avg"].cpu().t(), oracle.exp_avgs[0])
    assert same_bits(optimizer.state[p]["exp_avg_scale"].cpu(), oracle.scales[0])


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_what_is_not_finite_stays_where_it_is(backend, state_dtype):
    data = problem([(5000,)], steps=3)
    data.grads[0][0][[3, 200, 4999]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    oracle = Oracle(data.params, state_dtype)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = Lion(params, **HYPER, state_dtype=state_dtype)
    for grads in data.grads:
        oracle.step([grads[0].cpu()])
        run(optimizer, params, [grads])
        assert optimizer.nonfinite.item() == 3
        assert same_bits(params[0].detach().cpu(), oracle.params[0])
    if state_dtype == "int8":  # -128 is NaN there; the others of the block do not notice
        state = optimizer.state[params[0]]
        assert (state["exp_avg"].cpu() == -128).nonzero().flatten().tolist() == [3, 200, 4999]
        assert same_bits(state["exp_avg_scale"].cpu(), oracle.scales[0])


# ---- Random bits ---------------------------------------------------------------------------------

LOW = dict(master_weights=False, state_dtype="bfloat16")


def low(backend, data, groups=None, **over):
    """Return parameters in bf16 and their optimizer, all of it rounded stochastically."""
    params = leaves([p.to(backend.device, BFLOAT16, copy=True) for p in data.params])
    made = Lion(params if groups is None else groups(params), **{**HYPER, **LOW, **over})
    return params, made


def test_bits_are_keyed_by_the_place_among_all_parameters(backend):
    data = problem([(300,), (300,), (300,)], steps=3).to(backend.device, grad_dtype=BFLOAT16)
    params, optimizer = low(backend, data)
    run(optimizer, params, data.grads)
    # Grouped otherwise, and with a neighbour that has no gradient.
    split = [[0], [1, 2]]
    others, other = low(backend, data, lambda ps: [{"params": [ps[i] for i in g]} for g in split])
    run(other, others, [[None, *grads[1:]] for grads in data.grads])
    for i in (1, 2):
        assert same_bits(others[i].detach(), params[i].detach())
        assert same_bits(other.state[others[i]]["exp_avg"], optimizer.state[params[i]]["exp_avg"])
    # A group that comes later leaves the others' keys as they are.
    late_params, late = low(backend, data, lambda ps: ps[:2])
    run(late, late_params[:2], [grads[:2] for grads in data.grads[:1]])
    late.add_param_group(dict(params=late_params[2:]))
    run(late, late_params, [[*grads[:2], None] for grads in data.grads[1:]])
    assert same_bits(values(late_params[:2]), values(params[:2]))


def test_tensors_steps_and_seeds_draw_different_bits(backend):
    data = problem([(4096,)], steps=1).to(backend.device, grad_dtype=BFLOAT16)
    data.params *= 2
    data.grads = [data.grads[0] * 2]
    params, optimizer = low(backend, data)
    run(optimizer, params, data.grads)
    others, other = low(backend, data, seed=1)
    run(other, others, data.grads)
    later, late = low(backend, data)
    for p in later:
        late.state[p] = {
            "step": torch.ones((), device=backend.device),
            "exp_avg": torch.zeros_like(p),
        }
    run(late, later, data.grads)
    drawn = [*params, others[0], later[0]]
    for a, b in itertools.combinations(drawn, 2):
        assert 0.01 < (a != b).double().mean() < 0.5  # the others are rounded alike
    for p, q in zip(params, others, strict=True):
        a, b = optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"]
        assert 0.05 < (a != b).double().mean() < 0.6


def test_small_steps_are_lost_to_nearest_and_kept_on_the_mean_stochastically(backend):
    # A weight of 1 has neighbours 2^-7 above and 2^-8 below; steps are of 2^-10.
    steps, n = 64, 4096
    results = {}
    for stochastic in ROUNDINGS:
        (p,) = leaves([torch.ones(n, dtype=BFLOAT16, device=backend.device)])
        optimizer = Lion([p], lr=2.0**-10, stochastic_rounding=stochastic, master_weights=False)
        run(optimizer, [p], [[torch.ones_like(p)]] * steps)
        results[stochastic] = p.detach().double()
    assert (results[False] == 1).all()
    mean = results[True].mean().item()
    # Each step's rounding adds at most 2^-18 of variance: 4 sigma of the mean of 4096.
    assert mean == pytest.approx(1 - steps * 2.0**-10, abs=4 * (steps * 2.0**-18 / n) ** 0.5)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_bits_for_any_number_of_threads_and_instruction_set(state_dtype):
    data = problem([*SHAPES, (300, 500)], steps=3).to(dtype=BFLOAT16, grad_dtype=BFLOAT16)
    threads, isa = torch.get_num_threads(), largebatch._C.cpu_isa()
    results = []
    for name, number in itertools.product(largebatch._C.cpu_isas(), (1, 2, 3)):
        largebatch._C.set_cpu_isa(name)
        torch.set_num_threads(number)
        params = leaves(data.to().params)
        optimizer = Lion(params, **HYPER, master_weights=False, state_dtype=state_dtype)
        run(optimizer, params, data.grads)
        results.append(snapshot(optimizer))
    torch.set_num_threads(threads)
    largebatch._C.set_cpu_isa(isa)
    assert all(same_bits(results[0], other) for other in results[1:])


def test_found_inf_leaves_every_bit(backend):
    data = problem(SHAPES, steps=3).to(backend.device, grad_dtype=BFLOAT16)
    params, optimizer = low(backend, data, state_dtype="int8")
    run(optimizer, params, data.grads[:1])
    before = snapshot(optimizer)
    optimizer.found_inf = torch.ones((), device=backend.device)
    run(optimizer, params, data.grads[1:2])
    assert same_bits(snapshot(optimizer), before)
    del optimizer.found_inf  # and the next one draws what it would have drawn
    run(optimizer, params, data.grads[2:])
    others, other = low(backend, data, state_dtype="int8")
    run(other, others, [data.grads[0], data.grads[2]])
    assert same_bits(snapshot(other), snapshot(optimizer))


# ---- Resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("masters", [False, True], ids=["no master", "master"])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
@pytest.mark.parametrize("state_dtype", STATES)
def test_resume_is_bitwise(backend, state_dtype, dtype, masters):
    data = problem(SHAPES, steps=6).to(backend.device, dtype, dtype)
    options = dict(**HYPER, state_dtype=state_dtype, master_weights=masters, seed=11)
    params = leaves(data.to().params)
    optimizer = Lion(params, **options)
    run(optimizer, params, data.grads[:3])
    saved = through_file([optimizer.state_dict(), [p.detach() for p in params]])
    run(optimizer, params, data.grads[3:])
    for fused in (None, False):  # the other path draws the same bits
        resumed = leaves([p.to(backend.device, copy=True) for p in saved[1]])
        again = Lion(resumed, fused=fused)  # all settings come from the checkpoint
        again.load_state_dict(
            {**saved[0], "param_groups": [{**saved[0]["param_groups"][0], "fused": fused}]}
        )
        assert all(again.state[q]["exp_avg"].dtype == dtype_of(state_dtype, q) for q in resumed)
        run(again, resumed, data.grads[3:])
        assert same_bits(snapshot(again), snapshot(optimizer))


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_a_copy_goes_on_with_the_same_bits(backend, state_dtype):
    data = problem(SHAPES, steps=4).to(backend.device, grad_dtype=BFLOAT16)
    params, optimizer = low(backend, data, state_dtype=state_dtype)
    run(optimizer, params, data.grads[:2])
    twin = copy.deepcopy(optimizer)
    run(optimizer, params, data.grads[2:])
    twins = twin.param_groups[0]["params"]
    assign(twins, [None] * len(twins))
    run(twin, twins, data.grads[2:])
    assert same_bits(snapshot(twin), snapshot(optimizer))
