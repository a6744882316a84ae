# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What a call does, in numbers that no other load on the machine changes: launches and bytes."""

import sys
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WRITES_ONLY = ("copy_", "fill_", "zero_", "normal_", "uniform_")  # of these self is not read
NOT_COUNTED = ("largebatch", "profiler")  # our operations call the extension, which is counted
LISTS_ONLY = ("collect",)  # functions of the extension that see no element, as views do not
ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


def count(device, call):
    """Return (launches, bytes) of a call; None for what cannot be told.

    Launches are what the profiler sees a GPU run, kernels, copies and fills; on a CPU operations of
    torch that are no views, and calls of the extension that read elements. Bytes are those of
    torch's operations, as their arguments say: what each reads and writes, whether or not a cache
    has it, and nothing of what it does inside.
    """
    operations = Operations()
    with operations, _extension_calls() as of_ours:
        if isinstance(call, partial):  # what it calls is not seen
            call.func(*call.args, **call.keywords)
        else:
            call()
    launches = operations.count + len(of_ours)
    if device.type == "cuda":
        launches = _kernels(device, call)
    return launches, operations.bytes or None


class Operations(TorchDispatchMode):
    """Counts operations of torch and the bytes of their arguments while it is entered."""

    def __init__(self):
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not (func.namespace in NOT_COUNTED or _is_view(func) or _allocates(func)):
            self.count += 1
            self.bytes += _bytes_of(func, args, kwargs, out)
        return out


def _is_view(func):
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info and not r.alias_info.is_write for r in returns)


def _allocates(func):
    return func._schema.name.split("::")[1] in ALLOCATIONS


def _bytes_of(func, args, kwargs, out):
    """Count each tensor that is read, and each that is written."""
    name, schema = func._schema.name.split("::")[1], func._schema
    total = 0
    given = [*zip(schema.arguments, args, strict=False)]
    given += [(a, kwargs[a.name]) for a in schema.arguments if a.name in kwargs]
    for argument, value in given:
        written = argument.alias_info is not None and argument.alias_info.is_write
        read = not (written and (argument.is_out or name in WRITES_ONLY))
        total += (written + read) * _memory(value)
    new = [r for r in schema.returns if r.alias_info is None]
    return total + (_memory(out) if new else 0)


def _memory(value):
    """Return the bytes of the tensors in a value, without repetitions of an expanded one."""
    total = 0
    for tensor in tree_leaves(value):
        if isinstance(tensor, torch.Tensor):
            elements = 1
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
                elements *= size if stride else min(size, 1)
            total += elements * tensor.element_size()
    return total


@contextmanager
def _extension_calls():
    """Collect the calls of functions of the extension that read elements."""
    calls = []

    def see(_, event, function):
        ours = (
            getattr(function, "__module__", None) == "largebatch._C"
            or type(getattr(function, "__self__", None)).__module__ == "largebatch._C"
        )
        if event == "c_call" and ours and function.__name__ not in LISTS_ONLY:
            calls.append(function.__name__)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def _kernels(device, call):
    """Return how many things the profiler sees the GPU run; None if it sees none (no CUPTI)."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize(device)
    cuda = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == cuda for event in profile.events()) or None
