# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel with a compression hook, in two processes."""

import pytest
import torch

from largebatch.compression import traffic
from tests.compression import hook_setting as setting
from tests.compression import hook_worker as worker
from tests.helpers import run_ranks, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the processes once; return what each of them ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks("tests.compression.hook_worker", worker.WORLD, folder)


def same(results, *keys):
    """Return what all ranks have ended with at these keys, the same bits: a tensor or a list."""
    for key in keys:
        results = [result[key] for result in results]
    assert all(same_bits(results[0], other) for other in results[1:])
    return results[0]


class InOneProcess:
    """The same training with the methods on plain tensors, rank after rank."""

    def __init__(self, method, start_step=2):
        self.method, self.start_step = method, start_step
        self.model = setting.network()
        self.params = list(self.model.parameters())
        ranks = range(worker.WORLD)
        self.states = [method.init(self.params, rank=r, world=worker.WORLD) for r in ranks]

    def gradients(self, t, rank, micro, spoil):
        self.model.zero_grad()
        generator = setting.batch(t, rank)
        for _ in range(micro):
            setting.loss_of(self.model, generator, rank).backward()
        grads = [p.grad.clone() for p in self.params]
        if spoil and rank == 1:
            grads[4] *= torch.inf
        return grads

    def step(self, t, micro=1, spoil=False):
        grads = [self.gradients(t, r, micro, spoil) for r in range(worker.WORLD)]
        if t < self.start_step:
            update = [a / 2 + b / 2 for a, b in zip(*grads, strict=True)]
            if t == self.start_step - 1:
                self.begin(grads, update)
        else:
            payloads = []
            for state, own in zip(self.states, grads, strict=True):
                state.step = t
                lr = setting.rate(t)
                payloads.append(self.method.encode(state, own, lr=lr))
            update, other = (self.method.decode(s, payloads, skip=True) for s in self.states)
            assert same_bits(update, other)
        if not spoil:
            with torch.no_grad():
                for p, u in zip(self.params, update, strict=True):
                    p.grad = u
            torch.optim.SGD(self.params, lr=setting.rate(t)).step()
        return self

    def begin(self, grads, mean):
        for state, own in zip(self.states, grads, strict=True):
            for role, values in (("shifts", own), ("means", mean)):
                for tensor, value in zip(getattr(state, role), values, strict=False):
                    tensor.copy_(value)
            for tensor, value in zip(state.momenta, own, strict=False):
                if self.method.name != "dgc" or not self.method.masking:
                    tensor.copy_(value)

    def result(self):
        return torch.cat([p.detach().flatten() for p in self.params])


# With a hook, what is one record is a bucket.
BUCKETS = ("feedback",)


@pytest.mark.parametrize("name", setting.METHODS)
def test_a_hook_does_what_its_method_does_to_plain_tensors(results, name):
    """Bit for bit: start, accumulation under no_sync, clipping, rates, and buckets built anew."""
    params = same(results, "methods", name, 0)
    if name in BUCKETS:
        return
    alone = InOneProcess(setting.METHODS[name]())
    for t in range(12):
        alone.step(t, micro=1 + (name == "dgc"))
    assert same_bits(alone.result(), params)
    roles = {"error": "errors", "shift": "shifts", "momentum": "momenta", "mean": "means"}
    for state, result in zip(alone.states, results, strict=True):
        for i, own in enumerate(result["methods"][name][1].values()):
            assert same_bits(list(own.values()), [getattr(state, roles[r])[i] for r in own])


def test_three_hundred_steps_leave_parameters_the_same_on_every_rank(results):
    _, losses = results[0]["methods"]["long"]
    same(results, "methods", "long", 0)
    assert len(losses) == setting.LONG
    losses = torch.tensor(losses)
    assert losses[-100:].mean() < 0.7 * losses[:10].mean()


def test_parameters_in_another_order_of_memory(results):
    same(results, "methods", "channels last", 0)


