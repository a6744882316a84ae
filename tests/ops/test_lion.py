# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion as a function: what test_steps.py does not say of every step."""

import copy

import pytest
import torch

from largebatch import ops
from largebatch.optim import kappa
from largebatch.reference import lion
from tests.helpers import problem, same_bits
from tests.ops.steps import LION_STEP

HYPER, tensors = LION_STEP.hyper, LION_STEP.tensors
SHAPES = [(129,), (40, 33), (1,), (0,), (16385,)]
HALF_WIDTH = torch.bfloat16


def low_precision(device, state, dtype=HALF_WIDTH):
    """Return the lists of a step with 16-bit weights and momenta of a dtype."""
    lists = tensors(device, SHAPES, dtype=dtype, grad_dtype=dtype)
    momenta = lists["exp_avgs"]
    if state == torch.int8:
        pairs = [lion.encode_int8(m.float().reshape(-1)) for m in momenta]
        shaped = zip(pairs, momenta, strict=True)
        lists["exp_avgs"] = [codes.reshape(m.shape) for (codes, _), m in shaped]
        lists["scales"] = [scale for _, scale in pairs]
    else:
        lists["exp_avgs"] = [m.to(state) for m in momenta]
    return lists


def by_reference(lists, **hyper):
    """Return the lists after a step by the reference, on the CPU."""
    lists = {name: [t.cpu().clone() for t in given] for name, given in lists.items()}
    lion.lion_step(**lists, **hyper)
    return lists


def assert_same(lists, expected):
    for argument, given in lists.items():
        assert same_bits(given, expected[argument]), argument


@pytest.mark.parametrize("stochastic", [False, True], ids=["to nearest", "stochastic"])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_low_precision_bits_are_those_of_the_reference(backend, state, stochastic):
    hyper = HYPER | dict(stochastic_rounding=stochastic, seed=2**63 + 5)
    lists = low_precision(backend.device, state)
    ids = [2**64 - 1, 7, 2**32, 0, 2**63]
    expected = by_reference(lists, tensor_ids=ids, **hyper)
    before = copy.deepcopy(lists)
    ops.lion_step(**lists, tensor_ids=ids, **hyper)
    assert_same(lists, expected)
    if stochastic:  # and they are random bits of these tensors
        ops.lion_step(**before, **hyper)
        assert not same_bits(before["params"], lists["params"])


TYPES = [
    *((torch.float32, grads) for grads in (torch.float32, torch.bfloat16, torch.float16)),
    *((torch.bfloat16, grads) for grads in (torch.bfloat16, torch.float32)),
    *((torch.float16, grads) for grads in (torch.float16, torch.float32)),
    (torch.float64, torch.float64),
]


@pytest.mark.parametrize("name", ["l1", "quadratic"])
@pytest.mark.parametrize(("weights", "grads"), TYPES, ids=str)
def test_types_of_weights_and_gradients(backend, weights, grads, name):
    lists = tensors(backend.device, SHAPES, dtype=weights, grad_dtype=grads)
    k = kappa.get(name)
    expected = by_reference(lists, **HYPER | dict(kappa=k))
    ops.lion_step(**lists, **HYPER | dict(kappa=k))
    assert_same(lists, expected)


def test_tensors_are_told_apart_by_their_place_if_nothing_else_is_given(backend):
    hyper = HYPER | dict(stochastic_rounding=True)
    lists = low_precision(backend.device, torch.bfloat16)
    named = copy.deepcopy(lists)
    ops.lion_step(**lists, **hyper)
    ops.lion_step(**named, tensor_ids=range(len(SHAPES)), **hyper)
    assert_same(lists, named)


def test_scales_may_be_a_list_with_gaps(backend):
    lists = low_precision(backend.device, torch.int8)
    mixed = tensors(backend.device, SHAPES, dtype=HALF_WIDTH, grad_dtype=HALF_WIDTH)
    for row in (0, 4):
        lists["exp_avgs"][row] = mixed["exp_avgs"][row].float()
        lists["scales"][row] = None
    dense = [scale for scale in lists["scales"] if scale is not None]
    expected = {
        name: [None if t is None else t.cpu().clone() for t in given]
        for name, given in lists.items()
    }
    lion.lion_step(**expected, **HYPER)
    ops.lion_step(**lists, **HYPER)
    assert same_bits(dense, [scale for scale in expected.pop("scales") if scale is not None])
    assert_same({name: lists[name] for name in expected}, expected)


