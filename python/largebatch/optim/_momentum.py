# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Momentum in few bits: which tensors have it, what it starts from, and how a checkpoint's fits."""

import torch

from ..reference import rounding
from ._sharding import local, zeros_by_block

DTYPES = (None, "float32", "bfloat16", "int8")
_SMALLEST = 4096  # elements of a tensor with int8 momentum: what smaller ones take is not worth it


def momentum_dtype(param, state_dtype):
    """Return the dtype of the momentum of a parameter."""
    wide = torch.promote_types(param.dtype, torch.float32)
    if param.is_complex() or state_dtype in (None, "float32"):
        return wide
    if state_dtype == "bfloat16":
        return torch.bfloat16
    return torch.int8 if param.numel() >= _SMALLEST else wide


def zeros(param, state_dtype, arena):
    """Return the entries of the state before the first step."""
    dtype = momentum_dtype(param, state_dtype)
    state = {"exp_avg": arena.empty_like(param, dtype).zero_()}
    if dtype == torch.int8:
        state["exp_avg_scale"] = zeros_by_block(param, rounding.BLOCK)
    return state


def scale_of(state):
    """Return the scales of an int8 momentum that are used by what this rank holds of it."""
    blocks = -(-local(state["exp_avg"]).numel() // rounding.BLOCK)
    return local(state["exp_avg_scale"])[:blocks]


def converted(param, state_dtype, momentum, scale, arena):
    """Return the entries of the state that hold a given momentum: its bits, if they fit as is."""
    state = zeros(param, state_dtype, arena)
    target = state["exp_avg"]
    momentum = momentum.to(param.device)
    if momentum.dtype == torch.int8:
        if not torch.is_tensor(scale):
            raise ValueError(
                "load_state_dict: exp_avg has dtype int8 and there is no exp_avg_scale, expected "
                "both. Save them together, or exp_avg in a floating dtype."
            )
        if target.dtype == torch.int8 and local(target).stride() == local(momentum).stride():
            target.copy_(momentum)
            state["exp_avg_scale"].copy_(scale)
            return state
        own = dict(exp_avg=momentum, exp_avg_scale=scale.to(param.device))
        value = _decoded(local(momentum), scale_of(own))
    else:
        value = local(momentum)
    if target.dtype == torch.int8:
        dense = torch.empty_like(local(target), dtype=torch.float32).copy_(value)
        codes, scales = rounding.encode_int8(rounding.memory_order(dense))
        rounding.memory_order(local(target)).copy_(codes)
        scale_of(state).copy_(scales)
    else:
        local(target).copy_(value)
    return state


def _decoded(codes, scale):
    value = torch.empty_like(codes, dtype=torch.float32)
    decoded = rounding.decode_int8(rounding.memory_order(codes), scale)
    rounding.memory_order(value).copy_(decoded)
    return value
