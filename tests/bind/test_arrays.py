# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
import ctypes
import gc
import sys
import types
from ctypes import c_int32, c_int64, c_uint8, c_uint32, c_void_p

import numpy as np
import pytest
import torch

from largebatch import _C

HAS_TABLE = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")  # torch >= 2.10
needs_table = pytest.mark.skipif(not HAS_TABLE, reason="this torch has no DLPack exchange table")


def view(array):
    """(data_ptr, dtype, shape, strides, device_type, device_index) as the kernels would see it."""
    (seen,) = _C.describe_arrays("lamb", "grads", [array])
    return seen


# ---- Fake exporters: the DLPack structures, filled in by hand ------------------------------------


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device", c_int32 * 2),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", ctypes.c_size_t),
    )


class Legacy(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", c_void_p), ("deleter", c_void_p))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32 * 2),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", ctypes.c_size_t),
        ("tensor", DLTensor),
    )


class Table(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32 * 2),
        ("prev_api", c_void_p),
        ("allocator", c_void_p),
        ("managed_from_object", c_void_p),
        ("managed_to_object", c_void_p),
        ("tensor_from_object", c_void_p),
        ("current_work_stream", c_void_p),
    )


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, (c_void_p, ctypes.c_char_p, c_void_p)
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype, capsule_pointer.argtypes = c_void_p, (ctypes.py_object, ctypes.c_char_p)


def table_of(cls):
    """A copy of the exchange table of a class, to change."""
    pointer = capsule_pointer(cls.__dlpack_c_exchange_api__, b"dlpack_exchange_api")
    return Table.from_buffer_copy(Table.from_address(pointer))


def table_capsule(table):
    return new_capsule(ctypes.addressof(table), b"dlpack_exchange_api", None)


def dl_tensor(address, shape, *, device=(1, 0), byte_offset=0, code=2, bits=32, lanes=1):
    """A float32 array without strides."""
    shape = (c_int64 * len(shape))(*shape)
    return DLTensor(address, (c_int32 * 2)(*device), len(shape), code, bits, lanes, shape, None,
                    byte_offset)  # fmt: skip


class FakeArray:
    """Speaks the DLPack protocol as it was before version 1: no max_version, a plain capsule."""

    def __init__(self, **fields):
        self.buffer = np.arange(8, dtype=np.float32)
        self.managed = Legacy(dl_tensor(self.buffer.ctypes.data, (2, 3), **fields))
        self.calls = []

    def __dlpack_device__(self):
        return tuple(self.managed.tensor.device)

    def __dlpack__(self, *, stream=None):
        self.calls.append(stream)
        return new_capsule(ctypes.addressof(self.managed), b"dltensor", None)


# ---- What is seen --------------------------------------------------------------------------------