def test_parts_of_a_tensor_get_the_bits_of_the_whole(backend):
    whole = tensors(backend.device, [(400,)])
    parts = copy.deepcopy(whole)
    ops.lion_step(**whole, **HYPER)
    for a, b in ((0, 1), (1, 34), (34, 34), (34, 400)):
        part = {
            name: [given[0].clone() if name == "steps" else given[0][a:b]]
            for name, given in parts.items()
        }
        ops.lion_step(**part, **HYPER)
    for name in ("params", "exp_avgs"):
        assert same_bits(parts[name], whole[name])


@pytest.mark.parametrize(
    "spelling",
    [kappa.Huber(0.02), kappa.Huber(0.02).as_dict(), {"name": "huber", "e": 0.02}],
    ids=["object", "as_dict", "dict"],
)
def test_a_kappa_is_spelt_as_in_the_optimizer(spelling):
    lists = tensors()
    expected = copy.deepcopy(lists)
    ops.lion_step(**expected, **HYPER)
    ops.lion_step(**lists, **HYPER | dict(kappa=spelling))
    assert_same(lists, expected)
    ops.lion_step(**lists, **HYPER | dict(kappa="l1"))
    assert not same_bits(lists["params"], expected["params"])


BAD_KAPPAS = {
    "unknown": ("l3", ValueError, "'?l3"),
    "relative": (kappa.Huber(1.0, relative=True), ValueError, "relative"),
    "a norm": ("l2", ValueError, "with a kernel: l1,"),
    "a parameter too many": ({"name": "l1", "e": 1.0}, ValueError, "no parameters"),
    "another's parameter": ({"name": "huber", "T": 1.0}, ValueError, "the parameter 'e'"),
    "none": ("huber", ValueError, "the parameter 'e'"),
    "zero": ({"name": "huber", "e": 0.0}, ValueError, "e > 0"),
    "power of one": ({"name": "power", "p": 1}, ValueError, "p > 1"),
    "infinite": ({"name": "log_cosh", "T": float("inf")}, ValueError, "T > 0"),
    "nan": ({"name": "soft_sign", "e": float("nan")}, ValueError, "e > 0"),
    "flag": ({"name": "truncated_l1", "e": True}, ValueError, "e > 0"),
    "number": (3, TypeError, "a int"),
    "user's own": (type("Mine", (), {"subgradient": torch.sign})(), TypeError, "Mine"),
}


@pytest.mark.parametrize("name", BAD_KAPPAS)
def test_bad_kappa_is_one_line(name):
    spelling, error, pattern = BAD_KAPPAS[name]
    lists = tensors(shapes=[(5,)])
    before = copy.deepcopy(lists)
    with pytest.raises(error, match=f"^lion_step: kappa: got .*{pattern}") as caught:
        ops.lion_step(**lists, **HYPER | dict(kappa=spelling))
    assert "\n" not in str(caught.value)
    assert_same(lists, before)


def test_bad_numbers_of_random_bits_are_one_line():
    lists = tensors(shapes=[(5,)])
    with pytest.raises(TypeError, match=r"^lion_step: seed: got 0\.5, expected an integer\."):
        ops.lion_step(**lists, **HYPER | dict(seed=0.5))
    with pytest.raises(TypeError, match=r"^lion_step: tensor_ids\[0\]: got None"):
        ops.lion_step(**lists, tensor_ids=[None], **HYPER)
    with pytest.raises(ValueError, match=r"lion_step: .* 2 ids"):
        ops.lion_step(**lists, tensor_ids=[0, 1], **HYPER)


def test_scales_that_do_not_fit_are_named():
    def refused(match, **over):
        lists = low_precision("cpu", torch.int8) | over
        before = copy.deepcopy(lists)
        with pytest.raises(ValueError, match=match):
            ops.lion_step(**lists, **HYPER)
        assert_same(lists, before)

    good = low_precision("cpu", torch.int8)["scales"]
    refused(r"scales\[0\] has shape \[1\], expected \[2\]", scales=[good[0][:1], *good[1:]])
    refused("scales has 4 arrays, expected 5", scales=good[1:])


def test_one_step_moves_every_weight_by_the_rate_and_no_row_without_gradient(backend):
    data = problem([(70, 30)], steps=1)
    weights, grad = data.params[0].to(backend.device), data.grads[0][0].to(backend.device)
    grad[::2] = 0
    before = weights.clone()
    step = torch.zeros((), device=backend.device)
    hyper = HYPER | dict(kappa="l1", lr=2.0**-7, weight_decay=0.0)
    ops.lion_step([weights], [grad], [torch.zeros_like(grad)], [step], **hyper)
    assert same_bits(weights[::2], before[::2])
    assert torch.equal(weights[1::2], before[1::2] - 2.0**-7 * torch.sign(grad[1::2]))
