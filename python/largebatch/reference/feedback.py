# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""What compressors select and what becomes of the rest, in plain PyTorch.

Every rank compresses what it has to say of its gradient :math:`g`, keeps what the others did not
learn, and all ranks take the same mean of what they decode. :math:`\Delta = C(\text{key})` is the
decoded value, 0 where nothing was sent; e, h and v are a rank's own and 0 at first.

=========  =======================================  ================================================
method     before the exchange                      after it
=========  =======================================  ================================================
none       key = g
feedback   e = decay e + g, key = e                 e = e - :math:`\Delta`
ef21       key = g - h                              h = h + :math:`\Delta`
econtrol   r = g - h, key = eta e + r, e = e + r    e = e - :math:`\Delta`, h = h + :math:`\Delta`
dgc        m = mu m + g, v = v + m, key = v         v = v - :math:`\Delta`; m = 0 where sent
           nesterov: m = mu (m + g), v = v + m + g
=========  =======================================  ================================================

feedback: Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847. ef21: Richtarik, Sokolov,
Fatkhullin 2021, arXiv 2106.05203. econtrol: Gao, Islamov, Stich 2024, arXiv 2311.05645. dgc: Lin
et al. 2018, arXiv 1712.01887; its v is held where the others hold e, and a tensor that is sent
whole sends m, or m + g, instead of v.

With `beta` an average v = (1 - beta) v + beta g takes the place of g (EF21-SGDM: Fatkhullin,
Tyurin, Richtarik 2023, arXiv 2305.15155). Where g, the key or any new state is not finite, the
state and the key become what they would be without the gradient: in ef21 and econtrol as if g = h,
else as if g = 0, and an average stays as it is.

Arithmetic is that of R: float64 for gradients of float64, else float32. Each operation is rounded,
in the order written; a kernel that follows gives the same bits.
"""

import torch

_INTEGER_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def real_dtype(dtype):
    """Return R, the dtype in which numbers of a dtype are computed with."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- Selection -----------------------------------------------------------------------------------


def magnitude_bits(x):
    """Return the bits of numbers without their sign, which are ordered as magnitudes are.

    Infinities are above finite numbers, NaN above infinities.

    Examples
    --------
    >>> magnitude_bits(torch.tensor([-0.0, 1.0])).tolist()
    [0, 1065353216]
    """
    bits = 8 * x.element_size()
    return x.view(_INTEGER_OF[x.element_size()]).long() & (1 << bits - 1) - 1


def select(x, k):
    """Return the indices of the k largest elements of every row, ascending.

    Larger is what has the larger :func:`magnitude_bits`; of equal ones, the lower index.

    Parameters
    ----------
    x : Tensor
        ``[..., n]`` of any floating dtype.
    k : int
        All of them if above n.

    Returns
    -------
    Tensor
        ``[..., min(k, n)]`` int64.

    Examples
    --------
    >>> select(torch.tensor([1.0, -3.0, 2.0, -2.0]), 2)
    tensor([1, 2])
    """
    order = torch.argsort(-magnitude_bits(x), dim=-1, stable=True)
    return order[..., :k].sort(dim=-1).values


