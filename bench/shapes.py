# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter shapes of the models that benchmarks run on."""

from math import prod


def _encoder(hidden, layers, feed_forward, vocabulary, positions=512, segments=2):
    shapes = [(vocabulary, hidden), (positions, hidden), (segments, hidden), (hidden,), (hidden,)]
    for _ in range(layers):
        shapes += [(hidden, hidden), (hidden,)] * 4 + [(hidden,)] * 2
        shapes += [(feed_forward, hidden), (feed_forward,), (hidden, feed_forward), (hidden,)]
        shapes += [(hidden,)] * 2
    return shapes


def _resnet50():
    shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, (shape[0],), (shape[0],)]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


SHAPES = {
    "bert-35m": _encoder(hidden=576, layers=4, feed_forward=2304, vocabulary=32768),
    "resnet50": _resnet50(),
    "tiny-5000": [(1 + 7 * i % 100,) for i in range(5000)],
}


def _factors(hidden, layers, feed_forward):
    """Both factors of the linear layers of an encoder, biases folded into those of the inputs."""
    layer = [*[hidden, hidden + 1] * 4, feed_forward, hidden + 1, hidden, feed_forward + 1]
    return [(order, order) for order in layer * layers]


# Kronecker factors: one that a cache holds, one that none does, and those of a model.
FACTORS = {
    "d = 1024": [(1024, 1024)],
    "d = 4096": [(4096, 4096)],
    "bert-35m": _factors(hidden=576, layers=4, feed_forward=2304),
}


def numel(shapes):
    """Return the number of elements."""
    return sum(prod(shape) for shape in shapes)


# One long tensor, as a bucket is, for operations on gradients that are one vector.
FLAT = {"1e8 elements": [(100_000_000,)]}

# q, k and v of one rank, [B, s, H, D]: 16k tokens of a model of 7B, 32 q heads and 8 kv heads.
HEADS = {"16k tokens": [(1, 16384, 32, 128), (1, 16384, 8, 128), (1, 16384, 8, 128)]}
