# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of three processes that run models of transformers; started by test_hugging_face.py."""

import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from largebatch.sequence import position_ids, sequence_parallel_loss, shard_sequence, shift_labels
from largebatch.sequence.hugging_face import register_attention

WORLD, TOKENS, BATCH, VOCABULARY = 3, 12, 2, 64
RAGGED = {2: [4, 8], 3: [3, 4, 5]}


def model_of(q_heads, kv_heads, window=None):
    """Return a small model in float64, with the weights that all ranks have."""
    torch.manual_seed(0)
    configuration, kind = LlamaConfig, LlamaForCausalLM
    options = {}
    if window is not None:
        configuration, kind = MistralConfig, MistralForCausalLM
        options = {"sliding_window": window}
    config = configuration(
        vocab_size=VOCABULARY,
        hidden_size=8 * q_heads,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=q_heads,
        num_key_value_heads=kv_heads,
        head_dim=8,
        initializer_range=0.3,
        **options,
    )
    model = kind(config).double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith(
                "RMSNorm"
            ):  # computes in float32, whatever it is given
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                setattr(module, name, norm.double())
    return model


def whole():
    """Return the tokens and labels of the whole sequence."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (BATCH, TOKENS), generator=generator)
    return tokens, shift_labels(tokens)


def gradients(model, loss):
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def expected(model, attention, **kwargs):
    """Return logits and gradients of one process."""
    model.set_attn_implementation(attention)
    tokens, labels = whole()
    logits = model(tokens, use_cache=False, **kwargs).logits
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return {"logits": logits.detach(), **gradients(model, loss)}


def shared(model, group, *args, **kwargs):
    """Return the logits of this process, the gradients of all of the group, and the plan."""
    plan = register_attention(group, "ulysses", *args)
    model.set_attn_implementation("ulysses")
    tokens, labels = (shard_sequence(x, plan) for x in whole())
    positions = position_ids(plan, TOKENS)[None]
    logits = model(tokens, position_ids=positions, use_cache=False, **kwargs).logits
    loss = sequence_parallel_loss(logits, labels, plan, reducer="sum", group=group)
    grads = gradients(model, loss)
    for grad in grads.values():
        dist.all_reduce(grad, group=group)
    return {"logits": logits.detach(), **grads}, plan


def error(group, heads, *args, window=None, checkpoint=False, **kwargs):
    """Return the largest difference from one process, over the largest number, by name.

    *args : as of register_attention, from `attention` on. **kwargs : of the model.
    """
    one = expected(model_of(*heads, window), args[0] if args else "sdpa", **kwargs)
    model = model_of(*heads, window).train()
    if checkpoint:
        model.gradient_checkpointing_enable()
    found, plan = shared(model, group, *args, **kwargs)
    one["logits"] = shard_sequence(one["logits"], plan)
    assert found.keys() == one.keys()
    return {name: ((found[name] - x).abs().max() / x.abs().max()).item() for name, x in one.items()}


def on_two(group):
    ragged = ("sdpa", RAGGED[2])
    padded = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    padded[1, :, 2:, :2] = False
    return {
        "kv heads divide": error(group, (8, 2)),
        "no groups, in chunks": error(group, (4, 4), *ragged, 2),
        "one kv head": error(group, (4, 1), *ragged),
        "eager": error(group, (8, 2), "eager", RAGGED[2]),
        "sliding window": error(group, (8, 2), *ragged, window=3),
        "sliding window, eager": error(group, (8, 2), "eager", window=3),
        "not causal": error(group, (8, 2), *ragged, is_causal=False),
        "mask of the whole sequence": error(group, (8, 2), *ragged, attention_mask=padded),
        "checkpoints": error(group, (8, 2), *ragged, checkpoint=True),
    }


def on_three():
    return {
        "groups are cut": error(None, (8, 2), "sdpa", RAGGED[3]),
        "groups are cut, eager": error(None, (8, 2), "eager", RAGGED[3]),
        "a rank without heads": error(None, (2, 1)),
    }


def differ():
    """Return how far apart logits are that no test of equality may take for each other."""
    tokens = whole()[0]
    with torch.no_grad():
        causal = model_of(8, 2)(tokens).logits
        other = {
            "not causal": model_of(8, 2)(tokens, is_causal=False).logits,
            "sliding window": model_of(8, 2, 3)(tokens).logits,
            "positions": model_of(8, 2)(tokens, position_ids=torch.arange(TOKENS)[None] % 4).logits,
        }
    return {name: (logits - causal).abs().max().item() for name, logits in other.items()}


# ---- Refusals ------------------------------------------------------------------------------------


def error_of(call):
    """Return the class and text of what a call raises."""
    try:
        call()
    except Exception as raised:
        return type(raised).__name__, str(raised)
    return None


def refused():
    """Return what is refused: with debug on all ranks, so that they can go on."""
    model = model_of(4, 2).eval()
    plan = register_attention(None, debug=True)
    model.set_attn_implementation("ulysses")
    tokens = shard_sequence(whole()[0], plan)
    positions = position_ids(plan, TOKENS)[None]
    here = tokens.shape[1]

    def call(**kwargs):
        return model(tokens, **{"position_ids": positions, "use_cache": False, **kwargs})

    def attend(keys=here, **kwargs):
        """Call what is registered as a layer would."""
        layer, q = model.model.layers[0].self_attn, torch.randn(BATCH, 4, here, 8)
        k = torch.randn(BATCH, 2, keys, 8)
        ALL_ATTENTION_FUNCTIONS["ulysses"](layer, q, k, k, None, scaling=1.0, **kwargs)

    def mask():
        make = ALL_MASK_ATTENTION_FUNCTIONS["ulysses"]
        make(batch_size=1, q_length=1, kv_length=here, allow_is_causal_skip=True)

    packed = torch.arange(here)[None] % 3
    calls = {
        "padding": lambda: call(attention_mask=torch.ones_like(tokens)),
        "local mask": lambda: call(attention_mask=torch.zeros(BATCH, 1, here, here)),
        "positions": lambda: call(position_ids=None),
        "packed": lambda: call(position_ids=packed),
        "use_cache": lambda: call(use_cache=True),
        "generate": lambda: model.generate(tokens, max_new_tokens=2),
        "decode": lambda: attend(keys=here + 1),
        "decode, its mask": mask,
        "bias": lambda: attend(position_bias=torch.zeros(1, 4, here, here)),
        "name": lambda: register_attention(None, "sdpa", "eager"),
        "name eager": lambda: register_attention(None, "eager"),
        "name 5": lambda: register_attention(None, 5),
        "attention": lambda: register_attention(None, attention="fast"),
        "around itself": lambda: register_attention(None, attention="ulysses"),
        "seq_lens": lambda: register_attention(None, seq_lens=[1, 2]),
    }
    return {name: error_of(made) for name, made in calls.items()} | {"nothing": error_of(call)}


def plans():
    """Return the heads that there are plans for, after models with other ones, and once again."""
    plan = register_attention(None)
    attention = ALL_ATTENTION_FUNCTIONS["ulysses"]
    tokens, positions = shard_sequence(whole()[0], plan), position_ids(plan, TOKENS)[None]
    for heads in ((4, 2), (4, 2), (8, 2)):
        model = model_of(*heads)
        model.set_attn_implementation("ulysses")
        model(tokens, position_ids=positions, use_cache=False)
    before = sorted(attention.attends)
    register_attention(None)
    return before, sorted(ALL_ATTENTION_FUNCTIONS["ulysses"].attends)


def seen():
    """Return what an implementation is called with, for heads that come out in all ways."""
    calls = []

    def probe(module, query, key, value, attention_mask, **kwargs):
        names = sorted(name for name, value in kwargs.items() if value is not None)
        layer = module.num_key_value_groups, module.config._attn_implementation, module.layer_idx
        calls.append((list(query.shape), list(key.shape), layer, module.config.vocab_size, names))
        return query.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("probe", probe)
    plan = register_attention(None, attention="probe")
    tokens, positions = shard_sequence(whole()[0], plan), position_ids(plan, TOKENS)[None]
    found = {}
    for heads in ((6, 3), (8, 2), (2, 1)):
        model = model_of(*heads)
        model.set_attn_implementation("ulysses")
        model(tokens, position_ids=positions, use_cache=False, is_causal=True)
        found[heads], calls[:] = calls[:1], []
    return found


def main(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of plans that are slow on purpose
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    group = dist.new_group([0, 1])
    equal = on_two(group) if rank < 2 else {}
    found = {
        "equal": equal | on_three(),
        "differ": differ(),
        "refused": refused(),
        "plans": plans(),
        "seen": seen(),
    }
    dist.barrier()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
