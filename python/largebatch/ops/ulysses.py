# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Packing and unpacking of what Ulysses sequence parallelism sends: each the adjoint of the other.

What lies where on the wire is decided here and in ``csrc/ulysses/ulysses_wire.h``; who gets which
heads is the business of :mod:`largebatch.sequence`.
"""

import operator

import torch

from .. import _C
from ._library import as_tensors, define, library

# The orders of tokens, batch and heads in memory: dimensions of [tokens, batch, heads, dim].
LAYOUTS = {"sbhd": (0, 1, 2, 3), "bshd": (1, 0, 2, 3), "bhsd": (1, 2, 0, 3)}

# What an element is moved as. The kernels add up the first four, and move bytes of the rest, of
# which DLPack does not know all in every version of torch.
_REALS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def ulysses_pack(tensors, counts, replicas=None):
    r"""Pack tensors whose heads are shared out among ranks into the buffers that are sent.

    A message is one block for each rank after the other, each ``[tokens, batch, heads]``: heads of
    tensor 0, then of tensor 1, ... The heads of tensor i, each counted ``replicas[i]`` times, are
    given to rank 0, 1, ... in order (those of a rank to message 0, 1, ...). What all ranks send one
    rank is then, end to end, ``[all tokens, batch, its heads]``. The exchange is that of Jacobs et
    al. 2023, "DeepSpeed Ulysses", arXiv 2309.14509, section 3.1; the order on the wire is our own.

    Parameters
    ----------
    tensors : list of arrays
        ``[tokens, batch, heads, dim]``: the same tokens and batch, dtype and device, heads and dim
        as you like. Any dtype, any strides; they are copied first where that of the last dimension
        is not 1.
    counts : list
        ``[messages][ranks][tensors]`` ints: how many heads there are in each block.
    replicas : list of int, optional
        How many copies of each head are sent; 1 for all by default. (A kv head that several ranks
        attend with.)

    Returns
    -------
    list of Tensor
        The messages, flat. Differentiable any number of times: :func:`ulysses_unpack` is the
        adjoint.

    Raises
    ------
    TypeError, ValueError
        One line that names the argument and the tensor.

    Notes
    -----
    Reads and writes each byte of the messages once, whatever the layout: one launch for up to 200
    blocks, a block counted once for each tensor. No host synchronisation. The same bits always.

    Examples
    --------
    >>> q, kv = torch.arange(4.0).view(1, 1, 4, 1), torch.tensor([[[[7.0]]]])
    >>> largebatch.ops.ulysses_pack([q, kv], [[[2, 1], [2, 1]]], [1, 2])  # two ranks share one kv
    [tensor([0., 1., 7., 2., 3., 7.])]
    """
    op = "ulysses_pack"
    (tensors,) = as_tensors(op, tensors=tensors)
    messages, counts = _flat(op, counts)
    if not tensors:
        raise ValueError(f"{op}: tensors is empty, expected one or more.")
    replicas = [1] * len(tensors) if replicas is None else _ints(op, "replicas", replicas)
    return torch.ops.largebatch.ulysses_pack(tensors, messages, counts, replicas)


def ulysses_unpack(messages, tokens, batch, head_dims, counts, replicas=None, layout="sbhd"):
    r"""Unpack messages into tensors; copies of a head are added up.

    The adjoint of :func:`ulysses_pack`, and its inverse where there is one copy of each head.

    Parameters
    ----------
    messages : list of arrays
        Flat, as :func:`ulysses_pack` returns them. Any dtype; to add up copies fp32, fp16, bf16 or
        fp64.
    tokens, batch : int
    head_dims : list of int
        The last dimension of each tensor.
    counts, replicas
        As of :func:`ulysses_pack`.
    layout : str
        How the tensors lie in memory: ``"sbhd"``, ``"bshd"`` or ``"bhsd"`` (s: tokens).

    Returns
    -------
    list of Tensor
        ``[tokens, batch, heads, dim]``. Differentiable any number of times.

    Raises
    ------
    TypeError, ValueError
        One line that names the argument and the tensor.

    Notes
    -----
    Sums are in fp32 (fp64 for fp64), in ascending order of ranks, and rounded once: the same bits
    on every run. One launch for up to 200 blocks, and one for each tensor with copies.

    Examples
    --------
    >>> counts, wire = [[[2, 1], [2, 1]]], torch.tensor([0.0, 1.0, 7.0, 2.0, 3.0, 7.0])
    >>> q, kv = largebatch.ops.ulysses_unpack([wire], 1, 1, [1, 1], counts, [1, 2])
    >>> q.flatten(), kv.flatten()
    (tensor([0., 1., 2., 3.]), tensor([14.]))
    """
    op = "ulysses_unpack"
    (messages,) = as_tensors(op, messages=messages)
    expected, counts = _flat(op, counts)
    if len(messages) != expected:
        raise ValueError(f"{op}: counts: is of {expected} messages, expected {len(messages)}.")
    head_dims = _ints(op, "head_dims", head_dims)
    replicas = [1] * len(head_dims) if replicas is None else _ints(op, "replicas", replicas)
    _ints(op, "tokens and batch", [tokens, batch])
    return torch.ops.largebatch.ulysses_unpack(
        messages, tokens, batch, head_dims, counts, replicas, layout
    )


def layout_of(x):
    """Return the layout in which memory like that of a tensor is written."""
    tokens, batch, heads, _ = x.stride()
    if x.shape[2] > 1 and heads > tokens:
        return "bhsd"
    return "bshd" if x.shape[1] > 1 and batch > tokens else "sbhd"


def _ints(op, argument, values):
    fit = isinstance(values, list | tuple)
    if not fit or not all(isinstance(value, int | torch.SymInt) for value in values):
        raise TypeError(f"{op}: {argument}: got {values}, expected a list of ints.")
    return list(values)


def _flat(op, counts):
    """Return (messages, [messages, ranks, tensors] as one list)."""
    try:
        rows = [row for message in counts for row in message]
        flat = [operator.index(count) for row in rows for count in row]
        even = len({len(message) for message in counts}) == 1 == len({len(row) for row in rows})
    except TypeError:
        even = False
    if not even:
        raise ValueError(f"{op}: counts: got {counts}, expected [messages][ranks][tensors] ints.")
    return len(counts), flat


def _sizes(tokens, batch, head_dims, messages, counts):
    """Return the number of elements of each message."""
    tensors = len(head_dims)
    length = len(counts) // messages
    sizes = []
    for k in range(messages):
        mine = counts[k * length : (k + 1) * length]
        width = sum(count * head_dims[at % tensors] for at, count in enumerate(mine))
        sizes.append(tokens * batch * width)
    return sizes


def _moved(tensors):
    """Return tensors as their bits, rows in one piece."""
    found = []
    for x in tensors:
        x = x.detach()
        if x.dim() > 0 and x.shape[-1] > 1 and x.stride(-1) != 1:
            x = x.contiguous()
        if x.dtype == torch.complex128:
            x = torch.view_as_real(x).flatten(-2)
        found.append(x if x.dtype in _REALS else x.view(_BITS[x.element_size()]))
    return found


def _check_ranks(op, tensors, messages, counts, replicas):
    """Refuse what sizes cannot be computed of; the kernel checks the rest."""
    for i, x in enumerate(tensors):
        if x.dim() != 4:
            raise ValueError(
                f"{op}: tensors[{i}] has shape {list(x.shape)}, expected 4 dimensions: "
                "[tokens, batch, heads, dim]."
            )
    if not tensors or messages < 1 or len(replicas) != len(tensors) or min(replicas) < 1:
        raise ValueError(
            f"{op}: replicas: got {replicas}, expected a positive int for each of "
            f"{len(tensors)} tensors, one or more."
        )
    if not counts or len(counts) % (messages * len(tensors)):
        raise ValueError(
            f"{op}: counts has {len(counts)} numbers, expected a multiple of "
            f"{messages * len(tensors)}: [messages, ranks, tensors]."
        )


def _check_dtype(op, argument, tensors):
    """Refuse several dtypes here: the kernel sees bits, and those of two may be alike."""
    for i, x in enumerate(tensors):
        if x.dtype != tensors[0].dtype:
            raise TypeError(
                f"{op}: {argument}[{i}] has dtype {x.dtype}, expected {tensors[0].dtype} like "
                f"{argument}[0]."
            )


def _empty_messages(op, tensors, messages, counts, replicas):
    _check_ranks(op, tensors, messages, counts, replicas)
    _check_dtype(op, "tensors", tensors)
    tokens, batch = tensors[0].shape[:2]
    head_dims = [x.shape[3] for x in tensors]
    return [tensors[0].new_empty(n) for n in _sizes(tokens, batch, head_dims, messages, counts)]


def _ulysses_pack(tensors, messages, counts, replicas):
    found = _empty_messages("ulysses_pack", tensors, messages, counts, replicas)
    _C.ulysses_pack(_moved(tensors), _moved(found), counts, replicas)
    return found


def _ulysses_pack_fake(tensors, messages, counts, replicas):
    return _empty_messages("ulysses_pack", tensors, messages, counts, replicas)


def _keep_shapes(ctx, inputs, output):
    tensors, _, ctx.counts, ctx.replicas = inputs
    ctx.tokens, ctx.batch = tensors[0].shape[:2]
    ctx.head_dims = [x.shape[3] for x in tensors]
    ctx.layout = layout_of(tensors[0])
    ctx.like = [(m.shape, m.dtype, m.device) for m in output]


def _given(grads, like):
    """Return gradients, zeros in place of those that there are none of."""
    return [
        torch.zeros(shape, dtype=dtype, device=device) if grad is None else grad
        for grad, (shape, dtype, device) in zip(grads, like, strict=True)
    ]


def _ulysses_pack_backward(ctx, grads):
    tensors = torch.ops.largebatch.ulysses_unpack(
        _given(grads, ctx.like),
        ctx.tokens,
        ctx.batch,
        ctx.head_dims,
        ctx.counts,
        ctx.replicas,
        ctx.layout,
    )
    return tensors, None, None, None


def _empty_tensors(messages, tokens, batch, head_dims, counts, replicas, layout):
    op = "ulysses_unpack"
    if layout not in LAYOUTS:
        raise ValueError(f"{op}: layout: got {layout!r}, expected one of {', '.join(LAYOUTS)}.")
    for name, sizes in (("tokens", [tokens]), ("batch", [batch]), ("head_dims", head_dims)):
        if any(size < 0 for size in sizes):
            raise ValueError(f"{op}: {name}: got {sizes}, expected 0 or more.")
    order = LAYOUTS[layout]
    tensors = []
    for i, dim in enumerate(head_dims):
        heads = sum(counts[i :: len(head_dims)]) // max(replicas[i], 1) if i < len(replicas) else 0
        shape = (tokens, batch, heads, dim)
        tensor = messages[0].new_empty([shape[d] for d in order])
        tensors.append(tensor.permute([order.index(d) for d in range(4)]))
    _check_ranks(op, tensors, len(messages), counts, replicas)
    _check_dtype(op, "messages", messages)
    return tensors


def _ulysses_unpack(messages, *shape):
    tensors = _empty_tensors(messages, *shape)
    *_, counts, replicas, _ = shape
    for i, x in enumerate(tensors):
        if replicas[i] > 1 and x.dtype not in _REALS:
            raise TypeError(
                f"ulysses_unpack: tensors[{i}] has dtype {x.dtype}, expected float32, float16, "
                f"bfloat16 or float64, to add up {replicas[i]} copies of each head."
            )
    _C.ulysses_unpack(_moved(messages), _moved(tensors), counts, replicas)
    return tensors


def _keep_counts(ctx, inputs, output):
    messages, *_, ctx.counts, ctx.replicas, _ = inputs
    ctx.messages = len(messages)
    ctx.like = [(x.shape, x.dtype, x.device) for x in output]


def _ulysses_unpack_backward(ctx, grads):
    grads = _given(grads, ctx.like)
    messages = torch.ops.largebatch.ulysses_pack(grads, ctx.messages, ctx.counts, ctx.replicas)
    return messages, None, None, None, None, None, None


define(
    "ulysses_pack(Tensor[] tensors, int messages, int[] counts, int[] replicas) -> Tensor[]",
    _ulysses_pack,
    _ulysses_pack_fake,
)
torch.library.register_autograd(
    "largebatch::ulysses_pack", _ulysses_pack_backward, setup_context=_keep_shapes, lib=library
)
define(
    "ulysses_unpack(Tensor[] messages, SymInt tokens, SymInt batch, SymInt[] head_dims, "
    "int[] counts, int[] replicas, str layout) -> Tensor[]",
    _ulysses_unpack,
    _empty_tensors,
)
torch.library.register_autograd(
    "largebatch::ulysses_unpack", _ulysses_unpack_backward, setup_context=_keep_counts, lib=library
)
