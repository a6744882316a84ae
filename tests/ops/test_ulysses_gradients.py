# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Pack and unpack are each other's adjoints, any number of times, and in compiled graphs."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from largebatch import ops
from largebatch.reference import ulysses as reference
from tests.helpers import same_bits
from tests.ops.ulysses_setting import (
    ORDERS,
    deal_heads,
    flat,
    gaussian,
    in_order,
    lengths,
    lies_in,
    unpack_like,
)

F64 = torch.float64
HEADS, DIMS = [3, 2, 2], [2, 2, 3]
SETTINGS = {
    "plain": (1, [1, 1, 1]),
    "copies": (1, [1, 2, 2]),
    "two messages": (2, [1, 1, 1]),
    "copies, two messages": (2, [2, 3, 3]),
}


def setting_of(name):
    """Return counts and replicas of tensors of HEADS and DIMS, for three ranks."""
    messages, replicas = SETTINGS[name]
    return deal_heads(HEADS, replicas, 3, messages, seed=1), replicas


@pytest.fixture(params=SETTINGS)
def setting(request):
    return setting_of(request.param)


def tensors_of(tokens=2, batch=2, device="cpu", grad=True):
    tensors = [
        gaussian((tokens, batch, n, d), F64, device, i)
        for i, (n, d) in enumerate(zip(HEADS, DIMS, strict=True))
    ]
    return [x.requires_grad_(grad) for x in tensors]


def messages_of(counts, tokens=2, batch=2, device="cpu", grad=True):
    sizes = lengths(tokens, batch, DIMS, counts)
    return [gaussian((n,), F64, device, 9 + k).requires_grad_(grad) for k, n in enumerate(sizes)]


def dot(xs, ys):
    return sum((x * y).sum() for x, y in zip(xs, ys, strict=True))


# ---- Derivatives ---------------------------------------------------------------------------------


def test_gradients_of_pack(setting):
    counts, replicas = setting

    def pack(*tensors):
        return tuple(ops.ulysses_pack(list(tensors), counts, replicas))

    assert torch.autograd.gradcheck(pack, tensors_of())
    assert torch.autograd.gradgradcheck(pack, tensors_of())


@pytest.mark.parametrize("layout", ORDERS)
def test_gradients_of_unpack(setting, layout):
    counts, replicas = setting

    def unpack(*messages):
        return tuple(ops.ulysses_unpack(list(messages), 2, 2, DIMS, counts, replicas, layout))

    assert torch.autograd.gradcheck(unpack, messages_of(counts))
    assert torch.autograd.gradgradcheck(unpack, messages_of(counts))


def test_gradients_are_those_of_the_oracle(backend, setting):
    counts, replicas = setting
    weights = messages_of(counts, grad=False)
    tensors = tensors_of()
    expected = torch.autograd.grad(dot(reference.pack(tensors, counts, replicas), weights), tensors)
    weights = [w.to(backend.device) for w in weights]
    tensors = tensors_of(device=backend.device)
    found = torch.autograd.grad(dot(ops.ulysses_pack(tensors, counts, replicas), weights), tensors)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14, check_device=False)

    weights, messages = tensors_of(grad=False), messages_of(counts)
    back = reference.unpack(messages, 2, 2, DIMS, counts, replicas)
    expected = torch.autograd.grad(dot(back, weights), messages)
    weights = [w.to(backend.device) for w in weights]
    messages = messages_of(counts, device=backend.device)
    found = torch.autograd.grad(
        dot(unpack_like(messages, weights, counts, replicas), weights), messages
    )
    assert same_bits(list(found), list(expected))  # moved, not added


def test_pack_and_unpack_are_adjoint(backend, setting):
    """<pack(x), y> = <x, unpack(y)>, in whole numbers: exactly."""
    counts, replicas = setting
    x = [(10 * t).round() for t in tensors_of(5, 3, backend.device, grad=False)]
    y = [(10 * m).round() for m in messages_of(counts, 5, 3, backend.device, grad=False)]
    left = dot(ops.ulysses_pack(x, counts, replicas), y)
    right = dot(x, unpack_like(y, x, counts, replicas))
    assert left == right != 0


