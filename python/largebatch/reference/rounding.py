# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Low-precision state, bit for bit: random bits, stochastic rounding to bf16, int8 blocks.

Everything here is integer arithmetic or one float32 operation at a time, so a kernel that follows
it gives the same bits, as those of Lion do. Random bits are a pure function of (seed, tensor, step,
element): nothing is stored, and a run that is resumed draws the numbers it would have drawn.
"""

import torch

BLOCK = 128  # elements per scale
SCALE_FLOOR = 2.0**-100  # blocks of zeros have a scale too, so that nothing is divided by 0
BROKEN = -128  # the code that decodes to NaN

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85


# ---- Random bits ---------------------------------------------------------------------------------


def philox(counter, key):
    """Return the four output words of Philox4x32-10.

    Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (SC11).

    Parameters
    ----------
    counter : sequence of 4 ints or int64 Tensors
        Words in [0, 2^32), least significant first; tensors broadcast.
    key : sequence of 2 ints
        Likewise.

    Returns
    -------
    list of 4 int64 Tensors
        Words in [0, 2^32).

    Examples
    --------
    >>> [f"{word.item():08x}" for word in philox((0, 0, 0, 0), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    a, b, c, d = (torch.as_tensor(word, dtype=torch.int64) for word in counter)
    key0, key1 = key
    for _ in range(10):
        # int64 products wrap, but their 64 bits are those of the unsigned product.
        low, high = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (high >> 32 & _WORD) ^ b ^ key0,
            high & _WORD,
            (low >> 32 & _WORD) ^ d ^ key1,
            low & _WORD,
        )
        key0, key1 = key0 + _KEY_STEPS[0] & _WORD, key1 + _KEY_STEPS[1] & _WORD
    return [a, b, c, d]


def random_bits(numel, step, *, seed, tensor_id, device=None):
    """Return 16 random bits for the weight and 16 for the momentum of every element of a tensor.

    One Philox call serves four elements: with counter (q low, q high, step, tensor_id low) and key
    (seed low, seed high xor tensor_id high), "low" and "high" being the 32-bit halves, word k
    belongs to element 4q + k; its low half rounds the weight, its high half the momentum.

    Parameters
    ----------
    numel : int
        Elements are counted in the order of memory.
    step : int or 0-dim Tensor
        Steps taken before this one: 0 in the first.
    seed, tensor_id : int
        Taken modulo 2^64.
    device : torch.device, optional

    Returns
    -------
    weight_bits, momentum_bits : Tensor
        ``[numel]`` int64 in [0, 2^16).

    Examples
    --------
    >>> weight_bits, momentum_bits = random_bits(1, 0, seed=0, tensor_id=0)
    >>> f"{weight_bits.item():04x}", f"{momentum_bits.item():04x}"
    ('e8d5', '6627')
    """
    quad = torch.arange((numel + 3) // 4, device=device)
    step = torch.as_tensor(step, device=device).to(torch.int64) & _WORD
    counter = quad & _WORD, quad >> 32, step, tensor_id & _WORD
    key = seed & _WORD, (seed >> 32 ^ tensor_id >> 32) & _WORD
    words = torch.stack(philox(counter, key), dim=-1).reshape(-1)[:numel]
    return words & 0xFFFF, words >> 16


def memory_order(x):
    """Return a dense tensor as a vector that shares its memory, in the order of that memory.

    Examples
    --------
    >>> memory_order(torch.tensor([[1, 2], [3, 4]]).T)
    tensor([1, 2, 3, 4])
    """
    return x.as_strided((x.numel(),), (1,))


# ---- bf16 ----------------------------------------------------------------------------------------


def round_bfloat16(x, bits=None):
    """Round float32 to bfloat16: stochastically with random bits, else to nearest, ties to even.

    Stochastic: the 16 bits are added below the last place that is kept, and what is then below it
    is dropped. The value goes to one of its two neighbours, and its mean is x: to the neighbour of
    larger magnitude with probability (distance to the other) / (their distance), in steps of
    2^-16. A value of bfloat16 stays as it is. Above the largest finite bfloat16 that neighbour is
    infinity. Infinities stay; a NaN stays the quiet NaN with the same upper bits.

    Parameters
    ----------
    x : Tensor
        float32, any shape.
    bits : Tensor or None
        int64 in [0, 2^16), shaped as `x`.

    Returns
    -------
    Tensor
        bfloat16, shaped as `x`.

    Examples
    --------
    >>> x = torch.tensor([1.0, 1.0])  # and a quarter of the way up from there: 2^-9
    >>> round_bfloat16(x + 2**-9, torch.tensor([0xBFFF, 0xC000])).tolist()
    [1.0, 1.0078125]
    """
    pattern = x.float().view(torch.int32).to(torch.int64) & _WORD
    if bits is None:
        bits = 0x7FFF + (pattern >> 16 & 1)
    rounded = (pattern + bits) >> 16  # infinity has nothing below the last place: no carry
    is_nan = (pattern & 0x7FFFFFFF) > 0x7F800000
    rounded = torch.where(is_nan, pattern >> 16 | 0x40, rounded)
    return rounded.to(torch.int16).view(torch.bfloat16)


# ---- int8 ----------------------------------------------------------------------------------------


def encode_int8(m, bits=None):
    r"""Quantise a vector in blocks of 128 to signed 8-bit codes and one float32 scale a block.

    .. math:: s = \max(\max_{\text{finite}} |m|,\, 2^{-100}), \qquad
              t = 127\,\frac{|m|}{s/2 + |m|/2}, \qquad
              |\text{code}| = \min(\lfloor t + u \rfloor, 127)

    t is the companding 2x/(1+x) of x = |m|/s, finer towards 0: the smallest magnitude is s/253.
    Not from a paper; the idea of companding is FlashOptim's, whose blocks and formats differ. With
    random bits u is uniform in [0, 1) and the mean of the code is t. (The mean of the decoded
    value is above |m| by up to 0.4%, at the smallest code, because decoding is convex.) Without, u
    = 1/2. A value that is not finite gets the code -128, which decodes to NaN, and does not touch
    the others of its block.

    Parameters
    ----------
    m : Tensor
        ``[n]`` float32.
    bits : Tensor or None
        ``[n]`` int64 in [0, 2^16).

    Returns
    -------
    codes : Tensor
        ``[n]`` int8.
    scales : Tensor
        ``[ceil(n / 128)]`` float32.

    Examples
    --------
    >>> codes, scales = encode_int8(torch.tensor([1.0, -0.5, 0.0]))
    >>> codes.tolist(), scales.tolist()
    ([127, -85, 0], [1.0])
    """
    finite = torch.isfinite(m)
    magnitude = torch.where(finite, m.abs(), 0.0)
    blocks = -(-m.numel() // BLOCK)
    padded = torch.nn.functional.pad(magnitude, (0, blocks * BLOCK - m.numel()))
    scales = padded.view(blocks, BLOCK).amax(dim=1).clamp(min=SCALE_FLOOR)
    half = 0.5 * scales.repeat_interleave(BLOCK)[: m.numel()]
    t = 127 * (magnitude / (half + 0.5 * magnitude))
    u = 0.5 if bits is None else bits.to(torch.float32) / 65536
    code = torch.floor(t + u).clamp(max=127)
    code = torch.where(m < 0, -code, code)
    return torch.where(finite, code, float(BROKEN)).to(torch.int8), scales


def decode_int8(codes, scales):
    r"""Return the float32 values of codes: sign(code) s (|code| / (254 - |code|)).

    Parameters
    ----------
    codes : Tensor
        ``[n]`` int8.
    scales : Tensor
        ``[ceil(n / 128)]`` float32.

    Returns
    -------
    Tensor
        ``[n]`` float32; +0 for code 0, NaN for code -128.

    Examples
    --------
    >>> decode_int8(torch.tensor([127, -127, 0], dtype=torch.int8), torch.tensor([3.0]))
    tensor([ 3., -3.,  0.])
    """
    magnitude = codes.to(torch.float32).abs()
    m = scales.repeat_interleave(BLOCK)[: codes.numel()] * (magnitude / (254 - magnitude))
    m = torch.where(codes < 0, -m, m)
    return torch.where(codes == BROKEN, torch.nan, m)
