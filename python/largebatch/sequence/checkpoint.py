# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing without communicating twice."""

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts


def keep_exchanged():
    """Let a checkpoint keep what its exchanges have brought, and compute all else again.

    Checkpointed as usual, a block exchanges once more in backward, with the result that it had; all
    ranks have to checkpoint the same blocks. With this, q, k, v and o are kept as they came.

    Returns
    -------
    tuple
        For ``torch.utils.checkpoint.checkpoint``.

    Examples
    --------
    >>> x = checkpoint(block, x, use_reentrant=False, context_fn=sequence.keep_exchanged)
    """
    return create_selective_checkpoint_contexts(_policy)


def _policy(context, op, *args, **kwargs):
    collectives = torch.ops._c10d_functional
    kept = (collectives.all_to_all_single.default, collectives.wait_tensor.default)
    return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE
