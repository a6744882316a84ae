# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What every user of torch.optim may expect, of every optimizer of the package."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

from tests.conftest import assert_close, assert_matches
from tests.helpers import assign, leaves, problem, run, same_bits, snapshot

SHAPES = [(20, 30), (100,), (7,)]


def start(family, steps=4, shapes=SHAPES, **over):
    data = problem(shapes, steps)
    params = leaves(data.to().params)
    return data, params, family.make(params, **over)


def values(params):
    return [p.detach().clone() for p in params]


BAD = {
    "LAMB": [
        dict(lr=-1e-3),
        dict(lr=float("nan")),
        dict(lr=torch.ones(2)),
        dict(betas=(1.0, 0.9)),
        dict(betas=(0.9, 1.0)),
        dict(betas=(-0.1, 0.9)),
        dict(betas=(0.9,)),
        dict(eps=-1e-8),
        dict(weight_decay=-0.1),
        dict(bias_correction="inside"),
        dict(decay="none"),
        dict(adapt="layer"),
        dict(trust_clip=(2.0, 1.0)),
        dict(trust_clip="tight"),
        dict(weight_norm_clip=(2.0, 1.0)),
        dict(weight_norm_clip=2.0),
        dict(max_grad_norm="one"),
    ],
    "LARS": [
        dict(lr=-1e-3),
        dict(lr=float("nan")),
        dict(lr=torch.ones(2)),
        dict(momentum=-0.9),
        dict(dampening=-0.1),
        dict(weight_decay=-0.1),
        dict(trust_coefficient=-0.001),
        dict(eps=-1e-8),
    ],
    "Adan": [
        dict(lr=-1e-3),
        dict(lr=float("nan")),
        dict(lr=torch.ones(2)),
        dict(betas=(1.0, 0.9, 0.9)),
        dict(betas=(0.9, 1.0, 0.9)),
        dict(betas=(0.9, 0.9, 1.0)),
        dict(betas=(0.9, 0.9, -0.1)),
        dict(betas=(0.9, 0.999)),
        dict(eps=-1e-8),
        dict(weight_decay=-0.1),
        dict(max_grad_norm="one"),
    ],
}


class TestConstruction:
    def test_defaults_are_the_documented_ones(self, family):
        given = inspect.signature(family.cls.__init__).parameters
        for name, value in family.oracle.defaults.items():
            assert given[name].default == value
        for name, value in dict(capturable=False, fused=None, master_weights=True).items():
            assert given[name].default == value

    def test_every_argument_is_a_setting_of_the_group(self, family):
        optimizer = family.cls([torch.nn.Parameter(torch.ones(2))])
        names = set(inspect.signature(family.cls.__init__).parameters) - {"self", "params"}
        assert names <= set(optimizer.defaults)
        assert names <= set(optimizer.param_groups[0])

    def test_bad_arguments_are_named(self, family):
        for bad in BAD[str(family)]:
            (name,) = bad
            with pytest.raises(ValueError, match=name):
                family.cls([torch.nn.Parameter(torch.ones(2))], **bad)
            with pytest.raises(ValueError, match=name):
                family.cls([dict(params=[torch.nn.Parameter(torch.ones(2))], **bad)])

    def test_parameters_must_be_a_list(self, family):
        with pytest.raises(TypeError):
            family.cls(torch.nn.Parameter(torch.ones(2)))
        with pytest.raises(ValueError, match="empty"):
            family.cls([])

    def test_named_parameters(self, family):
        model = torch.nn.Linear(3, 2)
        optimizer = family.cls(model.named_parameters())
        saved = optimizer.state_dict()
        assert saved["param_groups"][0]["param_names"] == ["weight", "bias"]

    def test_step_is_defined_on_the_class(self, family):
        assert "step" in dir(family.cls)
        assert issubclass(family.cls, torch.optim.Optimizer)


