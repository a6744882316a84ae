# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Options of methods, on plain tensors."""

import pytest
import torch

from largebatch.compression import (
    DGC,
    EF21,
    BlockTopK,
    EControl,
    ErrorFeedback,
    Quantize,
    Sign,
    TopK,
)


def test_residuals_follow_the_learning_rate():
    """With the ratio of rates, what was held back is applied at the rate of its own step."""
    method = ErrorFeedback(TopK(k=1), scale_residual_by_lr_ratio=True, min_numel=0)
    plain = ErrorFeedback(TopK(k=1), min_numel=0)
    state, other = method.init([torch.zeros(3)]), plain.init([torch.zeros(3)])
    for lr in (0.5, 0.25, 0.125):
        g = torch.randn(3)
        scaled = method.decode(state, [method.encode(state, [g], lr=lr)])[0] * lr
        # The form in which the residual holds the rate: p = e + lr g.
        theirs = plain.decode(other, [plain.encode(other, [g * lr])])[0]
        assert torch.allclose(scaled, theirs, rtol=1e-6)
    method.encode(state, [g], lr=0.0)  # is passed over
    assert state.lr == 0.125
    with pytest.raises(TypeError, match="ErrorFeedback: lr: got None, expected the learning rate"):
        method.encode(state, [g])


def test_dgc_clips_what_all_ranks_have_together():
    method = DGC(TopK(k=2), momentum=0.0, clip=1.0, min_numel=0)
    state = method.init([torch.zeros(2), torch.zeros(1)], world=4)
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    update = method.decode(state, [method.encode(state, grads)] * 4)
    assert torch.cat(update).norm() == pytest.approx(0.5)
    small = [0.01 * g for g in grads]
    state = method.init(grads, world=4)
    assert torch.equal(torch.cat(method.decode(state, [method.encode(state, small)] * 4)),
                       torch.cat(small))  # fmt: skip
    spoilt = [torch.tensor([torch.inf, 1.0]), torch.tensor([4.0])]
    state = method.init(grads, world=4)
    method.decode(state, [method.encode(state, spoilt)] * 4)
    assert all(t.isfinite().all() for t in state.errors + state.momenta)


def test_dgc_warms_up():
    method = DGC(TopK(ratio=0.01), warmup=(0.5, 0.1), min_numel=0)
    x = [torch.randn(1000)]
    state, sent = method.init(x), []
    for epoch in range(4):
        method.set_epoch(epoch)
        update = method.decode(state, [method.encode(state, x)])[0]
        sent.append(int((update != 0).sum()))
    assert sent == [500, 100, 10, 10]


def test_a_gain_for_all_is_that_of_the_least_contraction():
    sizes = [1000, 10_000]
    assert EControl(TopK(k=100)).gain(sizes) == pytest.approx(0.005)
    assert EControl(BlockTopK(k=64, block=4096)).gain(sizes) == 64 / 4096 / 2
    assert EControl(TopK(ratio=0.1), eta=0.1).gain(sizes) == 0.1
    assert EControl(Sign(), eta=0.004).gain(sizes) == 0.004
    with pytest.raises(ValueError, match=r"eta: got 0\.4, expected at most 0\.1, the compressor's"):
        EControl(TopK(ratio=0.1), eta=0.4, min_numel=0).hook(torch.nn.Linear(10, 100))


def test_a_gain_above_the_contraction_warns():
    with pytest.warns(UserWarning, match="got 0.2, above the compressor's contraction 0.1"):
        EControl(TopK(ratio=0.1), eta=0.2).gain([1000])


def test_options_of_hooks_that_are_refused():
    model, method = torch.nn.Linear(2, 2), EF21(TopK(k=1))
    rated = ErrorFeedback(TopK(k=1), scale_residual_by_lr_ratio=True)
    few = EF21(TopK(k=1, scope="bucket", values=Quantize(bits=2)))
    for options, message in (
        (
            dict(nonfinite="stop"),
            'hook: nonfinite: got \'stop\', expected "skip", "drop" or "raise"',
        ),
        (dict(start_step=0), "hook: start_step: got 0, expected an integer of at least 1: dense"),
        (dict(start_step=True), "hook: start_step: got True, expected an integer"),
        (dict(loss_scale=8.0), "hook: loss_scale: got 8.0, expected a function without arguments"),
        (dict(lr=0.1), "hook: lr: got 0.1, expected a function without arguments."),
    ):
        with pytest.raises((ValueError, TypeError)) as caught:
            method.hook(model, **options)
        assert str(caught.value).startswith(message)
    with pytest.raises(TypeError, match="hook: lr: got None, expected a function that returns"):
        rated.hook(model)
    for other, options, message in (
        (few, dict(freeze_unused=True), "with freeze_unused: 2 bits have no 0."),
        (EF21(Sign()), dict(exchange="regions"), 'expected TopK or BlockTopK with exchange="regi'),
    ):
        with pytest.raises(ValueError) as caught:
            other.hook(model, **options)
        assert str(caught.value).startswith("hook: compressor: got ")
        assert message in str(caught.value)


def test_gradients_of_other_kinds_are_refused():
    method = EF21(TopK(k=1), min_numel=0)
    state = method.init([torch.zeros(3)])
    for call, error, message in (
        (
            lambda: method.encode(state, torch.ones(3)),
            TypeError,
            "EF21.encode: grads is a Tensor, expected a list of arrays. Pass [x] for a single one.",
        ),
        (
            lambda: method.encode(state, [torch.ones(3)] * 2),
            ValueError,
            "EF21: grads: got 2, expected 1 tensors, as many as the state has.",
        ),
        (
            lambda: method.init([3]),
            TypeError,
            "EF21.init: tensors[0] is a int, expected a torch, NumPy or CuPy array.",
        ),
        (
            lambda: EF21(TopK),
            TypeError,
            "EF21: compressor: got <class 'largebatch.compression.compressors.TopK'>, expected a "
            "compressor, as TopK(ratio=0.01).",
        ),
    ):
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == message


def test_payloads_of_other_sizes_are_refused():
    method = EF21(TopK(k=1), min_numel=0)
    state = method.init([torch.zeros(3)])
    with pytest.raises(ValueError, match=r"EF21\.decode: state has no payload, encode first."):
        method.decode(state, [])
    payload = method.encode(state, [torch.ones(3)])
    with pytest.raises(
        ValueError, match=r"decode: payloads has shape \[1, 80\], expected payloads"
    ):
        method.decode(state, [payload[:80]])