TENSORS = {
    "matrix": torch.randn(3, 4),
    "scalar": torch.tensor(2.0),
    "slice": torch.randn(40)[3:33:2],
    "transposed": torch.randn(3, 4).t(),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "seven_dims": torch.randn(1, 2, 1, 2, 1, 2, 1),
    "expanded": torch.randn(3, 1).expand(3, 4),
    "float64": torch.randn(3, dtype=torch.float64),
    "float16": torch.randn(3).half(),
    "bfloat16": torch.randn(3).bfloat16(),
    "int64": torch.arange(3),
    "uint8": torch.arange(3, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "complex64": torch.randn(3, dtype=torch.complex64),
}


@pytest.mark.parametrize("name", TENSORS)
def test_view_matches_tensor(rung, name):
    t = TENSORS[name]
    expected = (t.data_ptr(), str(t.dtype).removeprefix("torch."), tuple(t.shape), t.stride(), 1, 0)
    assert view(t) == expected


def test_empty_tensor_is_a_view(rung):
    assert view(torch.empty(0, 3))[1:3] == ("float32", (0, 3))


def test_lists_and_tuples_of_several_types(rung):
    mixed = (torch.ones(2), torch.nn.Parameter(torch.ones(2), requires_grad=False), np.ones(2))
    seen = _C.describe_arrays("lamb", "grads", mixed)
    assert [s[0] for s in seen] == [mixed[0].data_ptr(), mixed[1].data_ptr(), mixed[2].ctypes.data]
    assert _C.describe_arrays("lamb", "grads", []) == []


def test_parameter_that_requires_grad(rung, refusal):
    p = torch.nn.Parameter(torch.randn(3))
    if rung == "protocol":
        assert "BufferError" in refusal(p)
    else:
        assert view(p)[0] == p.data_ptr()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint8", "complex128"])
def test_view_matches_numpy_array(dtype):
    a = np.ones((4, 6), dtype)[::-1, ::2].T
    strides = tuple(s // a.itemsize for s in a.strides)
    assert view(a) == (a.ctypes.data, dtype, (3, 4), strides, 1, 0)


def test_byte_offset_is_added_and_missing_strides_mean_contiguous():
    fake = FakeArray(byte_offset=8)
    assert view(fake) == (fake.buffer.ctypes.data + 8, "float32", (2, 3), None, 1, 0)


def test_pinned_and_managed_memory():
    assert view(FakeArray(device=(3, 1)))[4:] == (1, 0)
    assert view(FakeArray(device=(13, 1)))[4:] == (2, 1)


# ---- The ladder ----------------------------------------------------------------------------------


@needs_table
def test_torch_takes_the_rung_that_is_set(rung):
    for array in torch.ones(1), torch.nn.Parameter(torch.ones(1)):
        assert _C._dlpack_rung(array) == rung
    assert _C._dlpack_rung(np.ones(1)) == "protocol"


@needs_table
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0,)], ids=str)
def test_what_fetches_tensors_ahead_finds_them(shape):
    for array in torch.ones(shape), torch.nn.Parameter(torch.ones(shape)):
        view(array)
        assert _C._layout_known(array)
    view(torch.ones([1] * 6))  # its sizes are not a part of it: nothing to tell from
    assert not _C._layout_known(torch.ones(1))


def test_torch_without_table_takes_the_capsule():
    class Old(torch.Tensor):
        __dlpack_c_exchange_api__ = None

    old = torch.randn(3).as_subclass(Old)
    assert _C._dlpack_rung(old) == "capsule"
    assert view(old)[0] == old.data_ptr()


@needs_table
def test_table_of_a_newer_version_leads_to_an_older_one():
    table = Table((c_uint32 * 2)(2, 0))
    older = table_of(torch.Tensor)
    table.prev_api = ctypes.addressof(older)

    class Newer(torch.Tensor):
        __dlpack_c_exchange_api__ = table_capsule(table)

    new = torch.randn(3).as_subclass(Newer)
    assert _C._dlpack_rung(new) == "exchange"
    assert view(new)[0] == new.data_ptr()
    table.prev_api = None

    class Newest(torch.Tensor):
        __dlpack_c_exchange_api__ = table_capsule(table)

    assert _C._dlpack_rung(torch.randn(3).as_subclass(Newest)) == "capsule"


@needs_table
def test_table_that_cannot_borrow_is_used_owning():
    table = table_of(torch.Tensor)
    table.tensor_from_object = None

    class Owning(torch.Tensor):
        __dlpack_c_exchange_api__ = table_capsule(table)

    owning = torch.randn(3).as_subclass(Owning)
    assert _C._dlpack_rung(owning) == "managed"
    assert view(owning)[0] == owning.data_ptr()


def test_old_protocol_is_asked_for_max_version_once():
    asked = []

    class Old(FakeArray):
        def __dlpack__(self, **keywords):
            asked.append(keywords)
            return super().__dlpack__(**keywords)

    old = Old()
    for _ in range(2):
        assert view(old)[:3] == (old.buffer.ctypes.data, "float32", (2, 3))
    assert asked == [{"stream": None, "max_version": (1, 0)}, {"stream": None}, {"stream": None}]


