# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
#
# Objects that look like arrays and are none, or that DLPack shows in a misleading way.
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh

from largebatch import _C


def test_not_an_array(refusal):
    expected = ", expected an array (a torch.Tensor, or an object with __dlpack__)."
    assert refusal([1.0]) == "is a list" + expected
    assert refusal(1) == "is an int" + expected
    assert refusal(None) == "is None" + expected


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        (torch.ones(2, 2), "a Tensor"),
        (np.ones((2, 2)), "a numpy.ndarray"),
        (iter([torch.ones(2)]), "a list_iterator"),
        ({0: torch.ones(2)}, "a dict"),
        (None, "None"),
    ],
    ids=lambda a: a if isinstance(a, str) else "",
)
def test_not_a_list(argument, kind):
    with pytest.raises(TypeError) as caught:
        _C.describe_arrays("lamb", "grads", argument)
    assert str(caught.value) == f"lamb: grads is {kind}, expected a list or tuple of arrays."


def test_meta_tensor(rung, refusal):
    assert refusal(torch.empty(3, device="meta")).startswith("is a meta tensor, ")


def test_fake_tensor(rung, refusal):
    with FakeTensorMode():
        fake = torch.empty(3)
    assert refusal(fake) == "is a FakeTensor: fake tensors have no memory."


def test_sparse_tensor(rung, refusal):
    message = refusal(torch.eye(3).to_sparse())
    assert message == "has layout torch.sparse_coo, expected torch.strided. Pass x.to_dense()."


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad])
def test_tensor_inside_a_transform(rung, refusal, transform):
    messages = []

    def body(x):
        messages.append(refusal(x))
        return x.sum()

    transform(body)(torch.ones(3, 3))
    assert len(messages) == 1
    assert messages[0].startswith("is a tensor of a torch.func transform (vmap, grad, jvp), ")


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_dtensor(rung, refusal, mesh):
    tensor = pytest.importorskip("torch.distributed.tensor")  # torch >= 2.5
    message = refusal(tensor.distribute_tensor(torch.ones(3), mesh))
    assert message == "is a DTensor, whose memory is spread over processes. Pass x.to_local()."


def test_wrapper_without_memory(rung, refusal):
    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            raise NotImplementedError("no op")

    wrapper = torch.Tensor._make_wrapper_subclass(Wrapper, (3,))
    if rung == "protocol":  # torch's __dlpack__ calls an op before it gives up
        assert refusal(wrapper) == "cannot be viewed through DLPack (NotImplementedError: no op)."
    else:
        assert refusal(wrapper) == "has elements but no memory (its data pointer is null)."


def test_quantized_tensor(rung, refusal):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them
        quantized = torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)
    assert refusal(quantized).startswith("cannot be viewed through DLPack (")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_with_negative_bit(rung, refusal, dtype):
    p = torch.zeros(1, dtype=dtype, requires_grad=True)
    z = torch.complex(torch.zeros(1, dtype=dtype), p)
    (z.conj() * torch.tensor([1 + 2j], dtype=z.dtype)).real.sum().backward()
    assert p.grad.is_neg(), "torch no longer hands out such gradients: drop the check"
    assert refusal(p.grad) == "has its negative bit set. Pass x.resolve_neg()."
    assert _C.describe_arrays("lamb", "grads", [p.grad.resolve_neg()])


def test_half_of_a_complex_number_without_negative_bit(rung):
    imag = torch.tensor([1 + 2j]).imag
    ((address, *_),) = _C.describe_arrays("lamb", "grads", [imag])
    assert address == imag.data_ptr()


def test_conjugate_is_refused_by_its_dtype():
    conjugate = torch.ones(3, dtype=torch.complex64).conj()
    with pytest.raises(TypeError, match="has dtype complex64, expected float32, float16 or"):
        _C._check_arrays("dtype", "lamb", [("grads", [conjugate])])


class Exporter:
    """An array whose __dlpack__ does as told."""

    def __init__(self, action, device=(1, 0)):
        self.action, self.device = action, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, max_version=None):
        return self.action()


def test_exporter_that_raises(refusal):
    def fail(error):
        raise error

    two_lines = Exporter(lambda: fail(ValueError("first line\nsecond line")))
    assert refusal(two_lines) == "cannot be viewed through DLPack (ValueError: first line)."
    with pytest.raises(KeyboardInterrupt):
        _C.describe_arrays("lamb", "grads", [Exporter(lambda: fail(KeyboardInterrupt()))])


def test_exporter_that_gives_something_else(refusal):
    assert refusal(Exporter(lambda: 3)) == "gave an int as its DLPack capsule."
    assert refusal(Exporter(list, device=None)).startswith("cannot be viewed through DLPack (")


def test_numpy_type_that_dlpack_lacks(refusal):
    assert refusal(np.array(["text"])).startswith("cannot be viewed through DLPack (BufferError: ")
    assert refusal(np.ones(3, ">f4")).startswith("cannot be viewed through DLPack (BufferError: ")
