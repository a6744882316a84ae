# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How the operations of ``torch.ops.largebatch`` are registered, and how arrays come in."""

import torch

library = torch.library.Library("largebatch", "DEF")


def define(schema, kernel, fake):
    """Define an operation with one kernel for CPU and CUDA and one for shapes only."""
    name = schema.split("(")[0]
    library.define(schema)
    for device in ("CPU", "CUDA"):
        library.impl(name, kernel, device)
    torch.library.register_fake(f"largebatch::{name}", fake, lib=library)


def as_tensors(op, **lists):
    """Return lists of arrays of any library as torch tensors that share their memory.

    All must be on one device: the dispatcher would send a call with one meta tensor in it to the
    kernel that computes shapes only, and nothing would be done, or said.
    """
    first, found = None, []
    for argument, arrays in lists.items():
        if not isinstance(arrays, list | tuple):
            raise TypeError(
                f"{op}: {argument} is a {type(arrays).__name__}, expected a list of arrays. "
                "Pass [x] for a single one."
            )
        alike, tensors = _on_one_device(arrays), []
        for i, array in enumerate(arrays[:1] if alike else arrays):
            tensor = as_tensor(op, f"{argument}[{i}]", array, first)
            first = first or (tensor.device, f"{argument}[{i}]")
            tensors.append(tensor)
        found.append(list(arrays) if alike else tensors)
    return found


def _on_one_device(arrays):
    """Tell whether all are tensors of torch on one device, so that the first speaks for them."""
    if not all(issubclass(kind, torch.Tensor) for kind in {type(array) for array in arrays}):
        return False
    return len({array.device for array in arrays}) == 1


def as_tensor(op, label, array, first=None):
    """Return an array of any library as a torch tensor that shares its memory.

    first : (device, name) of the argument that it has to be on one device with.
    """
    tensor = array if isinstance(array, torch.Tensor) else _share(op, label, array)
    if first is not None and tensor.device != first[0]:
        raise ValueError(
            f"{op}: {label} is on {tensor.device}, expected {first[0]} like {first[1]}."
        )
    return tensor


def _share(op, label, array):
    if not hasattr(array, "__dlpack__"):
        raise TypeError(
            f"{op}: {label} is a {type(array).__name__}, expected a torch, NumPy or CuPy array."
        )
    if any(stride < 0 for stride in getattr(array, "strides", None) or ()):  # torch would abort
        raise ValueError(f"{op}: {label} has a negative stride, expected none. Pass a copy.")
    try:
        return torch.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{op}: {label} cannot be shared with torch: {error}") from error


def hyper_parameters(op, given, names):
    """Return the values in the order of `names`, or say which are missing or unknown."""
    for name in given:
        if name not in names:
            raise TypeError(f"{op}: got an unexpected argument '{name}', expected {_list(names)}.")
    missing = [name for name in names if name not in given]
    if missing:
        raise TypeError(f"{op}: {_list(missing)} missing. Give every hyper-parameter by name.")
    return [given[name] for name in names]


def _list(names):
    return ", ".join(names)