def test_memory_is_released(rung):
    memory = np.ones(3, np.float32)
    references = sys.getrefcount(memory)
    for array in memory, torch.from_numpy(memory):
        view(array)
        with pytest.raises(TypeError, match=r"grads\[1\] is an int"):
            _C.describe_arrays("lamb", "grads", [array, 1])
    del array
    gc.collect()
    assert sys.getrefcount(memory) == references


def test_owned_view_calls_its_deleter_once(refusal):
    released = []
    deleter = ctypes.PYFUNCTYPE(None, c_void_p)(released.append)
    memory = np.ones(3, np.float32)
    owned = Versioned((c_uint32 * 2)(1, 0), None, ctypes.cast(deleter, c_void_p), 0,
                      dl_tensor(memory.ctypes.data, (3,)))  # fmt: skip

    @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(c_void_p))
    def export(_, out):
        out[0] = ctypes.addressof(owned)
        return 0

    table = Table((c_uint32 * 2)(1, 3), managed_from_object=ctypes.cast(export, c_void_p))
    owner = type("Owner", (), {"__dlpack_c_exchange_api__": table_capsule(table)})
    assert view(owner())[0] == memory.ctypes.data
    assert released == [ctypes.addressof(owned)]
    owned.version[0] = 2  # unreadable, and yet to be released
    assert "DLPack 2" in refusal(owner())
    assert released == [ctypes.addressof(owned)] * 2


# ---- Streams -------------------------------------------------------------------------------------


def test_stream_of_the_cpu_is_none():
    assert _C._current_stream([torch.ones(1)]) == 0
    assert _C._current_stream([]) == 0


def test_stream_comes_from_the_exchange_table():
    asked = []

    @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))
    def export(_, out):
        out[0] = dl_tensor(4096, (3,), device=(2, 1))
        return 0

    @ctypes.PYFUNCTYPE(ctypes.c_int, c_int32, c_int32, ctypes.POINTER(c_void_p))
    def current_work_stream(device_type, index, out):
        asked.append((device_type, index))
        out[0] = 1234
        return 0

    table = Table((c_uint32 * 2)(1, 3), tensor_from_object=ctypes.cast(export, c_void_p),
                  current_work_stream=ctypes.cast(current_work_stream, c_void_p))  # fmt: skip
    on_cuda = type("OnCuda", (), {"__dlpack_c_exchange_api__": table_capsule(table)})()
    assert view(on_cuda) == (4096, "float32", (3,), None, 2, 1)
    assert _C._current_stream([on_cuda]) == 1234
    assert asked == [(2, 1)]
    # Another library's array after it is told the stream of the first one.
    fake = FakeArray(device=(2, 1))
    assert _C._current_stream([on_cuda, fake]) == 1234
    assert fake.calls == [1234]


def test_stream_of_torch_without_table(monkeypatch):
    class Old(torch.Tensor):
        __dlpack_c_exchange_api__ = None
        fake = FakeArray(device=(2, 3))
        __dlpack__ = fake.__dlpack__
        __dlpack_device__ = fake.__dlpack_device__

    streams = {3: types.SimpleNamespace(cuda_stream=99)}
    monkeypatch.setattr(torch.cuda, "current_stream", streams.get)
    before = _C._set_dlpack_rung("protocol")
    try:
        assert _C._current_stream([torch.ones(2, 3).as_subclass(Old)]) == 99
    finally:
        _C._set_dlpack_rung(before)
    assert Old.fake.calls == [99]


def test_stream_of_cupy(monkeypatch):
    streams = {1: types.SimpleNamespace(ptr=77)}
    cuda = types.ModuleType("cupy.cuda")
    cuda.get_current_stream = streams.get
    cupy = types.ModuleType("cupy")
    cupy.cuda, cupy.ndarray = cuda, type("ndarray", (FakeArray,), {})
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    array = cupy.ndarray(device=(2, 1))
    assert _C._current_stream([array]) == 77
    assert array.calls == [77]


def test_default_stream_is_called_one():
    fake = FakeArray(device=(2, 0))
    assert _C._current_stream([fake]) == 0
    assert fake.calls == [1]
