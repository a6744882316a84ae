# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR in two processes, against the same training in one."""

import pytest
import torch

from largebatch.optim import MKOR
from largebatch.reference.mkor import Hybrid
from tests.helpers import run_ranks, same_bits
from tests.optim import mkor_setting as setting
from tests.optim import mkor_worker as worker
from tests.optim.mkor_setting import flat, loss_of

pytestmark = pytest.mark.usefixtures("one_thread")

# Of one tensor's largest element: sums over the batch in another order, five steps.
BOUND = 1e-6


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the processes once; return what each of them ended with."""
    return run_ranks("tests.optim.mkor_worker", worker.WORLD, tmp_path_factory.mktemp("ranks"))


def one_process(model, batches, kind="SGD", **options):
    """Train on the batches of all ranks joined, micro-batch by micro-batch."""
    mkor = MKOR(model, setting.backend_of(kind, model), **dict(update_every=2) | options)
    for micro in batches:
        for parts in micro:
            joined = [torch.cat(column) for column in zip(*parts, strict=True)]
            (loss_of(model, joined) / len(micro)).backward()
        mkor.step()
        mkor.zero_grad()
    return worker.result(mkor, model)


CASES = {
    "ddp": (setting.network, dict(), "SGD", {}),
    "lamb": (setting.network, dict(), "LAMB", {}),
    "exact": (setting.network, dict(), "SGD", dict(variant="exact", stats="grad")),
    "accumulating": (setting.network, dict(micro=3), "SGD", {}),
    "partial": (worker.partial_network, dict(marked=True), "SGD", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_with_the_joined_batch(results, name):
    build, batches, kind, options = CASES[name]
    expected = one_process(build(), worker.given(**batches), kind, **options)
    for result in results:
        for key in ("params", "factors"):
            assert setting.largest_error(result[name][key], expected[key]) < BOUND


def test_a_layer_called_on_one_rank_has_the_mean_of_its_calls(results):
    # Had the other rank's zeros been averaged in, a folded 1 would have come out as 1/2.
    assert results[0]["partial"]["layers"] == [
        *(f"net.{name}" for name in setting.LAYERS), "extra", "bare", "patch"]  # fmt: skip
    moved = results[1]["partial"]["factors"][-6:]
    assert not any(same_bits(f, torch.eye(len(f))) for f in moved)


@pytest.mark.parametrize(
    "name",
    [
        *CASES,
        "early",
        "inner model",
        "accumulating early",
        "hybrid",
        "fsdp SGD",
        "fsdp LAMB",
        "fsdp accumulating",
        "fsdp gradients",
    ],
)
def test_all_ranks_have_the_same_bits(results, name):
    first, second = (result[name] for result in results)
    for key in ("params", "factors"):
        assert same_bits(first[key], second[key])


@pytest.mark.parametrize(
    ("name", "other"),
    [("early", "ddp"), ("accumulating early", "accumulating"), ("inner model", "ddp")],
)
def test_reducing_early_and_unwrapping_change_no_bit(results, name, other):
    for key in ("params", "factors"):
        assert same_bits(results[0][name][key], results[0][other][key])
    assert results[0][name]["layers"] == list(setting.LAYERS)


@pytest.mark.parametrize("early", [False, True])
def test_an_update_sends_one_buffer_of_vectors(results, early):
    model = setting.network()
    inputs = sum(m[0].numel() for m in model.parameters() if m.dim() > 1)
    captured = len(model.conv.weight) + len(model.head.weight)  # g of layers without bias
    for result in results:
        for step, calls in enumerate(result["traffic"][early]):
            if step % 2:
                assert calls == []
                continue
            ((name, size),) = calls
            assert name == "all_reduce"
            assert (
                4 * (inputs + captured) <= size <= 4 * (inputs + captured + 3 * len(setting.LAYERS))
            )


def test_statistics_of_the_gradient_send_nothing(results):
    assert all(result["traffic of gradients"] == [[]] * worker.STEPS for result in results)


def test_statistics_are_of_this_rank(results):
    model = setting.network()
    for rank, result in enumerate(results):
        expected = setting.statistics(model, worker.given()[0][0][rank])
        assert same_bits(result["local"], flat(expected))


def test_a_group_of_one_is_alone(results):
    for rank, result in enumerate(results):
        batches = [[[parts[rank]] for parts in micro] for micro in worker.given()]
        expected = one_process(setting.network(), batches)
        for key in ("params", "factors"):
            assert same_bits(result["alone"][key], expected[key])


def test_a_single_bit_is_noticed_on_every_rank(results):
    for result in results:
        for said in result["disturbed"]:
            assert said is not None
            assert said.startswith("MKOR: ")
            assert "body" in said
            assert not any(name in said for name in ("stem", "conv", "head"))
            assert "\n" not in said


def test_all_ranks_switch_together(results):
    rules = [Hybrid(**worker.RULE) for _ in range(worker.WORLD)]
    alone = [
        [rule.observe(loss) for loss in losses]
        for rule, losses in zip(rules, worker.CURVES, strict=True)
    ]
    assert any(alone[0]) and not any(alone[1])
    assert [result["hybrid"]["switched"] for result in results] == [alone[0]] * worker.WORLD


SHARDED = {
    "fsdp SGD": ("SGD", 1, {}),
    "fsdp LAMB": ("LAMB", 1, {}),
    "fsdp accumulating": ("SGD", 2, {}),
    "fsdp gradients": ("SGD", 1, dict(stats="grad")),
    "fsdp narrow": ("SGD", 1, {}),
}


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_parameters_are_trained_as_whole_ones(results, name):
    kind, micro, options = SHARDED[name]
    model = setting.chain(*(worker.NARROW if name == "fsdp narrow" else worker.WIDTHS))
    optimizer = worker.backend_of(kind, model.parameters())
    mkor = MKOR(model, optimizer, sides="R", update_every=2, **options)
    for batch in worker.sharded_batches():
        for part in zip(*(t.chunk(micro) for t in batch), strict=True):
            (loss_of(model, part) / micro).backward()
        mkor.step()
        mkor.zero_grad()
    for result in results:
        own = result[name]
        assert "error" not in own, own["error"]
        assert setting.largest_error(own["params"], list(model.parameters())) < BOUND
        assert setting.largest_error(own["factors"], flat(mkor.factors)) < BOUND


@pytest.mark.parametrize("name", ["both sides", "left side", "columns", "mesh"])
def test_other_shardings_are_refused(results, name):
    for result in results:
        said, hooks = result["refusals"][name]
        assert said.startswith("MKOR: ")
        assert "0" in said
        assert "\n" not in said
        assert hooks == 0


def test_state_of_two_processes_goes_on_in_one(results):
    model = setting.network()
    mkor = MKOR(model, setting.sgd(model), update_every=2)
    mkor.load_state_dict(results[1]["ddp"]["state"])
    assert same_bits(flat(mkor.factors), results[0]["ddp"]["factors"])


def test_a_reduction_that_is_given_up_leaves_nothing(results):
    for result in results:
        without, after = result["given up"]
        for key in ("params", "factors"):
            assert same_bits(without[key], after[key])


def test_names_are_those_of_the_model_itself(results):
    assert results[0]["names"] == [list(setting.LAYERS)] * 2
