# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Tells autograd what the kernels wrote, in every version of torch."""

from torch.autograd.graph import increment_version


def _takes_lists():
    try:
        increment_version([])
    except (TypeError, RuntimeError):
        return False
    return True


_TAKES_LISTS = _takes_lists()  # older versions of torch take one tensor


def mark_written(tensors):
    """Count up the versions of tensors, so that autograd notices the in-place change."""
    if _TAKES_LISTS:
        increment_version(tensors)
        return
    for tensor in tensors:
        increment_version(tensor)