def test_gradients_of_any_strides(backend):
    counts, replicas = deal_heads(HEADS, [1, 2, 2], 3, seed=1), [1, 2, 2]
    tensors = tensors_of(3, 2, backend.device)

    def gradients(grads):
        (message,) = ops.ulysses_pack(tensors, counts, replicas)
        found = unpack_like([message], tensors, counts, replicas)
        return torch.autograd.grad(found, tensors, grads)

    grads = tensors_of(3, 2, backend.device, grad=False)
    expected = gradients(grads)
    assert same_bits(expected, gradients([in_order(g, "bhsd") for g in grads]))
    columns = [g.mT.contiguous().mT for g in grads]
    assert columns[0].stride(-1) != 1
    assert same_bits(expected, gradients(columns))
    ones = [torch.ones_like(x) for x in tensors]
    expanded = [g.new_ones(()).expand_as(g) for g in grads]
    assert same_bits(gradients(ones), gradients(expanded))
    spread = [torch.stack([g, -g], dim=4)[..., 0] for g in grads]
    assert same_bits(expected, gradients(spread))


def test_expanded_gradients_of_messages(backend):
    """What sum() has for a gradient."""
    tensors, counts = tensors_of(3, 2, backend.device), deal_heads(HEADS, [1, 2, 3], 3)
    sum(m.sum() for m in ops.ulysses_pack(tensors, counts, [1, 2, 3])).backward()
    for x, copies in zip(tensors, [1, 2, 3], strict=True):
        assert (x.grad == copies).all()


@pytest.mark.parametrize("wanted", [[0], [1], [0, 2]], ids=str)
def test_only_some_tensors_require_gradients(backend, setting, wanted):
    counts, replicas = setting
    all_of, some = tensors_of(device=backend.device), tensors_of(device=backend.device, grad=False)
    for i in wanted:
        some[i].requires_grad_()
    weights = messages_of(counts, device=backend.device, grad=False)
    for tensors in (all_of, some):
        dot(ops.ulysses_pack(tensors, counts, replicas), weights).backward()
    for i, (x, y) in enumerate(zip(some, all_of, strict=True)):
        assert same_bits(x.grad, y.grad) if i in wanted else x.grad is None


def test_a_message_that_nothing_is_made_of(backend):
    counts, replicas = setting_of("copies, two messages")
    tensors = tensors_of(device=backend.device)
    weights = messages_of(counts, device=backend.device, grad=False)
    for used in (0, 1):
        messages = ops.ulysses_pack(tensors, counts, replicas)
        found = torch.autograd.grad((messages[used] * weights[used]).sum(), tensors)
        alone = [w if k == used else torch.zeros_like(w) for k, w in enumerate(weights)]
        assert same_bits(list(found), unpack_like(alone, tensors, counts, replicas))


def test_a_tensor_that_nothing_is_made_of(backend):
    counts, replicas = setting_of("copies, two messages")
    messages = messages_of(counts, device=backend.device)
    weights = tensors_of(device=backend.device, grad=False)
    found = unpack_like(messages, weights, counts, replicas)
    found = torch.autograd.grad((found[1] * weights[1]).sum(), messages)
    alone = [torch.zeros_like(weights[0]), weights[1], torch.zeros_like(weights[2])]
    assert same_bits(list(found), ops.ulysses_pack(alone, counts, replicas))


def test_tensors_and_messages_of_no_elements(backend):
    """A rank without tokens, and one without heads, has gradients of no elements."""
    counts = deal_heads(HEADS, [1, 1, 1], 3)
    tensors = tensors_of(0, 2, backend.device)
    (message,) = ops.ulysses_pack(tensors, counts)
    assert message.shape == (0,)
    message.sum().backward()
    assert [x.grad.shape for x in tensors] == [x.shape for x in tensors]
    none = torch.zeros(0, dtype=F64, device=backend.device, requires_grad=True)
    (found,) = ops.ulysses_unpack([none], 4, 2, [3], [[[0], [0]]])
    assert found.shape == (4, 2, 0, 3)
    found.sum().backward()
    assert none.grad.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_other_dtypes_are_the_adjoint(backend, dtype):
    x = gaussian((3, 2, 2, 5), dtype, backend.device).requires_grad_()
    counts = [[[1], [2], [1]]]
    (message,) = ops.ulysses_pack([x], counts, [2])
    weights = gaussian((len(message),), dtype, backend.device, 1)
    message.backward(weights)
    (expected,) = reference.unpack([weights.cpu()], 3, 2, [5], counts, [2])
    assert same_bits(x.grad, expected)


