# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The torch.optim contract, of every optimizer of the package: what happens inside a step."""

import pytest
import torch

from tests.conftest import assert_close, assert_matches
from tests.helpers import assign, leaves, problem, run, same_bits, snapshot, values

SHAPES = [(20, 30), (100,), (7,)]


class TestStep:
    def test_closure_runs_with_gradients_and_its_loss_is_returned(self, family):
        _, params, optimizer = family.start(SHAPES)

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
        data, params, optimizer = family.start(SHAPES)
        seen = []
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        run(optimizer, params, data.grads[:1])
        assert seen == ["before", "after"]

    def test_without_gradients_it_does_nothing(self, family):
        _, params, optimizer = family.start(SHAPES)
        before = values(params)
        assert optimizer.step() is None
        assert same_bits(values(params), before)
        assert len(optimizer.state) == 0

    def test_frozen_parameters_are_left_alone(self, family):
        data, params, optimizer = family.start(SHAPES)
        params[1].requires_grad_(False)
        run(optimizer, params, [[grads[0], None, grads[2]] for grads in data.grads])
        assert torch.equal(params[1], data.params[1])
        assert params[1] not in optimizer.state

    def test_tied_parameters_are_updated_once(self, family):
        model = torch.nn.Sequential(torch.nn.Linear(6, 6, bias=False), torch.nn.Linear(6, 6))
        model[1].weight = model[0].weight
        params = list(model.parameters())
        assert len(params) == 2
        oracle = family.reference([p.detach() for p in params])
        optimizer = family.make(params)
        model(torch.ones(3, 6)).square().sum().backward()
        oracle.step([p.grad for p in params])
        optimizer.step()
        assert_matches(optimizer, params, oracle)

    def test_gradients_set_to_zero_are_gradients(self, family):
        _, params, optimizer = family.start(SHAPES, weight_decay=0.0)
        assign(params, [torch.zeros_like(p) for p in params])
        before = values(params)
        optimizer.step()
        assert same_bits(values(params), before)
        assert optimizer.state[params[0]]["step"].item() == 1

    def test_autograd_notices_the_change(self, family):
        data, params, optimizer = family.start(SHAPES)
        p = params[0]
        loss = p.square().sum()
        version = p._version
        run(optimizer, params, data.grads[:1])
        assert p._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.parametrize("fused", [None, False])
    def test_maximize_is_descent_on_the_negative(self, family, fused):
        data, params, optimizer = family.start(SHAPES, maximize=True, fused=fused)
        given = [[g.clone() for g in grads] for grads in data.grads]
        run(optimizer, params, data.grads)
        assert all(same_bits(a, b) for a, b in zip(data.grads, given, strict=True))
        _, others, other = family.start(SHAPES, fused=fused)
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
        data, params, optimizer = family.start(SHAPES)
        run(optimizer, params, data.grads)
        _, others, other = family.start(SHAPES, capturable=True)
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

    @pytest.mark.parametrize("compiled", [False, True])
    def test_trains_a_model(self, family, compiled):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        optimizer = family.make(model.parameters(), **family.learns)
        if compiled:  # the model alone, traced but not lowered: that would need a compiler
            model = torch.compile(model, backend="aot_eager")
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

    def test_sparse_gradients_are_refused(self, family):
        data, params, optimizer = family.start(SHAPES)
        before = values(params)
        sparse = torch.eye(20, 30).to_sparse()
        assign(params, [sparse, *data.grads[0][1:]])
        with pytest.raises(RuntimeError, match=f"{family} does not support sparse gradients"):
            optimizer.step()
        assert same_bits(values(params), before)

    def test_complex_is_a_pair_of_reals(self, family):
        data, params, optimizer = family.start([(20, 30, 2), (100, 2)])
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

    @pytest.mark.parametrize("fused", [None, False])
    def test_devices_side_by_side(self, family, fused):
        if not torch.cuda.is_available():
            pytest.skip("there is one device only")
        data = problem(SHAPES)
        oracle = family.solve(data)
        devices = ("cuda", "cpu", "cuda")
        params = leaves([p.to(d) for p, d in zip(data.params, devices, strict=True)])
        optimizer = family.make(params, fused=fused)
        for grads in data.grads:
            run(optimizer, params, [[g.to(p.device) for g, p in zip(grads, params, strict=True)]])
        assert_matches(optimizer, params, oracle)

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
