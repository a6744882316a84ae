# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""CuPy arrays straight into the operations and into the extension, on CuPy's current stream."""

import copy

import pytest
import torch

import largebatch
from largebatch import _C, ops
from tests.helpers import same_bits
from tests.ops import test_lamb, test_lars

if not (_C.cuda_available() and torch.cuda.is_available()):
    pytest.skip(f"no CUDA backend: {largebatch.build_info()}", allow_module_level=True)
cupy = pytest.importorskip("cupy", exc_type=ImportError)


def lamb_step(params, grads, exp_avgs, exp_avg_sqs, steps):
    groups = [0] * len(params), [test_lamb.HYPER]
    _C.lamb_step(_C.LambPlan(), params, grads, exp_avgs, exp_avg_sqs, steps, [], [], *groups)


def lars_step(params, grads, momentum_buffers, steps):
    groups = [0] * len(params), [test_lars.HYPER]
    rows = list(range(len(params)))
    _C.lars_step(_C.LarsPlan(), params, grads, momentum_buffers, rows, steps, [], [], *groups)


# The test module of the operation, whose problem is used, and the step of the extension.
FAMILIES = {"lamb": (test_lamb, lamb_step), "lars": (test_lars, lars_step)}


def to_cupy(lists):
    return {name: [cupy.asarray(t.cpu().numpy()) for t in given] for name, given in lists.items()}


def to_torch(lists):
    return [
        torch.from_numpy(cupy.asnumpy(array)).clone(memory_format=torch.contiguous_format)
        for given in lists.values()
        for array in given
    ]


def everything(lists):
    return [t.cpu() for given in lists.values() for t in given]


@pytest.fixture(params=FAMILIES)
def case(request):
    """Return (test module, step, lists of tensors, the same as lists of CuPy arrays)."""
    module, step = FAMILIES[request.param]
    tensors = module.tensors("cuda")
    arrays = to_cupy(tensors)
    cupy.cuda.Device().synchronize()
    return module, step, tensors, arrays


@pytest.fixture(params=["default", "own"])
def stream(request):
    """Make a stream the current one of CuPy: its default, or one that waits for no other."""
    chosen = {"default": cupy.cuda.Stream.null, "own": cupy.cuda.Stream(non_blocking=True)}
    with chosen[request.param] as current:
        yield current
        current.synchronize()


def same_stream_of_torch(stream):
    """Return it as torch's; of pointer 0 torch would make a stream that is another one."""
    return torch.cuda.ExternalStream(stream.ptr) if stream.ptr else torch.cuda.default_stream()


@pytest.fixture
def slow():
    """Return a function that queues a kernel of some 50 ms on CuPy's current stream."""
    source = """extern "C" __global__ void wait(long long cycles) {
        const long long start = clock64();
        while (clock64() - start < cycles) {}
    }"""
    kernel = cupy.RawKernel(source, "wait")
    kernel((1,), (1,), (1,))  # compiled here and not in the test
    return lambda: kernel((1,), (1,), (100_000_000,))


def test_extension_steps_like_with_tensors(case, stream):
    _, step, tensors, arrays = case
    before = copy.deepcopy(tensors)
    step(**tensors)
    step(**arrays)
    stream.synchronize()
    assert same_bits(to_torch(arrays), everything(tensors))
    assert not same_bits(tensors["params"], before["params"])


def test_operations_step_like_with_tensors(case, stream):
    module, _, tensors, arrays = case
    expected = module.both(ops, tensors, module.HYPER)
    with torch.cuda.stream(same_stream_of_torch(stream)):
        sums = module.both(ops, arrays, module.HYPER)
    stream.synchronize()
    assert same_bits(sums, expected)
    assert same_bits(to_torch(arrays), everything(tensors))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_norms_of_every_dtype(dtype, stream):
    arrays = [cupy.arange(n).astype(dtype) for n in (0, 1, 700, 1999)]
    sums = cupy.full(len(arrays), cupy.nan)
    _C.sq_sum(arrays, sums)
    tensors = [torch.arange(n, device="cuda").to(getattr(torch, dtype)) for n in (0, 1, 700, 1999)]
    expected = ops.multi_tensor_sq_sum(tensors).cpu()
    assert expected[-1] > 0
    assert same_bits(torch.tensor(cupy.asnumpy(sums)), expected)
    total, norms = ops.multi_tensor_norm(arrays)
    assert same_bits([total.cpu(), norms.cpu()], [expected.sum().sqrt(), expected.sqrt()])


def test_extension_runs_on_the_current_stream(slow, stream):
    x, sums = cupy.empty(100_000, cupy.float32), cupy.zeros(1)
    for wait in (lambda: None, slow):  # the first time around, CuPy compiles and must not wait
        x.fill(1)
        cupy.cuda.Device().synchronize()
        wait()
        x.fill(2)
        _C.sq_sum([x], sums)
        sums += 1
    assert _C._current_stream([x]) == stream.ptr
    stream.synchronize()
    assert sums.item() == 400_001


def test_operations_wait_for_the_current_stream(slow, stream):
    """They run on torch's stream, which the DLPack protocol has wait for CuPy's."""
    x = cupy.empty(100_000, cupy.float32)
    for wait in (lambda: None, slow):
        x.fill(1)
        cupy.cuda.Device().synchronize()
        wait()
        x.fill(2)
        result = ops.multi_tensor_sq_sum([x])
    assert result.item() == 400_000


def test_an_array_with_gaps_is_refused_by_the_extension():
    with pytest.raises(ValueError, match=r"tensors\[0\]"):
        _C.sq_sum([cupy.zeros(10, cupy.float32)[::2]], cupy.zeros(1))
