# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The shapes of the models, against what is known of them."""

import pytest
from shapes import GRID  # of bench/, which pytest puts on the path

CASES = {
    case.name: case
    for kinds in GRID.values()
    for case in (c for name, parts in kinds.items() if name == "model" for p in parts for c in p)
}


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("bert-large", 398, 336_226_108),  # BertForPreTraining
        ("resnet50", 161, 25_557_032),
        ("vit-l", 296, 304_326_632),  # ViT-L/16 at 224 pixels
        ("decoder-1b", 146, 1_235_814_400),  # Llama 3.2 1B
        ("bert-35m", 69, 35_126_784),
        ("tiny-5000", 5000, 252_500),
    ],
)
def test_numbers_of_tensors_and_parameters(name, tensors, elements):
    assert (len(CASES[name].shapes), CASES[name].numel) == (tensors, elements)


def test_both_kinds_of_device_have_every_name_and_none_twice():
    assert GRID["cpu"].keys() == GRID["cuda"].keys()
    for kinds in GRID.values():
        for quick, more in kinds.values():
            names = [case.name for case in quick + more]
            assert quick
            assert len(set(names)) == len(names)
