# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""A small decoder-only transformer over bytes, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256  # one symbol per byte
HEAD_WIDTH = 32
INITIAL_STD = 0.05  # GPT-2's 0.02 is for wider models; here both optimizers learn slower from it


class Block(nn.Module):
    """Pre-norm causal self-attention, then a pre-norm two-layer perceptron, both residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, context, width]`` to the same shape."""
        batch, context, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, context, 3, self.heads, HEAD_WIDTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(batch, context, width))
        return x + self.contract(F.gelu(self.expand(self.mlp_norm(x))))


class ByteTransformer(nn.Module):
    """Predict the next byte of a text.

    Parameters
    ----------
    layers, width, context : int
        Number of blocks, model width (a multiple of `HEAD_WIDTH`), longest input in bytes.
    """

    def __init__(self, layers: int, width: int, context: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                # The two matrices that write into the residual stream start smaller, so that its
                # variance does not grow with depth (GPT-2's rule).
                writes = name.endswith(("projection.weight", "contract.weight"))
                std = INITIAL_STD / (2 * layers) ** 0.5 if writes else INITIAL_STD
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, text: Tensor) -> Tensor:
        """Return next-byte logits ``[batch, context, 256]`` for bytes ``[batch, context]``."""
        x = self.bytes(text) + self.positions.weight[: text.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy, in nats per byte, of windows ``[batch, context + 1]``."""
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