def select_blocks(x, kept, block):
    """Return the indices of the `kept` largest of every `block` elements, ascending.

    Of a last block of fewer elements, its share of `kept`, rounded up.

    Examples
    --------
    >>> select_blocks(torch.tensor([1.0, -3.0, 2.0, 4.0, 0.0]), 1, 2)
    tensor([1, 3, 4])
    """
    whole, rest = divmod(x.numel(), block)
    rows = x[: whole * block].view(whole, block)
    first = select(rows, kept) + block * torch.arange(whole).unsqueeze(1)
    last = select(x[whole * block :], -(-kept * rest // block)) + whole * block
    return torch.cat([first.reshape(-1), last])


def select_from(x, tau, slots):
    """Return the first elements not below a threshold, and how many there are in all.

    The threshold is rounded to the dtype of `x`; elements that are not finite are above it.

    Examples
    --------
    >>> select_from(torch.tensor([1.0, -3.0, 2.0]), 2.0, 3)  # 3 for the slot that is left empty
    (tensor([1, 2, 3]), 2)
    """
    threshold = torch.tensor([tau], dtype=real_dtype(x.dtype)).to(x.dtype)
    found = torch.nonzero(magnitude_bits(x) >= magnitude_bits(threshold)).squeeze(1)
    indices = torch.full((slots,), x.numel())
    count = min(found.numel(), slots)
    indices[:count] = found[:count]
    return indices, found.numel()


# ---- Error feedback ------------------------------------------------------------------------------


def accumulate(
    method,
    grad,
    error=None,
    shift=None,
    momentum=None,
    *,
    eta=0.0,
    beta=None,
    decay=1.0,
    mu=0.0,
    nesterov=False,
    inv_scale=None,
    dense=False,
):
    """Take a gradient in: the left column of the table at the top of this file.

    Parameters
    ----------
    method : "none", "feedback", "ef21", "econtrol" or "dgc"
    grad : Tensor
        Of any floating dtype.
    error, shift, momentum : Tensor, optional
        e (v of dgc), h, and v of the average (m of dgc), in R, written in place. h is only read.
    eta, decay, mu : float
    beta : float, optional
        Weight of the new gradient in the average.
    nesterov : bool
    inv_scale : Tensor, optional
        ``[1]`` float32, by which the gradient is multiplied.
    dense : bool
        The tensor is sent whole.

    Returns
    -------
    key : Tensor
        What is compressed, in R.
    guarded : Tensor
        Where the gradient was left out, bool.

    Examples
    --------
    >>> e, h = torch.tensor([2.0]), torch.tensor([1.0])
    >>> accumulate("econtrol", torch.tensor([4.0]), e, h, eta=0.5)
    (tensor([4.]), tensor([False]))
    >>> e
    tensor([5.])
    """
    dtype = real_dtype(grad.dtype)

    def real(number):
        return torch.tensor(number, dtype=dtype)

    g = grad.to(dtype)
    if inv_scale is not None:
        g = g * inv_scale.to(dtype)
    m, e, h = momentum, error, shift
    if beta is not None:
        g = m = real(1 - beta) * momentum + real(beta) * g

    # What is without the gradient ends in _0.
    key, key_0, e_0, m_0 = g, torch.zeros_like(g), error, momentum
    if method == "feedback":
        key_0 = e_0 = real(decay) * error
        key = e = e_0 + g
    elif method == "ef21":
        key = g - h
    elif method == "econtrol":
        r = g - h
        key_0 = real(eta) * error
        key, e = key_0 + r, error + r
    elif method == "dgc":
        m_0 = real(mu) * momentum
        m = real(mu) * (momentum + g) if nesterov else m_0 + g
        if dense:
            key, key_0 = m + g if nesterov else m, m_0
        else:
            key = e = (error + m) + g if nesterov else error + m
            key_0 = e_0 = error + m_0

    finite = torch.isfinite(grad) & torch.isfinite(key)
    for new in (e, m):
        if new is not None:
            finite &= torch.isfinite(new)
    for state, new, new_0 in ((error, e, e_0), (momentum, m, m_0)):
        if state is not None:
            state.copy_(torch.where(finite, new, new_0))
    return torch.where(finite, key, key_0), ~finite


def fix_up(method, decoded, indices, error=None, shift=None, momentum=None, *, masking=True):
    """Take out what was sent: the right column of the table at the top of this file.

    Parameters
    ----------
    method : str
    decoded : Tensor
        ``[k]`` R.
    indices : Tensor or None
        ``[k]`` int64, distinct. None: the tensor is sent whole; dgc has no residual then.
    error, shift, momentum : Tensor, optional
        1-D, written in place.
    masking : bool
        dgc forgets the momentum of what was sent.

    Examples
    --------
    >>> e = torch.tensor([1.0, 2.0])
    >>> fix_up("feedback", torch.tensor([1.5]), torch.tensor([1]), e)
    >>> e
    tensor([1.0000, 0.5000])
    """
    if method == "dgc" and indices is None:
        return
    if indices is None:
        indices = torch.arange(decoded.numel())
    if method in ("feedback", "econtrol", "dgc"):
        error[indices] = error[indices] - decoded
    if method in ("ef21", "econtrol"):
        shift[indices] = shift[indices] + decoded
    if method == "dgc" and masking:
        momentum[indices] = 0
