# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Models of Hugging Face transformers over a sequence that ranks share."""

import sys
import weakref
from inspect import signature

import torch
import torch.distributed as dist

from .._checks import refuse
from .attention import UlyssesAttention
from .exchange import checked
from .plan import UlyssesPlan, process_group

_OP = "register_attention"


def register_attention(
    group,
    name="ulysses",
    attention="sdpa",
    seq_lens=None,
    head_chunks=1,
    *,
    debug=None,
    transport="auto",
):
    """Let models of transformers attend with all tokens, of which each rank has its own.

    To be chosen by ``attn_implementation=name`` or ``model.set_attn_implementation(name)``. Jacobs
    et al. 2023, "DeepSpeed Ulysses", arXiv 2309.14509, section 3.1, around an implementation that
    transformers has. Needs transformers 5.4 or later.

    Parameters
    ----------
    group : ProcessGroup or DeviceMesh
        The ranks that share a sequence; None: all ranks.
    name : str
        Registered again it is replaced, as for batches with other `seq_lens`. One for each group:
        what is registered is so for the whole process.
    attention : str
        The implementation that attends with all tokens and the heads of this rank: "sdpa", "eager",
        "flash_attention_2", or another that is registered. "eager" has a mask of the whole
        sequence, ``[B, 1, S, S]``.
    seq_lens, head_chunks, debug, transport
        As of :class:`UlyssesPlan`. Head counts are those of each layer.

    Returns
    -------
    UlyssesPlan
        With the tokens of each rank, for :func:`shard_sequence`, :func:`position_ids` and
        :func:`sequence_parallel_loss`; its heads are those of no model.

    Raises
    ------
    ImportError
        transformers is not installed, or too old.
    TypeError, ValueError, RuntimeError
        One line that names the argument: here, or when the model is called with what is not of the
        whole sequence.

    Notes
    -----
    Positions are those in the whole sequence: pass `position_ids` to the model, as below. Without,
    every rank would count from 0; that is refused, by a look at them that waits for the device once
    in a forward.

    Masks are made for the whole sequence, sliding windows included. Refused are an
    `attention_mask` of this rank's tokens (a causal model needs none for padding at the end, whose
    labels are ignored), packed documents, tensors for each head, and a cache of keys: to generate,
    choose another implementation.

    Attention dropout: seed ranks differently, else all drop the same in their heads.

    Examples
    --------
    >>> plan = largebatch.sequence.register_attention(mesh["sp"])
    >>> model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="ulysses")
    >>> tokens, labels = (shard_sequence(x, plan) for x in (tokens, shift_labels(tokens)))
    >>> positions = position_ids(plan, total=8192, device=tokens.device)[None]
    >>> logits = model(tokens, position_ids=positions, use_cache=False).logits
    >>> loss = sequence_parallel_loss(logits, labels, plan, reducer="mean")
    """
    attentions, masks = _interfaces()
    for argument, value in (("name", name), ("attention", attention)):
        if not isinstance(value, str):
            refuse(_OP, argument, type(value).__name__, "a str", TypeError)
    if name == "eager" or not isinstance(attentions.get(name), _Attention | None):
        refuse(_OP, "name", name, "a name that transformers has no attention by")
    known = {key: value for key, value in attentions.items() if not isinstance(value, _Attention)}
    if attention != "eager" and attention not in known:
        refuse(_OP, "attention", attention, f'"eager" or one of {", ".join(known)}')

    group = process_group(_OP, group)
    options = dict(seq_lens=seq_lens, debug=debug, transport=transport)
    world = dist.get_world_size(group)
    tokens = UlyssesPlan(group, world, world, **options)
    options["head_chunks"] = head_chunks
    attentions.register(name, _Attention(attention, known.get(attention), tokens, options))
    masks.register(name, _Mask(masks.get(attention), tokens))
    return tokens


def _interfaces():
    """Return the attentions and the masks that transformers has."""
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ATTENTIONS
    except ImportError as error:
        raise ImportError(
            f"{_OP}: needs transformers 5.4 or later ({error}). pip install transformers"
        ) from error
    if "q_length" not in signature(MASKS["sdpa"]).parameters:
        version = sys.modules["transformers"].__version__
        raise ImportError(
            f"{_OP}: needs transformers 5.4 or later, got {version}. pip install -U transformers"
        )
    return ATTENTIONS, MASKS


class _Mask:
    """Makes the mask of the whole sequence, where transformers asks for that of this rank's tokens.

    What the mask depends on, its `mask_function`, are positions only, unless it is packed documents
    or something of the model's own: then transformers does not let the mask be left out.
    """

    def __init__(self, make, tokens):
        self.make, self.tokens = make, tokens

    def __call__(
        self,
        *,
        q_length,
        kv_length,
        attention_mask=None,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        **kwargs,
    ):
        if attention_mask is not None:
            _refuse_mask(attention_mask)
        _check_keys(q_length, kv_length)
        if not (allow_is_causal_skip or allow_is_bidirectional_skip):
            raise ValueError(
                f"{_OP}: mask: got one that depends on more than the distance of tokens, as for "
                "packed documents (position_ids that begin again), expected a causal one, a "
                "sliding window, or none."
            )
        if self.make is None:
            return None
        total = sum(self.tokens.lengths(q_length))
        return self.make(
            q_length=total,
            kv_length=total,
            attention_mask=None,
            allow_is_causal_skip=allow_is_causal_skip,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip,
            **kwargs,
        )