class TestGroups:
    def test_group_settings_win(self, family):
        data = problem(SHAPES)
        groups = [dict(params=data.params[:1], lr=0.03), dict(params=data.params[1:])]
        oracle = family.reference(groups)
        for grads in data.grads:
            oracle.step(grads)
        params = leaves(data.params)
        optimizer = family.make([dict(params=params[:1], lr=0.03), dict(params=params[1:])])
        run(optimizer, params, data.grads)
        assert_matches(optimizer, params, oracle)

    def test_group_added_later_starts_at_step_one(self, family):
        data, params, optimizer = start(family, **family.independent)
        late = problem([(40,)], steps=4, seed=1)
        (q,) = leaves(late.params)
        for t, grads in enumerate(data.grads):
            if t == 2:
                optimizer.add_param_group(dict(params=[q], lr=0.02))
            assign(params, grads)
            assign([q], late.grads[t])
            optimizer.step()
        assert [optimizer.state[p]["step"].item() for p in (*params, q)] == [4, 4, 4, 2]
        oracle = family.reference(problem([(40,)], seed=1).params, lr=0.02, **family.independent)
        for grads in late.grads[2:]:
            oracle.step(grads)
        assert_close(q, oracle.params[0])

    def test_bad_group_changes_nothing(self, family):
        _, _, optimizer = start(family)
        with pytest.raises(ValueError, match="weight_decay"):
            optimizer.add_param_group(
                dict(params=[torch.nn.Parameter(torch.ones(2))], weight_decay=-1.0)
            )
        assert len(optimizer.param_groups) == 1

    def test_setting_made_bad_later_stops_the_step(self, family):
        data, params, optimizer = start(family)
        run(optimizer, params, data.grads[:1])
        before = snapshot(optimizer)
        optimizer.param_groups[0]["weight_decay"] = -1.0
        with pytest.raises(ValueError, match="weight_decay"):
            run(optimizer, params, data.grads[1:2])
        assert same_bits(snapshot(optimizer), before)

    def test_parameter_in_two_groups_is_refused(self, family):
        p = torch.nn.Parameter(torch.ones(3))
        with pytest.raises(ValueError, match="more than one"):
            family.cls([dict(params=[p]), dict(params=[p])])

    def test_parameter_twice_in_a_group_is_refused(self, family):
        p = torch.nn.Parameter(torch.ones(3))
        with pytest.warns(UserWarning, match="duplicate"):
            optimizer = family.cls([p, p])
        p.grad = torch.ones(3)
        with pytest.raises(ValueError, match=r"\[0\] and .*\[1\] share memory"):
            optimizer.step()
        assert torch.equal(p.detach(), torch.ones(3))

    def test_parameters_that_overlap_are_refused(self, family):
        memory = torch.ones(10)
        params = leaves([memory[:6], memory[4:]])
        optimizer = family.cls(params)
        assign(params, [torch.ones(6), torch.ones(6)])
        with pytest.raises(ValueError, match=r"params\["):
            optimizer.step()
        assert torch.equal(memory, torch.ones(10))


