# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What benchmarks run on: the shapes of models, factors, buckets and attention heads.

Each list is there in two sizes, for a CPU and for a GPU, and each has a quick part that stands for
the whole. A benchmark asks for one by its name: `model`, `factors`, `layers`, `vector`, `heads`.
"""

from math import prod
from typing import NamedTuple


class Case(NamedTuple):
    """Tensors to run on."""

    name: str
    shapes: list

    @property
    def numel(self):
        """The number of elements."""
        return sum(prod(shape) for shape in self.shapes)


# ---- Models --------------------------------------------------------------------------------------


def _bert(hidden, layers, feed_forward, vocabulary, positions=512, segments=2):
    shapes = [(vocabulary, hidden), (positions, hidden), (segments, hidden), (hidden,), (hidden,)]
    for _ in range(layers):
        shapes += [(hidden, hidden), (hidden,)] * 4 + [(hidden,)] * 2
        shapes += [(feed_forward, hidden), (feed_forward,), (hidden, feed_forward), (hidden,)]
        shapes += [(hidden,)] * 2
    return shapes


def _bert_heads(hidden, vocabulary):
    """The pooler and both heads of pre-training; the decoder's weight is the embedding's."""
    dense = [(hidden, hidden), (hidden,)]
    return [*dense, *dense, (hidden,), (hidden,), (vocabulary,), (2, hidden), (2,)]


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


def _vit(hidden, layers, patch=16, patches=196, classes=1000):
    shapes = [(1, 1, hidden), (1, patches + 1, hidden), (hidden, 3, patch, patch), (hidden,)]
    for _ in range(layers):
        shapes += [(hidden,), (hidden,), (3 * hidden, hidden), (3 * hidden,)]
        shapes += [(hidden, hidden), (hidden,), (hidden,), (hidden,)]
        shapes += [(4 * hidden, hidden), (4 * hidden,), (hidden, 4 * hidden), (hidden,)]
    return [*shapes, (hidden,), (hidden,), (classes, hidden), (classes,)]


def _decoder(hidden, layers, feed_forward, kv_width, vocabulary=128256):
    """A decoder with grouped kv heads, gated feed-forward and one embedding for both ends."""
    layer = [(hidden, hidden), (kv_width, hidden), (kv_width, hidden), (hidden, hidden)]
    layer += [(feed_forward, hidden), (feed_forward, hidden), (hidden, feed_forward)]
    return [(vocabulary, hidden), *[*layer, (hidden,), (hidden,)] * layers, (hidden,)]


_TINY = Case("tiny-5000", [(1 + 7 * i % 100,) for i in range(5000)])
_RESNET50 = Case("resnet50", _resnet50())
_BERT_35M = Case("bert-35m", _bert(hidden=576, layers=4, feed_forward=2304, vocabulary=32768))
_BERT_LARGE = Case(
    "bert-large",
    _bert(hidden=1024, layers=24, feed_forward=4096, vocabulary=30522) + _bert_heads(1024, 30522),
)
_VIT_S = Case("vit-s", _vit(hidden=384, layers=12))
_VIT_L = Case("vit-l", _vit(hidden=1024, layers=24))
_DECODER_39M = Case("decoder-39m", _decoder(256, layers=8, feed_forward=1024, kv_width=64))
_DECODER_1B = Case("decoder-1b", _decoder(2048, layers=16, feed_forward=8192, kv_width=512))


# ---- Kronecker factors ---------------------------------------------------------------------------


def _factors(hidden, layers, feed_forward):
    """Both factors of the linear layers of an encoder, biases folded into those of the inputs."""
    layer = [*[hidden, hidden + 1] * 4, feed_forward, hidden + 1, hidden, feed_forward + 1]
    return [(order, order) for order in layer * layers]


def _one(order):
    return Case(f"d = {order}", [(order, order)])


_FACTORS_3M = Case("bert-3m", _factors(hidden=256, layers=4, feed_forward=1024))
_FACTORS_35M = Case("bert-35m", _factors(hidden=576, layers=4, feed_forward=2304))
_FACTORS_LARGE = Case("bert-large", _factors(hidden=1024, layers=24, feed_forward=4096))


def _linear(hidden, layers, feed_forward):
    """Weights and biases, in pairs, of the linear layers of an encoder."""
    sizes = [*[(hidden, hidden)] * 4, (feed_forward, hidden), (hidden, feed_forward)]
    return [shape for size in sizes * layers for shape in (size, size[:1])]


_LINEAR_3M = Case("bert-3m", _linear(hidden=256, layers=4, feed_forward=1024))
_LINEAR_LARGE = Case("bert-large", _linear(hidden=1024, layers=24, feed_forward=4096))


# ---- Buckets and heads ---------------------------------------------------------------------------


def _vector(power):
    """One long tensor, as a bucket is, for operations on gradients that are one vector."""
    return Case(f"2^{power} elements", [(2**power,)])


def _heads(tokens):
    """The q, k and v of one rank, [B, s, H, D]: of a model of 7B, 32 q heads and 8 kv heads."""
    name = f"{tokens // 1024}k tokens"
    return Case(name, [(1, tokens, 32, 128), (1, tokens, 8, 128), (1, tokens, 8, 128)])


# ---- The grid ------------------------------------------------------------------------------------

# kind of device -> name -> (the quick part, what the full grid adds)
GRID = {
    "cpu": {
        "model": ([_BERT_35M, _TINY], [_RESNET50, _VIT_S, _DECODER_39M]),
        "factors": ([_one(1024), _FACTORS_3M], [_one(4096), _FACTORS_35M]),
        "layers": ([_LINEAR_3M], []),
        "vector": ([_vector(24)], [_vector(27)]),
        "heads": ([_heads(16384)], [_heads(4096)]),
    },
    "cuda": {
        "model": ([_BERT_LARGE, _TINY], [_RESNET50, _VIT_L, _DECODER_1B]),
        "factors": ([_one(4096), _FACTORS_LARGE], [_one(1024)]),
        "layers": ([_LINEAR_LARGE], []),
        "vector": ([_vector(27)], [_vector(30)]),
        "heads": ([_heads(16384)], [_heads(131072)]),
    },
}
DTYPES = (["float32"], ["bfloat16"])
