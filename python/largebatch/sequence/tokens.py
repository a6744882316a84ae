# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The tokens of a rank: their inputs, positions and labels, and the loss."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .._checks import check_choice, refuse

REDUCERS = ("sum", "mean", "deepspeed")


def shard_sequence(x, plan, dim=1):
    """Return the tokens of this rank: a view.

    Parameters
    ----------
    x : Tensor
        The whole sequence, the same on all ranks of ``plan.group``.
    plan : UlyssesPlan
    dim : int
        The dimension of the tokens.

    Examples
    --------
    >>> tokens, labels = (shard_sequence(x, plan) for x in (tokens, shift_labels(tokens)))
    """
    lengths = plan.shares(x.shape[dim])
    return x.narrow(dim, sum(lengths[: plan.rank]), lengths[plan.rank])


def position_ids(plan, total=None, *, cu_seqlens=None, device=None):
    """Return the positions ``[s]`` of this rank's tokens in the sequence, int64.

    Parameters
    ----------
    plan : UlyssesPlan
    total : int, optional
        All tokens; needed without ``plan.seq_lens``.
    cu_seqlens : Tensor, optional
        ``[documents + 1]``, where documents of a packed stream begin, and its end: positions are
        those in the document then. Documents may lie on several ranks.
    device : device, optional
        Of the result; by default that of `cu_seqlens`, else the CPU.

    Examples
    --------
    >>> cos, sin = rotary(position_ids(plan, total=8192))
    """
    if total is None:
        if plan.seq_lens is None:
            refuse("position_ids", "total", None, "the number of all tokens")
        total = sum(plan.seq_lens)
    if cu_seqlens is None:
        return shard_sequence(torch.arange(total, device=device), plan, 0)
    _check_documents("position_ids", cu_seqlens, total)
    device = cu_seqlens.device if device is None else device
    positions = shard_sequence(torch.arange(total, device=cu_seqlens.device), plan, 0)
    document = torch.searchsorted(cu_seqlens, positions.to(cu_seqlens.dtype), right=True) - 1
    return (positions - cu_seqlens[document]).to(device)


def shift_labels(tokens, *, ignore_index=-100, cu_seqlens=None, dim=-1):
    """Return for each token the next one, to be predicted: before the sequence is shared out.

    A rank cannot do it alone: the label of its last token is the first token of the next rank.

    Parameters
    ----------
    tokens : Tensor
        The whole sequence.
    ignore_index : int
        The label of the last token.
    cu_seqlens : Tensor, optional
        ``[documents + 1]``: the last token of each document has no label.
    dim : int
        The dimension of the tokens.

    Examples
    --------
    >>> largebatch.sequence.shift_labels(torch.tensor([5, 6, 7]))
    tensor([   6,    7, -100])
    """
    labels = tokens.roll(-1, dim)
    total = tokens.shape[dim]
    if cu_seqlens is not None:
        _check_documents("shift_labels", cu_seqlens, total)
        ends = cu_seqlens[1:][cu_seqlens[1:] > cu_seqlens[:-1]].long() - 1  # of those not empty
    else:
        ends = torch.tensor([total - 1] if total else [], dtype=torch.int64)
    return labels.index_fill(dim, ends.to(labels.device), ignore_index)


def sequence_parallel_loss(
    logits, labels, plan, *, reducer, group=None, ignore_index=-100, loss_fn=None
):
    r"""Return the loss of this rank, whose gradients the reducer makes those of the mean loss.

    .. math:: \ell_r = \frac{f}{N} \sum_{t \in \text{rank } r} \text{loss}_t

    with N the tokens that have labels on all ranks of `group`, data parallel times sequence
    parallel (one all-reduce of one number), and f what the reducer of gradients divides by:

    ========= ==================================================================== =============
    `reducer` gradients of parameters are                                          f
    ========= ==================================================================== =============
    sum       summed over all ranks of `group`                                     1
    mean      averaged over all of them: DDP and FSDP over all ranks, or the       ranks
              flattened mesh of both dimensions
    deepspeed summed over the ranks of a sequence, averaged over data parallel     ranks / P
              ones: DeepSpeed ZeRO
    ========= ==================================================================== =============

    Every rank has gradients of its own tokens only, also of parameters that all have: none is the
    gradient of the loss before they are added up. Adam, LAMB and Lion do not care about a constant
    factor, so that a wrong one shows in no curve of the loss: it shows in gradient norms, in
    clipping, and with SGD.

    Parameters
    ----------
    logits : Tensor
        ``[..., V]``, of this rank's tokens.
    labels : Tensor
        ``[...]``, of :func:`shift_labels`, then :func:`shard_sequence`.
    plan : UlyssesPlan
    reducer : {"sum", "mean", "deepspeed"}
    group : ProcessGroup, optional
        All data parallel times sequence parallel ranks; by default all ranks there are.
    ignore_index : int
        Label of tokens that do not count.
    loss_fn : callable, optional
        ``loss_fn(logits, labels)`` returns the sum of the losses of tokens, for a fused one: by
        default cross entropy in fp32 (fp64 for fp64).

    Returns
    -------
    Tensor
        0-dim, to call ``backward()`` on. For the mean loss itself, sum it over `group` and divide
        by f.

    Examples
    --------
    >>> loss = sequence_parallel_loss(model(tokens), labels, plan, reducer="mean")  # under DDP
    """
    op = "sequence_parallel_loss"
    check_choice(op, "reducer", reducer, REDUCERS)
    if labels.shape != logits.shape[: labels.dim()]:
        refuse(op, "labels", list(labels.shape), f"a label for each of logits {list(logits.shape)}")
    group = dist.group.WORLD if group is None else group
    ranks = dist.get_world_size(group)
    if ranks % plan.world:
        refuse(op, "group", f"{ranks} ranks", f"a multiple of the {plan.world} of the plan")
    factor = {"sum": 1, "mean": ranks, "deepspeed": ranks // plan.world}[reducer]
    count = (labels != ignore_index).sum()
    collectives = torch.ops._c10d_functional
    count = collectives.wait_tensor(collectives.all_reduce(count, "sum", group.group_name))
    if loss_fn is None:
        real = logits if logits.dtype == torch.float64 else logits.float()
        total = F.cross_entropy(
            real.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="sum"
        )
    else:
        total = loss_fn(logits, labels)
    return total * factor / count.clamp(min=1)


def _check_documents(op, cu_seqlens, total):
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        refuse(op, "cu_seqlens", list(cu_seqlens.shape), "[documents + 1]")
    if (cu_seqlens[0], cu_seqlens[-1]) != (0, total) or (cu_seqlens.diff() < 0).any():
        refuse(op, "cu_seqlens", cu_seqlens.tolist(), f"from 0 up to the {total} tokens, ascending")