class TestLearningRate:
    def test_zero_moves_nothing_but_the_state(self, family):
        data, params, optimizer = start(family, lr=0.0)
        before = values(params)
        run(optimizer, params, data.grads)
        assert same_bits(values(params), before)
        assert optimizer.state[params[0]]["step"].item() == 4
        assert optimizer.state[params[0]][family.oracle.buffers[0]].any()

    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_tensor_is_read_as_its_value(self, family, shape):
        data, params, optimizer = start(family, lr=2.0**-7)
        run(optimizer, params, data.grads)
        _, others, other = start(family, lr=torch.full(shape, 2.0**-7))
        run(other, others, data.grads)
        assert same_bits(values(params), values(others))

    @pytest.mark.parametrize("number", [np.float32, np.float64, np.array])
    def test_numbers_of_numpy_are_numbers(self, family, number):
        data, params, optimizer = start(family, lr=2.0**-7)
        run(optimizer, params, data.grads)
        _, others, other = start(family, lr=number(2.0**-7))
        run(other, others, data.grads)
        assert same_bits(values(params), values(others))

    def test_other_hyper_parameters_are_no_tensors(self, family):
        # They would have to be waited for.
        with pytest.raises(ValueError, match="eps: got tensor"):
            start(family, eps=torch.tensor(1e-6))

    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_schedulers_are_followed(self, family, as_tensor):
        data = problem(SHAPES, steps=6)
        oracle = family.reference(data.params)
        params = leaves(data.params)
        rate = torch.tensor(2.0**-4) if as_tensor else 2.0**-4
        optimizer = family.make(params, lr=rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
        for t, grads in enumerate(data.grads):
            # a tensor is fp32, so the oracle must not be more exact
            exact = 2.0**-4 / (1 + t)
            oracle.groups[0][1]["lr"] = torch.tensor(exact).item() if as_tensor else exact
            oracle.step(grads)
            run(optimizer, params, [grads])
            scheduler.step()
        assert_matches(optimizer, params, oracle)
        assert torch.is_tensor(optimizer.param_groups[0]["lr"]) == as_tensor


class TestStep:
    def test_closure_runs_with_gradients_and_its_loss_is_returned(self, family):
        _, params, optimizer = start(family)

        def closure():
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in params)
            loss.backward()
            return loss

        with torch.no_grad():
            first = optimizer.step(closure)
        second = optimizer.step(closure)
        assert second.item() < first.item()

    def test_hooks_are_called(self, family):
        data, params, optimizer = start(family)
        seen = []
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        run(optimizer, params, data.grads[:1])
        assert seen == ["before", "after"]

    def test_without_gradients_it_does_nothing(self, family):
        _, params, optimizer = start(family)
        before = values(params)
        assert optimizer.step() is None
        assert same_bits(values(params), before)
        assert len(optimizer.state) == 0

    def test_gradients_set_to_zero_are_gradients(self, family):
        _, params, optimizer = start(family, weight_decay=0.0)
        assign(params, [torch.zeros_like(p) for p in params])
        before = values(params)
        optimizer.step()
        assert same_bits(values(params), before)
        assert optimizer.state[params[0]]["step"].item() == 1

    def test_autograd_notices_the_change(self, family):
        data, params, optimizer = start(family)
        p = params[0]
        loss = p.square().sum()
        version = p._version
        run(optimizer, params, data.grads[:1])
        assert p._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.parametrize("fused", [None, False])
    def test_maximize_is_descent_on_the_negative(self, family, fused):
        data, params, optimizer = start(family, maximize=True, fused=fused)
        given = [[g.clone() for g in grads] for grads in data.grads]
        run(optimizer, params, data.grads)
        assert all(same_bits(a, b) for a, b in zip(data.grads, given, strict=True))
        _, others, other = start(family, fused=fused)
        run(other, others, [[-g for g in grads] for grads in data.grads])
        assert same_bits(snapshot(optimizer), snapshot(other))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_pure_torch_path_is_the_same_function(self, family, dtype):
        data = problem(SHAPES, steps=10).to(dtype=dtype, grad_dtype=dtype)
        oracle = family.reference(data.params)
        for grads in data.grads:
            oracle.step(grads)
        for fused in (False, True):
            params = leaves(data.to().params)
            optimizer = family.make(params, fused=fused)
            run(optimizer, params, data.grads)
            exact = [optimizer.state[p].get("master_param", p.detach()) for p in params]
            assert_close(exact, oracle.params, "fp64" if dtype == torch.float64 else "fp32")
            assert same_bits(values(params), [e.to(dtype) for e in exact])

    def test_capturable_changes_no_bits(self, family):
        data, params, optimizer = start(family)
        run(optimizer, params, data.grads)
        _, others, other = start(family, capturable=True)
        run(other, others, data.grads)
        assert same_bits(snapshot(optimizer), snapshot(other))

    def test_stepping_from_backward_hooks(self, family):
        # Gradient release: each parameter has its own optimizer, stepped as its gradient arrives.
        params = leaves(problem(SHAPES).params)
        expected = family.reference([p.detach() for p in params], **family.independent)
        own = {p: family.make([p], **family.independent) for p in params}

        def release(p):
            own[p].step()
            own[p].zero_grad()

        for p in params:
            p.register_post_accumulate_grad_hook(release)
        for _ in range(3):
            expected.step([2 * p.detach() for p in params])
            sum(p.square().sum() for p in params).backward()
        assert all(p.grad is None for p in params)
        assert_close(params, expected.params)

    def test_trains_a_model(self, family):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        optimizer = family.make(model.parameters(), lr=1.0 if str(family) == "LARS" else 0.02)
        x = torch.randn(256, 4)
        y = x[:, :1] * x[:, 1:2]
        losses = []
        for _ in range(100):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


