# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""AGVM as an optimizer: rates that nobody sees changed, schedulers, scalers, errors."""

import math

import pytest
import torch

from largebatch.optim import AGVM, LAMB, LARS
from tests.helpers import leaves, same_bits, snapshot
from tests.optim.agvm_setting import accumulate, batches, modules_of, train, weights


def make(params, optimizer=None, **options):
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9) if optimizer is None else optimizer
    options = dict(anchor="body", interval=2, warmup=1, momentum=0.5) | options
    return AGVM(optimizer, modules_of(params), **options)


def backward(agvm, params, batch):
    for grads in batch:
        accumulate(params, grads)
        agvm.micro_batch()


# ---- Rates ---------------------------------------------------------------------------------------


class Watched(torch.optim.SGD):
    """Notes the groups it steps with, and counts in them as some optimizers do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.values, self.fail = [], [], False

    def step(self, closure=None):
        self.seen.append([group["lr"] for group in self.param_groups])
        self.values.append([float(lr) for lr in self.seen[-1]])
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        if self.fail:
            raise KeyboardInterrupt
        return super().step(closure)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), torch.tensor(0.1).double()], ids=str)
@pytest.mark.parametrize("fail", [False, True])
def test_no_group_changes_but_by_what_the_optimizer_writes(lr, fail):
    params, given = weights(), batches(3)
    optimizer = Watched([{"params": params[:3]}, {"params": params[3:]}], lr=lr)
    agvm = make(params, optimizer, interval=1)
    groups, members = optimizer.param_groups, list(optimizer.param_groups)
    before = [dict(group) for group in groups]
    version = getattr(lr, "_version", None)
    train(agvm, params, given[:2])
    optimizer.fail = fail
    backward(agvm, params, given[2])
    factors = agvm.factors
    if fail:
        with pytest.raises(KeyboardInterrupt):
            agvm.step()
        assert same_bits(list(agvm.factors.values()), list(factors.values()))
    else:
        agvm.step()
    assert optimizer.param_groups is groups
    assert all(a is b for a, b in zip(groups, members, strict=True))
    for group, then in zip(groups, before, strict=True):
        assert group.pop("step") == 3
        assert group.keys() == then.keys()
        assert all(group[name] is then[name] for name in then)
    assert getattr(lr, "_version", None) == version
    neck, head = (float(lr) * agvm.factors[name].item() for name in ("neck", "head"))
    if not fail:  # neighbours of one module: body neck body | neck head
        assert optimizer.values[2] == pytest.approx([0.1, neck, 0.1, neck, head])
        assert optimizer.values[2] != pytest.approx(optimizer.values[1])


def test_a_step_that_failed_can_be_taken_again():
    results = []
    for fails in (False, True):
        params, given = weights(), batches(2)
        agvm = make(params, Watched(params, lr=0.1), interval=1)
        train(agvm, params, given[:1])
        backward(agvm, params, given[1])
        if fails:
            agvm.optimizer.fail = True
            with pytest.raises(KeyboardInterrupt):
                agvm.step()
            agvm.optimizer.fail = False
        agvm.step()
        results.append([p.detach() for p in params] + list(agvm.factors.values()))
    assert same_bits(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_rate_is_stood_in_for_by_one_tensor_for_good(backend, dtype):
    lr = torch.tensor(0.1, dtype=dtype, device=backend.device)
    params, given = weights(backend.device), batches(4, device=backend.device)
    optimizer = Watched(params, lr=lr)
    agvm = make(params, optimizer, interval=1)
    train(agvm, params, given)
    neck, head = 1, 4  # of: body neck body neck head
    for rates in optimizer.seen:
        assert rates[0] is lr
        assert rates[neck] is optimizer.seen[0][neck]
        assert rates[neck].dtype == dtype
    assert optimizer.seen[0][neck] is optimizer.seen[0][neck + 2]
    expected = (lr.double() * agvm.factors["head"]).to(dtype)
    assert same_bits(optimizer.seen[0][head], expected)


def test_rates_do_not_drift():
    # Multiplied and divided each step, 0.1 would not be 0.1 any more after a few hundred.
    params, given = weights(), batches(2, micro=2)
    agvm = make(params, interval=1)
    train(agvm, params, given * 150)
    assert agvm.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("on", ["wrapper", "optimizer before", "optimizer"])
def test_schedulers_see_their_own_rates(on):
    params, given = weights(), batches(6)
    optimizer = torch.optim.SGD(params, lr=0.1)

    def schedule(target):
        return torch.optim.lr_scheduler.LambdaLR(target, lambda step: 1 / (1 + step))

    scheduler = schedule(optimizer) if on == "optimizer before" else None
    agvm = make(params, optimizer, interval=1)
    scheduler = scheduler or schedule(agvm if on == "wrapper" else optimizer)
    steps = []
    optimizer.register_step_pre_hook(lambda o, *_: steps.append([g["lr"] for g in o.param_groups]))
    for step, batch in enumerate(given):
        rate = 0.1 * (1 / (1 + step))
        assert agvm.param_groups[0]["lr"] == rate
        factors = train(agvm, params, [batch])[0]
        assert steps[-1][0] == rate
        assert steps[-1][-1] == rate * factors[2]
        scheduler.step()
    assert scheduler.get_last_lr() == [0.1 * (1 / 7)]


def test_is_an_optimizer_that_shares_groups_and_state():
    params, given = weights(), batches(2)
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    agvm = make(params, optimizer)
    train(agvm, params, given)
    assert isinstance(agvm, torch.optim.Optimizer)
    assert agvm.param_groups is optimizer.param_groups
    assert agvm.state is optimizer.state
    assert agvm.defaults == optimizer.defaults
    assert len(agvm.state) == len(params)
    assert all(p.grad is None for p in params)


def test_step_returns_the_loss_of_a_closure_with_gradients_enabled():
    params, given = weights(), batches(2)
    agvm = make(params, interval=1)

    def closure():
        assert torch.is_grad_enabled()
        agvm.zero_grad()
        backward(agvm, params, given[0])
        return 3.0

    assert agvm.step(closure) == 3.0
    assert agvm.step(closure) == 3.0
    assert agvm.factors["head"] != 1


def test_a_batch_whose_gradients_are_dropped_leaves_nothing():
    found = []
    for dropped in ([], [3, 2]):
        params, given = weights(), batches(2)
        agvm = make(params, warmup=0)
        for count in dropped:  # as when a GradScaler does not call the optimizer
            backward(agvm, params, given[1][:count])
            agvm.zero_grad()
        train(agvm, params, given[:1])
        found.append([*snapshot(agvm), *agvm.factors.values()])
    assert same_bits(*found)


def test_parameters_may_change_places():
    params, given = weights(), batches(1)
    agvm = make(params, Watched(params, lr=0.1), interval=1)
    train(agvm, params, given)
    members = agvm.param_groups[0]["params"]
    members[0], members[1] = members[1], members[0]
    train(agvm, params, given)
    neck, head = (0.1 * agvm.factors[name].item() for name in ("neck", "head"))
    assert agvm.optimizer.values[1] == pytest.approx([neck, 0.1, neck, head])


def test_parameters_may_be_added_later():
    params, extra = weights(), leaves([torch.ones(9)])
    modules = modules_of(params)
    modules["head"] += extra
    optimizer = torch.optim.SGD(params, lr=0.1)
    agvm = AGVM(optimizer, modules, anchor="body", warmup=0)
    agvm.add_param_group({"params": extra, "lr": 0.5})
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(params), 1]
    stray = leaves([torch.ones(9)])
    with pytest.raises(
        ValueError, match=r"AGVM: param_groups\[2\]\['params'\]\[0\] of shape \[9\]"
    ):
        agvm.add_param_group({"params": stray})
    assert len(optimizer.param_groups) == 2
    optimizer.add_param_group({"params": stray})
    with pytest.raises(ValueError, match="in none of the modules"):
        train(agvm, params, batches(1))


# ---- Scalers -------------------------------------------------------------------------------------


def test_found_inf_keeps_all_factors(backend):
    params, given = weights(backend.device), batches(3, device=backend.device)
    agvm = make(params, LAMB(params, lr=0.1), interval=1, precondition=False)
    train(agvm, params, given[:2])
    before = [*snapshot(agvm), *agvm.factors.values(), *agvm.variances.values()]
    agvm.found_inf = torch.ones((), device=backend.device)
    train(agvm, params, given[2:])
    assert same_bits([*snapshot(agvm), *agvm.factors.values(), *agvm.variances.values()], before)
    assert not hasattr(agvm.optimizer, "found_inf")
    agvm.found_inf.zero_()
    train(agvm, params, given[2:])
    assert not same_bits(list(agvm.factors.values()), before[-6:-3])


@pytest.mark.parametrize("kind", ["LAMB", "SGD", "AdamW"])
def test_grad_scaler_end_to_end(backend, kind):
    def optimizer_of(params):
        if kind == "SGD":
            return torch.optim.SGD(params, lr=0.1)
        if kind == "AdamW":
            return torch.optim.AdamW(params, lr=0.01, eps=0.05)
        return LAMB(params, lr=0.01, eps=0.05)

    given = batches(4, device=backend.device)
    params, plain = weights(backend.device), weights(backend.device)
    scaler = torch.amp.GradScaler(backend.device.type, init_scale=256.0, growth_interval=1000)
    scaler.scale(torch.ones((), device=backend.device))  # makes its tensors
    agvm = make(params, optimizer_of(params), interval=1, grad_scale=scaler.get_scale)
    expected = train(make(plain, optimizer_of(plain), interval=1), plain, given)
    for batch, factors in zip(given, expected, strict=True):
        backward(agvm, params, [[256 * g for g in grads] for grads in batch])
        scaler.step(agvm)
        scaler.update()
        agvm.zero_grad()
        assert [f.item() for f in agvm.factors.values()] == pytest.approx(factors, rel=1e-5)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


def test_grad_scaler_skips(backend):
    params, given = weights(backend.device), batches(3, device=backend.device)
    scaler = torch.amp.GradScaler(backend.device.type, init_scale=2.0, growth_interval=1000)
    scaler.scale(torch.ones((), device=backend.device))
    agvm = make(params, LARS(params, lr=0.1), interval=1)
    train(agvm, params, given[:2])
    before = [*snapshot(agvm), *agvm.factors.values()]
    given[2][1][0][3] = math.inf
    backward(agvm, params, given[2])
    scaler.step(agvm)
    scaler.update()
    assert same_bits([*snapshot(agvm), *agvm.factors.values()], before)
    assert scaler.get_scale() == 1.0


def test_preconditioned_measure_under_a_scaler_needs_to_know_the_scale():
    params, given = weights(), batches(2)
    agvm = make(params, LAMB(params, lr=0.1))
    train(agvm, params, given[:1])
    agvm.grad_scale = torch.tensor(4.0)
    with pytest.raises(ValueError, match=r"AGVM: grad_scale: got None.*scaler\.get_scale"):
        train(agvm, params, given[1:])


# ---- What is refused -----------------------------------------------------------------------------

A, B, C = leaves([torch.ones(3), torch.ones(4), torch.ones(5)])
BAD = {
    "stray": (dict(modules={"a": [A], "b": [B]}), ValueError, r"\['params'\]\[2\] of shape \[5\]"),
    "twice": (dict(modules={"a": [A, B], "b": [B, C]}), ValueError, r"modules\['b'\].*'a' too"),
    "empty": (dict(modules={"a": [A, B, C], "b": []}), ValueError, r"modules\['b'\] has no"),
    "list": (dict(modules=[A, B, C]), TypeError, "modules: got list"),
    "none": (dict(modules={}), TypeError, "modules: got dict"),
    "tensor": (dict(modules={"a": A, "b": [B, C]}), TypeError, r"modules\['a'\]: got Parameter"),
    "numbers": (dict(modules={"a": [1.0]}), TypeError, r"modules\['a'\]: got list"),
    "anchor": (dict(anchor="c"), ValueError, r"anchor: got 'c', expected one of \['a', 'b'\]"),
    "interval": (dict(interval=0), ValueError, "interval: got 0"),
    "interval kind": (dict(interval=2.5), ValueError, "interval: got 2.5"),
    "momentum": (dict(momentum=1.0), ValueError, "momentum: got 1.0"),
    "momentum nan": (dict(momentum=math.nan), ValueError, "momentum: got nan"),
    "warmup": (dict(warmup=-1), ValueError, "warmup: got -1"),
    "clamp": (dict(clamp=(1.5, 10.0)), ValueError, r"clamp: got \(1.5, 10.0\)"),
    "clamp above": (dict(clamp=(0.5, 0.9)), ValueError, r"clamp: got \(0.5, 0.9\)"),
    "clamp size": (dict(clamp=(0.5,)), ValueError, r"clamp: got \(0.5,\)"),
    "grad_scale": (dict(grad_scale=2.0), TypeError, "grad_scale: got 2.0"),
    "optimizer": (dict(optimizer=[A, B, C]), TypeError, "optimizer: got 'list'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_get_one_line(name):
    over, error, pattern = BAD[name]
    settings = dict(
        optimizer=torch.optim.SGD([A, B, C], lr=0.1), modules={"a": [A, B], "b": [C]}, anchor="a"
    )
    with pytest.raises(error, match="AGVM: .*" + pattern) as caught:
        AGVM(**settings | over)
    assert "\n" not in str(caught.value)


def test_a_parameter_in_no_module_is_called_by_its_name():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"AGVM: parameter 'bias' is in none .*\['a'\]\. Add it"):
        AGVM(optimizer, {"a": [model.weight]}, anchor="a")


def test_a_group_without_a_rate_is_refused():
    optimizer = torch.optim.SGD([A], lr=0.1)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(TypeError, match=r"AGVM: optimizer.param_groups\[0\]\['lr'\]: got None"):
        AGVM(optimizer, {"a": [A]}, anchor="a")


@pytest.mark.parametrize(("calls", "count"), [(0, "0 micro-batches"), (1, "1 micro-batch ")])
def test_one_worker_and_one_micro_batch_are_told_what_to_do(calls, count):
    params, (batch,) = weights(), batches(1)
    agvm = make(params, warmup=100)  # told in the first step, not in the hundredth
    before = snapshot(agvm)
    backward(agvm, params, batch[:calls])
    with pytest.raises(RuntimeError, match=f"AGVM: .*{count}.*expected 2.*micro_batch.*hook") as e:
        agvm.step()
    assert "\n" not in str(e.value)
    assert same_bits(snapshot(agvm), before)


def test_later_steps_may_come_whole_unless_they_measure():
    params, given = weights(), batches(4)
    agvm = make(params, warmup=2)
    train(agvm, params, given[:1])
    backward(agvm, params, given[1][:1])
    agvm.step()
    backward(agvm, params, given[2][:1])
    with pytest.raises(RuntimeError, match="AGVM: the step has 1 micro-batch on one worker"):
        agvm.step()


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(5, 3, sparse=True)
    agvm = AGVM(torch.optim.SGD(table.parameters(), lr=0.1), {"a": table}, anchor="a", warmup=0)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="AGVM does not support sparse gradients"):
        agvm.micro_batch()
