# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Ulysses sequence parallelism: ranks share the tokens of a sequence, and in attention the heads.

Jacobs et al. 2023, "DeepSpeed Ulysses: System Optimizations for Enabling Training of Extreme Long
Sequence Transformer Models", arXiv 2309.14509.
"""

from .attention import UlyssesAttention
from .checkpoint import keep_exchanged
from .exchange import heads_to_seq, qkv_to_heads
from .hugging_face import register_attention
from .plan import UlyssesPlan, gather_lengths, split_lengths
from .tokens import position_ids, sequence_parallel_loss, shard_sequence, shift_labels

__all__ = [
    "UlyssesAttention",
    "UlyssesPlan",
    "gather_lengths",
    "heads_to_seq",
    "keep_exchanged",
    "position_ids",
    "qkv_to_heads",
    "register_attention",
    "sequence_parallel_loss",
    "shard_sequence",
    "shift_labels",
    "split_lengths",
]