def test_gradients_in_bf16_have_a_mean_in_fp32(results):
    """Also that of the last dense step: what is lost there would stay in H for ever."""
    same(results, "methods", "half", 0)
    first, second = (result["methods"]["half"][1] for result in results)
    for name, own in first.items():
        mean = (own["shift"] + second[name]["shift"]) / 2
        assert own["mean"].dtype == torch.float32
        assert torch.allclose(own["mean"], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", setting.RESUMED)
def test_a_checkpoint_resumes_bit_for_bit(results, name):
    straight, resumed = same(results, "resumed", name)
    assert same_bits(straight, resumed)


def test_state_is_in_units_without_the_loss_scale(results):
    plain, other = same(results, "scaled", 0)
    assert same_bits(plain, other)
    for result in results:
        roles, others = result["scaled"][1]
        for name in roles:
            assert same_bits(list(roles[name].values()), list(others[name].values()))
        assert same_bits(*result["scaled"][2])  # clipped


def test_a_clipped_gradient_has_its_norm_over_all_buckets(results):
    for result in results:
        momenta = torch.cat([own["momentum"].flatten() for own in result["clipped"].values()])
        assert momenta.norm() == pytest.approx(worker.CLIP / worker.WORLD**0.5, rel=1e-5)


def test_a_loss_scaler_skips_on_every_rank(results):
    same(results, "scaler", 1)
    found = results[0]["scaler"][0]
    assert found == results[1]["scaler"][0]
    # The dense step that is not finite, too.
    assert [stayed for stayed, _ in found] == [t in (1, 5) for t in range(10)]
    assert found[0][1] / found[1][1] == 2


@pytest.mark.parametrize("name", ["feedback", "econtrol", "dgc clipped"])
def test_a_skipped_step_leaves_what_was_held_back(results, name):
    """Also of the buckets whose own gradients are finite."""
    for rank, result in enumerate(results):
        before, after, old, new, counts = result["skipped"][name]
        assert torch.equal(before, after)
        assert counts[0] == 0 and counts[1] > 0
        for own in new.values():
            assert all(tensor.isfinite().all() for tensor in own.values())
        if name == "dgc clipped":  # has no residual of what is sent whole
            assert not any(new[small]["error"].any() for small in ("0.bias", "2.bias", "4.bias"))
        if name != "feedback":
            continue
        alone = InOneProcess(setting.METHODS[name]())
        with torch.no_grad():
            start = 0
            for p in alone.params:
                p.copy_(before[start : start + p.numel()].view_as(p))
                start += p.numel()
        grads = alone.gradients(4, rank, 1, spoil=True)
        for own, was, g in zip(new.values(), old.values(), grads, strict=True):
            expected = was["error"] + torch.where(g.isfinite(), g, 0)
            assert same_bits([own["error"]], [expected])


@pytest.mark.parametrize("name", ["econtrol", "bucket", "dgc"])
def test_a_parameter_that_is_not_used_keeps_its_state(results, name):
    same(results, "unused", name, 2)
    for rank, result in enumerate(results):
        before, after, _ = result["unused"][name]
        for parameter in ("first.weight", "first.bias", "never.weight"):
            if parameter.startswith("first") and rank == 0:
                continue
            for role in set(after[parameter]) - {"mean"}:
                assert torch.equal(before[parameter][role], after[parameter][role])
        moved = [not torch.equal(before["both.weight"][r], after["both.weight"][r])
                 for r in after["both.weight"]]  # fmt: skip
        assert all(moved)
    if name == "econtrol":  # H is the mean of h as ever
        first, second = (result["unused"][name][1] for result in results)
        for parameter, own in first.items():
            mean = (own["shift"] + second[parameter]["shift"]) / 2
            assert torch.allclose(own["mean"], mean, atol=1e-6)


@pytest.mark.parametrize("name", ["econtrol", "ef21", "feedback int4"])
def test_one_collective_a_bucket_of_the_bytes_that_were_told(results, name):
    told = traffic(setting.METHODS[name](), setting.network().parameters(), worker.WORLD)
    for result in results:
        sizes = result["wire"][name]
        assert sum(sizes) == 2 * told.payload
        assert len(sizes) == 2 * 2  # the buckets that DDP builds after its first step
        assert (worker.WORLD - 1) * sum(sizes) == 2 * told.compressed


def test_densities_of_a_warm_up(results):
    same(results, "epochs", 1)
    first, second, last = results[0]["epochs"][0]
    assert first > 3 * second > 3 * last


def test_dense_steps_go_on_until_one_is_finite(results):
    same(results, "late", 3)
    for result in results:
        begun, started, roles, _ = result["late"]
        assert (begun, started) == (False, True)
        assert all(t.isfinite().all() for own in roles.values() for t in own.values())


def test_a_gradient_that_is_not_finite_may_be_dropped_and_counted(results):
    params, counts = same(results, "dropped")
    assert params.isfinite().all()
    assert counts[0] == 0 and counts[1] > 0


def test_sparse_gradients_are_summed_as_they_are(results):
    steps = same(results, "sparse", 0)
    assert not torch.equal(steps[0], steps[-1])
    assert results[0]["sparse"][1] == ["top.weight", "top.bias"]


def test_checksums_change_nothing(results):
    expected = same(results, "methods", "ef21", 0)
    assert same_bits(same(results, "checksum"), expected)


REFUSED = {
    "two_models": "ValueError: hook: a parameter of shape [60, 20] is not of the model that the "
    "hook was made for, expected one model for each hook.",
    "twice": "RuntimeError: register_comm_hook or register_builtin_comm_hook can only be called "
    "once.",
    "options": "ValueError: hook: rank 1 has another options than rank 0, expected the same on "
    "all; this rank has start_step=",
    "method": "ValueError: hook: rank 1 has another method than rank 0, expected the same on all; "
    "this rank has EControl(eta=0.00",
    "compressor": "ValueError: hook: rank 1 has another compressor than rank 0, expected the same "
    "on all; this rank has TopK(ratio=0.0",
    "raises": "FloatingPointError: hook: gradients are not finite, by rank: [0, ",
    "changed": "RuntimeError: hook: payload of rank 1, record of '",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_on_every_rank(results, name):
    for result in results:
        said = result["refused"][name]
        assert REFUSED[name] in said