@pytest.mark.parametrize("layout", ORDERS)
def test_gradients_lie_in_memory_as_the_tensors(layout):
    x = in_order(gaussian((5, 3, 4, 2), F64), layout).requires_grad_()
    (message,) = ops.ulysses_pack([x], [[[1], [3]]])
    (grad,) = torch.autograd.grad(message.square().sum(), x)
    assert lies_in(grad, layout)
    assert torch.equal(grad, 2 * x)


def test_nothing_but_shapes_is_kept_for_backward():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        counts = deal_heads(HEADS, [1, 2, 2], 3)
        tensors = tensors_of()
        messages = ops.ulysses_pack(tensors, counts, [1, 2, 2])
        unpack_like(messages, tensors, counts, [1, 2, 2])
    assert saved == []


# ---- Operations of torch -------------------------------------------------------------------------


def opcheck(counts, replicas, layouts, device="cpu"):
    tensors, messages = tensors_of(device=device), messages_of(counts, device=device)
    rest = (flat(counts), replicas)
    pack = torch.ops.largebatch.ulysses_pack.default
    torch.library.opcheck(pack, (tensors, len(messages), *rest))
    unpack = torch.ops.largebatch.ulysses_unpack.default
    for layout in layouts:
        torch.library.opcheck(unpack, (messages, 2, 2, DIMS, *rest, layout))


def test_opcheck():
    opcheck(*setting_of("copies, two messages"), ORDERS)
    opcheck(*setting_of("plain"), ["sbhd"])


def test_opcheck_on_every_backend(backend):
    opcheck(*setting_of("copies, two messages"), ["bshd"], backend.device)


def test_fake_tensors():
    counts, replicas = deal_heads(HEADS, [1, 2, 2], 3, 2), [1, 2, 2]
    real = tensors_of(5, 3)
    expected = ops.ulysses_pack(real, counts, replicas)
    with FakeTensorMode():
        tensors = [torch.empty(x.shape, dtype=torch.float16) for x in real]
        messages = ops.ulysses_pack(tensors, counts, replicas)
        assert [m.shape for m in messages] == [m.shape for m in expected]
        for layout in ORDERS:
            found = unpack_like(messages, tensors, counts, replicas, layout=layout)
            assert [x.shape for x in found] == [x.shape for x in real]
            assert all(lies_in(x, layout) and x.dtype == torch.float16 for x in found)


def test_compiled_with_gradients_of_any_lengths():
    counts, replicas = setting_of("copies, two messages")

    def work(*tensors):
        messages = ops.ulysses_pack([2 * x for x in tensors], counts, replicas)
        messages, found = [m.square() for m in messages], []
        for layout in ORDERS:
            found += unpack_like(messages, tensors, counts, replicas, layout=layout)
        return found

    torch._dynamo.reset()
    compiled = torch.compile(work, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens, batch in ((4, 3), (9, 3), (7, 5)):
        plain, given = tensors_of(tokens, batch), tensors_of(tokens, batch)
        expected, found = work(*plain), compiled(*given)
        assert same_bits(found, expected)
        assert [x.stride() for x in found] == [x.stride() for x in expected]
        dot(expected, [*plain] * 3).backward()
        dot(found, [*given] * 3).backward()
        assert same_bits([x.grad for x in given], [x.grad for x in plain])


def test_compiled_once_for_all_lengths():
    counts, graphs = deal_heads(HEADS, [1, 1, 1], 3), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *tensors: ops.ulysses_pack(list(tensors), counts),
        fullgraph=True,
        backend=backend,
        dynamic=True,
    )
    for tokens in (4, 9, 6):
        tensors = tensors_of(tokens, 3, grad=False)
        assert same_bits(compiled(*tensors), ops.ulysses_pack(tensors, counts))
    assert len(graphs) == 1