class TestKindsOfTensors:
    def test_sparse_gradients_are_refused(self, family):
        data, params, optimizer = start(family)
        before = values(params)
        sparse = torch.eye(20, 30).to_sparse()
        assign(params, [sparse, *data.grads[0][1:]])
        with pytest.raises(RuntimeError, match=f"{family} does not support sparse gradients"):
            optimizer.step()
        assert same_bits(values(params), before)

    def test_complex_is_a_pair_of_reals(self, family):
        data, params, optimizer = start(family, shapes=[(20, 30, 2), (100, 2)])
        run(optimizer, params, data.grads)
        pairs = leaves([torch.view_as_complex(p) for p in data.to().params])
        other = family.make(pairs)
        run(other, pairs, [[torch.view_as_complex(g) for g in grads] for grads in data.grads])
        assert all(p.is_complex() for p in pairs)
        assert same_bits([torch.view_as_real(p.detach()) for p in pairs], values(params))

    @pytest.mark.parametrize("fused", [None, False])
    def test_parameter_with_gaps(self, family, fused):
        data = problem([(20, 15), (50,)])
        oracle = family.reference(data.params)
        for grads in data.grads:
            oracle.step(grads)
        memory = [torch.full((20, 30), 7.0), torch.full((50, 3), 7.0)]
        views = [memory[0][:, ::2], memory[1][:, 1]]
        for view, p in zip(views, data.params, strict=True):
            view.copy_(p)
        params = leaves(views)
        optimizer = family.make(params, fused=fused)
        run(optimizer, params, data.grads)
        assert_matches(optimizer, params, oracle)
        assert (memory[0][:, 1::2] == 7).all()
        assert (memory[1][:, ::2] == 7).all()

    @pytest.mark.parametrize("fused", [None, False])
    def test_expanded_parameter_is_refused(self, family, fused):
        memory = torch.ones(3)
        p = torch.nn.Parameter(memory.expand(4, 3))
        optimizer = family.make([p], fused=fused)
        p.grad = torch.ones(4, 3)
        with pytest.raises(ValueError, match=r"params\[0\]"):
            optimizer.step()
        assert torch.equal(memory, torch.ones(3))
        state = optimizer.state[p]
        assert all(not value.any() for value in state.values())

    def test_scalar_parameter(self, family):
        p = torch.nn.Parameter(torch.tensor(3.0))
        oracle = family.reference([p.detach()])
        oracle.step([torch.tensor(0.5)])
        run(family.make([p]), [p], [[torch.tensor(0.5)]])
        assert_close(p, oracle.params[0])

    def test_gradient_of_a_wrong_dtype_is_named(self, family):
        p = torch.nn.Parameter(torch.ones(3))
        if not hasattr(p, "grad_dtype"):
            pytest.skip("this torch has no gradients in a dtype other than the parameter's")
        p.grad_dtype = torch.float64
        p.grad = torch.ones(3, dtype=torch.float64)
        with pytest.raises(TypeError, match=r"grads\[0\].*float64"):
            family.make([p]).step()
        assert torch.equal(p.detach(), torch.ones(3))

    def test_state_that_does_not_fit_is_named(self, family):
        data, params, optimizer = start(family)
        run(optimizer, params, data.grads[:1])
        name = family.oracle.buffers[0]
        state = optimizer.state[params[1]]
        good = state[name]
        before = values(params)
        for bad, error in (
            (torch.zeros(99), ValueError),
            (torch.zeros(200)[::2], ValueError),
            (torch.zeros(100, dtype=torch.bfloat16), TypeError),
            (torch.zeros(1).expand(100), ValueError),
        ):
            state[name] = bad
            with pytest.raises(error, match=rf"{name}s\[1\]"):
                run(optimizer, params, data.grads[1:2])
            assert same_bits(values(params), before)
        state[name] = good
        run(optimizer, params, data.grads[1:2])

    def test_state_shared_by_two_parameters_is_refused(self, family):
        params = leaves([torch.ones(8), torch.ones(8)])
        optimizer = family.make(params)
        run(optimizer, params, [[torch.ones(8), torch.ones(8)]])
        before = values(params)
        name = family.oracle.buffers[0]
        optimizer.state[params[1]][name] = optimizer.state[params[0]][name]
        with pytest.raises(ValueError, match=rf"{name}s\["):
            run(optimizer, params, [[torch.ones(8), torch.ones(8)]])
        assert same_bits(values(params), before)


class TestCopies:
    @pytest.mark.parametrize(
        "carry",
        [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))],
        ids=["deepcopy", "pickle"],
    )
    def test_copy_continues_with_the_same_bits(self, family, carry):
        data, params, optimizer = start(family)
        run(optimizer, params, data.grads[:2])
        twin = carry(optimizer)
        twins = twin.param_groups[0]["params"]
        assert twins[0] is not params[0]
        run(optimizer, params, data.grads[2:])
        run(twin, twins, data.grads[2:])
        assert same_bits(snapshot(twin), snapshot(optimizer))

    def test_state_dict_holds_plain_things(self, family):
        data, params, optimizer = start(family)
        run(optimizer, params, data.grads)
        saved = optimizer.state_dict()
        assert set(saved) == {"state", "param_groups"}
        assert set(saved["state"]) == {0, 1, 2}
        plain = (bool, int, float, str, tuple, list, type(None), torch.Tensor)
        for group in saved["param_groups"]:
            assert all(isinstance(value, plain) for value in group.values())
        assert all(torch.is_tensor(v) for s in saved["state"].values() for v in s.values())

    def test_load_hooks_are_called(self, family):
        _, _, optimizer = start(family)
        seen = []
        optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("after"))
        optimizer.register_state_dict_post_hook(lambda *_: seen.append("saved"))
        optimizer.load_state_dict(optimizer.state_dict())
        assert seen == ["saved", "before", "after"]
        optimizer.load_state_dict(optimizer.state_dict())
        assert seen[3:] == ["saved", "before", "after"]

    def test_loading_another_shape_of_groups_is_refused(self, family):
        _, _, optimizer = start(family)
        _, _, other = start(family, shapes=[(3,)])
        with pytest.raises(ValueError, match="parameter group"):
            optimizer.load_state_dict(other.state_dict())
