# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The torch.optim contract, of every optimizer of the package: constructor, groups, rates."""

import inspect

import numpy as np
import pytest
import torch

from tests.conftest import assert_close, assert_matches
from tests.helpers import assign, leaves, problem, run, same_bits, snapshot, values

SHAPES = [(20, 30), (100,), (7,)]


class TestConstructorAndGroups:
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
        for bad in family.bad:
            (name,) = bad
            with pytest.raises(ValueError, match=name):
                family.cls([torch.nn.Parameter(torch.ones(2))], **bad)
            with pytest.raises(ValueError, match=name):
                family.cls([dict(params=[torch.nn.Parameter(torch.ones(2))], **bad)])

    def test_parameters_must_be_iterable_and_some(self, family):
        with pytest.raises(TypeError):
            family.cls(torch.nn.Parameter(torch.ones(2)))
        with pytest.raises(ValueError, match="empty"):
            family.cls([])
        model = torch.nn.Linear(3, 2)
        optimizer = family.cls(p for p in model.parameters())
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
            id(model.weight),
            id(model.bias),
        ]

    def test_named_parameters(self, family):
        model = torch.nn.Linear(3, 2)
        for named in (model.named_parameters(), [dict(params=model.named_parameters())]):
            optimizer = family.cls(named)
            saved = optimizer.state_dict()
            assert saved["param_groups"][0]["param_names"] == ["weight", "bias"]
            run(optimizer, list(model.parameters()), [[torch.ones(2, 3), torch.ones(2)]])
            assert optimizer.state[model.bias]["step"].item() == 1

    def test_it_is_an_optimizer_of_torch_with_a_range_in_profiles(self, family):
        _, params, optimizer = family.start(SHAPES)
        assert isinstance(optimizer, torch.optim.Optimizer)
        family.make(params)  # the base wraps `step` once a class, not once an object
        with torch.autograd.profiler.profile() as profile:
            optimizer.step()
        assert [e.name for e in profile.function_events].count(f"Optimizer.step#{family}.step") == 1

    def test_every_setting_of_a_group_reaches_its_update(self, family):
        assert set(family.others) == set(family.oracle.defaults)
        data, plain, optimizer = family.start(SHAPES, steps=3)
        run(optimizer, plain, data.grads)
        before = snapshot(optimizer)
        for name, value in family.others.items():
            oracle = family.reference(
                [dict(params=data.params[:1]), dict(params=data.params[1:], **{name: value})]
            )
            params = leaves(data.to().params)
            optimizer = family.make(
                [dict(params=params[:1]), dict(params=params[1:], **{name: value})]
            )
            for grads in data.grads:
                oracle.step(grads)
            run(optimizer, params, data.grads)
            assert_matches(optimizer, params, oracle)
            assert not same_bits(snapshot(optimizer), before), f"{name} changed nothing"

    def test_group_added_later_starts_at_step_one(self, family):
        data, params, optimizer = family.start(SHAPES, **family.independent)
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
        _, _, optimizer = family.start(SHAPES)
        with pytest.raises(ValueError, match="weight_decay"):
            optimizer.add_param_group(
                dict(params=[torch.nn.Parameter(torch.ones(2))], weight_decay=-1.0)
            )
        assert len(optimizer.param_groups) == 1

    def test_setting_made_bad_later_stops_the_step(self, family):
        data, params, optimizer = family.start(SHAPES)
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

    def test_zero_moves_nothing_but_the_state(self, family):
        data, params, optimizer = family.start(SHAPES, lr=0.0)
        before = values(params)
        run(optimizer, params, data.grads)
        assert same_bits(values(params), before)
        assert optimizer.state[params[0]]["step"].item() == 4
        assert optimizer.state[params[0]][family.oracle.buffers[0]].any()

    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_tensor_is_read_as_its_value(self, family, shape):
        data, params, optimizer = family.start(SHAPES, lr=2.0**-7)
        run(optimizer, params, data.grads)
        _, others, other = family.start(SHAPES, lr=torch.full(shape, 2.0**-7))
        run(other, others, data.grads)
        assert same_bits(values(params), values(others))

    @pytest.mark.parametrize("number", [np.float32, np.float64, np.array])
    def test_numbers_of_numpy_are_numbers(self, family, number):
        data, params, optimizer = family.start(SHAPES, lr=2.0**-7)
        run(optimizer, params, data.grads)
        _, others, other = family.start(SHAPES, lr=number(2.0**-7))
        run(other, others, data.grads)
        assert same_bits(values(params), values(others))

    def test_other_hyper_parameters_are_no_tensors(self, family):
        # They would have to be waited for.
        with pytest.raises(ValueError, match="weight_decay: got tensor"):
            family.start(SHAPES, weight_decay=torch.tensor(1e-6))

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
