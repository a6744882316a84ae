# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""AGVM in four processes, against the same training in one by the definition."""

import pytest
import torch

from largebatch.optim import AGVM
from largebatch.reference import agvm as reference
from tests.conftest import assert_close
from tests.helpers import run_ranks, same_bits
from tests.optim import agvm_setting as setting
from tests.optim import agvm_worker as worker


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the processes once; return what each of them ended with."""
    return run_ranks("tests.optim.agvm_worker", worker.WORLD, tmp_path_factory.mktemp("ranks"))


def alone(kind, workers, micro=1):
    """Train as the workers do, in one process, in float64, with the formulas of the oracle."""
    model = worker.Net().double()
    params = list(model.parameters())
    owners = [i for i, part in enumerate(model.parts.values()) for _ in part.parameters()]
    make = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[kind]
    optimizer = make([{"params": [p]} for p in params], lr=0.05)
    factors, history = torch.ones(3).double(), []
    for step in range(worker.STEPS):
        halves = []
        for ranks in (range(workers // 2), range(workers // 2, workers)):
            losses = [loss_of(model, rank, step, j) for rank in ranks for j in range(micro)]
            halves.append(torch.autograd.grad(sum(losses) / len(losses), params))
        if step >= 1 and (step - 1) % 2 == 0:
            squares = [optimizer.state[p].get("exp_avg_sq") for p in params]
            options = dict(exp_avg_sq=squares, beta2=0.999, eps=1e-8) if kind == "Adam" else {}
            sums = torch.zeros(3, 3).double()
            for owner, dots in zip(
                owners, reference.half_dots(*halves, ((1, 0), (0, 1)), **options), strict=True
            ):
                sums[owner] += dots
            phi = reference.variances(sums)
            factors = reference.next_factors(factors, phi, 0, momentum=0.5)
        for p, a, b, group, owner in zip(
            params, *halves, optimizer.param_groups, owners, strict=True
        ):
            lower = workers // 2 / workers
            p.grad = lower * a + (1 - lower) * b
            group["lr"] = 0.05 * factors[owner].item()
        optimizer.step()
        history.append(factors)
    return params, history, phi


def loss_of(model, rank, step, j):
    x, y = (t.double() for t in worker.samples(rank, step, j))
    return (model(x) - y).square().mean()


CASES = {
    "four SGD": ("SGD", 4, 1),
    "four Adam": ("Adam", 4, 1),
    "four accumulating": ("SGD", 4, 3),
    "three": ("SGD", 3, 1),
    "two": ("SGD", 2, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_halves_are_those_of_the_workers(results, name):
    params, factors, phi = alone(*CASES[name])
    assert not same_bits(factors[0], factors[1])
    assert not same_bits(factors[1], factors[3])
    for own in (result[name] for result in results if result[name]):
        # phi is a difference of two numbers of size 1 that carry fp32 noise; Adam's directions
        # amplify it where gradients are small.
        tolerance = dict(rtol=1e-3, atol=1e-4) if "Adam" in name else dict(rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own["variances"], list(phi), **tolerance)
        torch.testing.assert_close(own["factors"], factors, **tolerance)
        torch.testing.assert_close(own["params"], [p.detach().float() for p in params], **tolerance)


@pytest.mark.parametrize("name", [*CASES, "sharded SGD", "sharded Adam"])
def test_all_ranks_have_the_same_bits(results, name):
    first, *others = (result[name] for result in results if result[name])
    for other in others:
        for key in ("factors", "variances", "params"):
            assert same_bits(other[key], first[key])


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_sharded_parameters_are_measured_whole(results, kind):
    params = setting.weights()
    optimizer = getattr(torch.optim, kind)(params, lr=0.01)
    agvm = AGVM(optimizer, setting.modules_of(params), **worker.OPTIONS)
    found = setting.train(agvm, params, setting.batches(worker.STEPS))
    own = results[0][f"sharded {kind}"]
    assert_close(own["factors"], [torch.tensor(mu) for mu in found])
    assert_close(own["variances"], list(agvm.variances.values()))
    torch.testing.assert_close(own["params"], [p.detach() for p in params], rtol=1e-5, atol=1e-6)


def test_a_measurement_changes_no_bit_of_the_average(results):
    measuring, other = results[0]["bits"]
    assert same_bits(measuring, other)


def test_workers_without_halves_are_told_what_to_do(results):
    one, both, forgotten = results[0]["refusals"]
    assert one.startswith("AGVM: process_group has 1 worker, expected 2 or more")
    assert "call micro_batch()" in one
    assert both.startswith("AGVM: micro_batch() beside hook(), expected one of them.")
    assert forgotten.startswith("AGVM: the hook has not run since the last step")
    assert "register_comm_hook" in forgotten
    assert not any("\n" in said for said in results[0]["refusals"])
