# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The torch.optim contract, of every optimizer of the package: state and its copies."""

import copy
import pickle

import pytest
import torch

from tests.helpers import leaves, run, same_bits, snapshot, values

SHAPES = [(20, 30), (100,), (7,)]


class TestState:
    def test_state_is_made_at_the_first_gradient(self, family):
        data, params, optimizer = family.start(SHAPES, steps=2)
        assert len(optimizer.state) == 0
        run(optimizer, params, [[*data.grads[0][:2], None]])
        assert set(optimizer.state) == set(params[:2])
        run(optimizer, params, data.grads[1:])
        assert [optimizer.state[p]["step"].item() for p in params] == [2, 2, 1]

    @pytest.mark.parametrize("fused", [None, True, False])
    def test_step_is_a_tensor_of_each_parameter(self, family, fused):
        data, params, optimizer = family.start(SHAPES, steps=1, fused=fused)
        run(optimizer, params, data.grads)
        steps = [optimizer.state[p]["step"] for p in params]
        assert all((s.dtype, s.shape, s.item()) == (torch.float32, (), 1.0) for s in steps)
        assert len({s.data_ptr() for s in steps}) == len(params)

    def test_state_that_does_not_fit_is_named(self, family):
        data, params, optimizer = family.start(SHAPES)
        run(optimizer, params, data.grads[:1])
        name = family.oracle.buffers[0]
        state = optimizer.state[params[1]]
        good = state[name]
        before = values(params)
        for bad, error in (
            (torch.zeros(99), ValueError),
            (torch.zeros(200)[::2], ValueError),
            (torch.zeros(100, dtype=torch.float64), TypeError),
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

    @pytest.mark.parametrize(
        "carry",
        [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))],
        ids=["deepcopy", "pickle"],
    )
    def test_copy_continues_with_the_same_bits(self, family, carry):
        data, params, optimizer = family.start(SHAPES)
        run(optimizer, params, data.grads[:2])
        twin = carry(optimizer)
        twins = twin.param_groups[0]["params"]
        assert twins[0] is not params[0]
        run(optimizer, params, data.grads[2:])
        run(twin, twins, data.grads[2:])
        assert same_bits(snapshot(twin), snapshot(optimizer))

    def test_state_dict_holds_plain_things(self, family):
        data, params, optimizer = family.start(SHAPES)
        run(optimizer, params, data.grads)
        saved = optimizer.state_dict()
        assert set(saved) == {"state", "param_groups"}
        assert set(saved["state"]) == {0, 1, 2}
        plain = (bool, int, float, str, tuple, list, dict, type(None), torch.Tensor)
        for group in saved["param_groups"]:
            assert all(isinstance(value, plain) for value in group.values())
        assert all(torch.is_tensor(v) for s in saved["state"].values() for v in s.values())

    def test_hooks_of_saving_and_loading_are_called(self, family):
        _, _, optimizer = family.start(SHAPES)
        seen = []
        optimizer.register_state_dict_pre_hook(lambda *_: seen.append("to save"))
        optimizer.register_state_dict_post_hook(lambda *_: seen.append("saved"))
        optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("to load"))
        optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
        for _ in range(2):  # the second time no hook of our own is left over
            seen.clear()
            optimizer.load_state_dict(optimizer.state_dict())
            assert seen == ["to save", "saved", "to load", "loaded"]

    def test_hooks_may_change_what_is_saved_and_loaded(self, family):
        data, params, optimizer = family.start(SHAPES)
        run(optimizer, params, data.grads[:2])
        name = family.oracle.buffers[0]

        def doubled(_, saved):
            states = {
                i: {k: 2 * v if k == name else v for k, v in state.items()}
                for i, state in saved["state"].items()
            }
            return {**saved, "state": states}

        optimizer.register_state_dict_post_hook(doubled)
        other = family.make(leaves(values(params)))
        other.register_load_state_dict_pre_hook(doubled)
        other.load_state_dict(optimizer.state_dict())
        for p, q in zip(params, other.param_groups[0]["params"], strict=True):
            assert same_bits(other.state[q][name], 4 * optimizer.state[p][name])

    @pytest.mark.parametrize("step", [2, 2.0, torch.tensor(2), torch.tensor(2.0).double()], ids=str)
    def test_step_of_another_kind_becomes_our_tensor(self, family, step):
        # As old checkpoints of torch.optim have it: a number.
        data, params, optimizer = family.start(SHAPES)
        run(optimizer, params, data.grads[:2])
        saved = copy.deepcopy(optimizer.state_dict())
        for state in saved["state"].values():
            state["step"] = step
        other_params = leaves(values(params))
        other = family.make(other_params)
        other.load_state_dict(saved)
        for grads in data.grads[2:]:
            run(optimizer, params, [grads])
            run(other, other_params, [grads])
        assert same_bits(snapshot(other), snapshot(optimizer))

    def test_groups_of_an_older_version_get_the_missing_settings(self, family):
        # A checkpoint, and a pickle, from before these settings were there.
        data, params, optimizer = family.start(SHAPES)
        run(optimizer, params, data.grads[:2])
        late = ("maximize", "capturable", "fused", "master_weights")
        saved = copy.deepcopy(optimizer.state_dict())
        pickled = copy.deepcopy(optimizer.__getstate__())
        for group in (*saved["param_groups"], *pickled["param_groups"]):
            for name in late:
                del group[name]
        loaded = family.make(leaves(values(params)))
        loaded.load_state_dict(saved)
        unpickled = family.cls.__new__(family.cls)
        unpickled.__setstate__(pickled)
        run(optimizer, params, data.grads[2:])
        for other in (loaded, unpickled):
            assert {name: other.param_groups[0][name] for name in late} == {
                name: optimizer.defaults[name] for name in late
            }
            run(other, other.param_groups[0]["params"], data.grads[2:])
            assert same_bits(snapshot(other), snapshot(optimizer))

    def test_loading_another_shape_of_groups_is_refused(self, family):
        _, _, optimizer = family.start(SHAPES)
        _, _, other = family.start([(3,)])
        with pytest.raises(ValueError, match="parameter group"):
            optimizer.load_state_dict(other.state_dict())