class _Attention:
    """What transformers calls to attend; a plan for each number of heads that layers have."""

    def __init__(self, attention, wrapped, tokens, options):
        self.attention, self.wrapped = attention, wrapped
        self.tokens, self.options = tokens, options
        self.attends = {}
        self.seen = None  # the position_ids that were looked at last

    def __call__(self, module, query, key, value, attention_mask=None, **kwargs):
        """Return o ``[B, s, Hq, D]``, for q ``[B, Hq, s, D]``, and no weights."""
        heads = query.shape[1], key.shape[1]
        if heads not in self.attends:
            plan = UlyssesPlan(self.tokens.group, *heads, **self.options)
            self.attends[heads] = UlyssesAttention(self._attend, plan, "bhsd")
        attend = self.attends[heads]
        positions = kwargs.pop("position_ids", None)  # of this rank: nothing for the implementation
        checked(
            _OP, attend.plan, lambda: self._check(query, key, attention_mask, positions, kwargs)
        )
        o = attend(query, key, value, module=module, attention_mask=attention_mask, **kwargs)
        return o.transpose(1, 2), None

    def _attend(self, q, k, v, module, **kwargs):
        layer = _Layer(module, q.shape[1] // k.shape[1], self.attention)
        return (self.wrapped or _eager(module))(layer, q, k, v, **kwargs)[0].transpose(1, 2)

    def _check(self, query, key, attention_mask, positions, kwargs):
        tokens = query.shape[2]
        _check_keys(tokens, key.shape[2])
        lengths = self.tokens.lengths(tokens)
        total = sum(lengths)
        shape = None if attention_mask is None else list(attention_mask.shape)
        if shape is not None and (len(shape) != 4 or shape[1:] != [1, total, total]):
            _refuse_mask(attention_mask)
        if kwargs.get("use_cache"):
            raise ValueError(
                f"{_OP}: use_cache: got True, expected False: keys are exchanged and not kept, and "
                "generate() is not supported."
            )
        for name, x in kwargs.items():
            if isinstance(x, torch.Tensor) and x.dim() > 0:
                raise ValueError(
                    f"{_OP}: {name}: got a tensor {list(x.shape)}, expected none but query, key, "
                    "value and a mask: it may be of this rank's tokens, or of all heads."
                )
        if positions is not None:
            self._check_positions(positions, sum(lengths[: self.tokens.rank]), tokens)
        return f"mask {shape}"

    def _check_positions(self, positions, start, tokens):
        """Refuse positions that are not those in the whole sequence, once in a forward."""
        if torch.compiler.is_compiling() or positions.dim() > 2:  # more: of images
            return
        if self.seen is not None and self.seen() is positions:
            return
        expected = torch.arange(start, start + tokens, device=positions.device)
        if positions.shape[-1] != tokens or not (positions == expected).all():
            raise ValueError(
                f"{_OP}: position_ids: are not {start} to {start + tokens - 1}, those of this "
                "rank's tokens in the whole sequence. Pass position_ids="
                "largebatch.sequence.position_ids(plan, total)[None]."
            )
        self.seen = weakref.ref(positions)


class _Layer:
    """The layer as an implementation sees it, with the groups of heads that this rank has.

    Implementations repeat kv heads by what the layer says; of the model, and not of the exchange.
    """

    def __init__(self, module, groups, attention):
        self._module = module
        if hasattr(module, "num_key_value_groups"):
            self.num_key_value_groups = groups
        if hasattr(module, "config"):
            self.config = _Config(module.config, attention)

    def __getattr__(self, name):
        return getattr(self._module, name)


class _Config:
    """The configuration, with the name of the implementation that attends."""

    def __init__(self, config, attention):
        self._config, self._attn_implementation = config, attention

    def __getattr__(self, name):
        return getattr(self._config, name)


def _eager(module):
    """Return what the file of a model has for "eager", which is registered nowhere."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
        if found is not None:
            return found
    raise ValueError(
        f'{_OP}: attention: "eager" is not to be found for {type(module).__name__}. Choose "sdpa".'
    )


def _check_keys(queries, keys):
    if queries != keys:
        raise ValueError(
            f"{_OP}: key: has {keys} tokens for {queries} of query, expected as many: neither "
            "decoding with a cache nor cross-attention is supported."
        )


def _refuse_mask(attention_mask):
    raise ValueError(
        f"{_OP}: attention_mask: got one of shape {list(attention_mask.shape)}, expected None, or "
        "[B, 1, S, S] of the whole sequence. A causal model needs none for padding at the end; "
        "generate() has one always, and is not supported."
    )
