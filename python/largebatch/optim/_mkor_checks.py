# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What MKOR's settings and its state dict may be."""

import math
import re

import torch
from torch.optim import Optimizer

from ..reference import kron as reference

FORMAT = 1  # of the state dict
_BLENDS = {"exact": 0.9, "paper": 0.4}  # of the stabilizer, where none is given


def check_settings(given):
    """Refuse what is out of range; return the settings of the update, as the operation has them."""

    def fail(name, expected, error=ValueError):
        raise error(f"MKOR: {name}: got {given[name]!r}, expected {expected}.")

    def number(name, low, high, expected):
        value = given[name]
        if not isinstance(value, int | float) or not low <= value <= high or value != value:
            fail(name, expected)
        return float(value)

    def choice(name, *choices):
        if given[name] not in choices:
            fail(name, f"one of {', '.join(map(repr, choices))}")
        return given[name]

    optimizer = given["optimizer"]
    if not isinstance(optimizer, Optimizer):
        name = type(optimizer).__name__
        raise TypeError(f"MKOR: optimizer: got {name}, expected a torch.optim.Optimizer.")
    tiny = math.ulp(0.0)
    below_one = 1 - 2**-53
    variant = choice("variant", "leaky", "exact", "paper")
    update = {
        "variant": variant,
        "gamma": number("gamma", tiny, below_one, "a number in (0, 1)"),
        "leak": number("leak", 0, below_one, "a number in [0, 1)"),
        "rho": number("rho", tiny, 1e308, "a finite number above 0"),
        "stabilizer_norm": choice("stabilizer_norm", "max", "inf"),
        "stabilizer_threshold": None,
        "stabilizer_blend": None,
    }
    for name, low in (("update_every", 1), ("warmup_steps", 0), ("max_factor_dim", 1)):
        if not isinstance(given[name], int) or given[name] < low:
            fail(name, f"an integer >= {low}")
    choice("sides", "LR", "L", "R")
    choice("stats", "auto", "grad")
    choice("large_dims", "skip_side", "block", "skip_layer")
    floats = torch.float32, torch.float16, torch.bfloat16, torch.float64
    choice("factor_dtype", *floats)
    choice("matmul_dtype", None, torch.float32, torch.bfloat16, torch.float64)
    if given["stat_clip"] is not None:
        number("stat_clip", tiny, math.inf, "None or a number above 0")
    if given["grad_scale"] is not None and not callable(given["grad_scale"]):
        fail("grad_scale", "a function that returns it, as scaler.get_scale", TypeError)
    skip = given["skip"]
    if skip is not None and not (isinstance(skip, str) or callable(skip)):
        fail("skip", "None, a regular expression or a function of name and module", TypeError)
    try:
        re.compile(skip if isinstance(skip, str) else "")
    except re.error as error:
        fail("skip", f"a regular expression: {error}")
    threshold, blend = given["stabilizer_threshold"], given["stabilizer_blend"]
    if variant == "leaky":
        for name, value in (("stabilizer_threshold", threshold), ("stabilizer_blend", blend)):
            if value is not None:
                fail(name, "None with variant 'leaky', which blends in every update")
        return update
    if threshold is not None:
        threshold = number("stabilizer_threshold", tiny, 1e308, "None or a finite number above 0")
    limit = reference.stable_blend(variant, update["gamma"])
    given["stabilizer_blend"] = blend = _BLENDS[variant] if blend is None else blend
    expected = f"a number in [0, {limit:.4g}): above that, {variant} grows without bound"
    if number("stabilizer_blend", 0, 1, expected) >= limit:
        fail("stabilizer_blend", expected)
    update["stabilizer_threshold"] = 2.0 if threshold is None else threshold
    update["stabilizer_blend"] = float(blend)
    return update


def check_state(state, variant, shapes):
    """Refuse what MKOR's part of a state dict cannot be.

    shapes : {(layer, side): shapes of blocks}, of the factors it is for.
    """

    def fail(got, expected):
        raise ValueError(f"MKOR: state_dict has {got}, expected {expected}")

    if state is None:
        fail("no 'mkor'", "the factors in it. Load the state of an optimizer alone by "
             "mkor.optimizer.load_state_dict.")  # fmt: skip
    if state["format"] != FORMAT:
        fail(f"format {state['format']}", f"{FORMAT}. Update largebatch.")
    given = state["settings"]["variant"]
    if given != variant:
        fail(f"variant {given!r}", f"{variant!r}. Build MKOR as it was when it was saved.")
    if state["first_order"]:  # it has no factors
        return
    given = {
        (name, side): [list(m.shape) for m in blocks]
        for name, sides in state["factors"].items()
        for side, blocks in sides.items()
    }
    for name, side in [*given, *shapes]:
        got, expected = given.get((name, side)), shapes.get((name, side))
        if got != expected:
            fail(
                f"{_describe(got)} for factor {side} of module {name!r}",
                f"{_describe(expected)}. Build MKOR with the model and settings of the save.",
            )


def _describe(shapes):
    if shapes is None:
        return "nothing"
    return f"shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} blocks"
