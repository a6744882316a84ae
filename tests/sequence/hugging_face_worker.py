# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of the processes that run a model of transformers; started by test_hugging_face.py."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from largebatch.sequence import position_ids, sequence_parallel_loss, shard_sequence, shift_labels
from largebatch.sequence.hugging_face import register_attention

TOKENS, BATCH, VOCABULARY = 12, 2, 64
RAGGED = {2: [4, 8], 3: [3, 4, 5]}


def model_of(q_heads, kv_heads, sliding_window=None):
    """Return a small model in float64, with the weights that all ranks have."""
    torch.manual_seed(0)
    kinds = (LlamaConfig, LlamaForCausalLM), (MistralConfig, MistralForCausalLM)
    config, kind = kinds[sliding_window is not None]
    options = {} if sliding_window is None else {"sliding_window": sliding_window}
    config = config(
        vocab_size=VOCABULARY,
        hidden_size=8 * q_heads,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=q_heads,
        num_key_value_heads=kv_heads,
        head_dim=8,
        attn_implementation="sdpa",
        initializer_range=0.3,
        **options,
    )
    model = kind(config).double()
    # Its own norms compute in float32, whatever they are given.
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                setattr(module, name, norm.double())
    return model


def whole():
    """Return the tokens and labels of the whole sequence."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (BATCH, TOKENS), generator=generator)
    return tokens, shift_labels(tokens)


def results(model, loss, logits):
    """Return logits and gradients, of the sum of the losses of all ranks."""
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {"logits": logits.detach(), **grads}


def expected(model, attention, **kwargs):
    """Return what one process has."""
    model.set_attn_implementation(attention)
    tokens, labels = whole()
    logits = model(tokens, use_cache=False, **kwargs).logits
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return results(model, loss, logits)


def shared(model, attention, seq_lens=None, head_chunks=1, **kwargs):
    """Return what all processes have together, with the logits of this one."""
    plan = register_attention(None, "ulysses", attention, seq_lens, head_chunks)
    model.set_attn_implementation("ulysses")
    tokens, labels = (shard_sequence(x, plan) for x in whole())
    positions = position_ids(plan, TOKENS)[None]
    logits = model(tokens, position_ids=positions, use_cache=False, **kwargs).logits
    loss = sequence_parallel_loss(logits, labels, plan, reducer="sum")
    found = results(model, loss, logits)
    for name, x in found.items():
        if name != "logits":
            dist.all_reduce(x)
    return found, plan


def error(heads, attention="sdpa", seq_lens=None, *, checkpoint=False, window=None, **kwargs):
    """Return the largest difference from one process, over its largest number, by name."""
    chunks = kwargs.pop("head_chunks", 1)
    one = expected(model_of(*heads, window), attention, **kwargs)
    model = model_of(*heads, window)
    if checkpoint:
        model.train()
        model.gradient_checkpointing_enable()
    found, plan = shared(model, attention, seq_lens, chunks, **kwargs)
    one["logits"] = shard_sequence(one["logits"], plan)
    assert found.keys() == one.keys()
    return {name: ((found[name] - x).abs().max() / x.abs().max()).item() for name, x in one.items()}


def equal(world):
    """Return the errors of all settings that this many processes try."""
    ragged = RAGGED[world]
    if world == 2:
        return {
            "kv heads divide": error((8, 2)),
            "no groups, in chunks": error((4, 4), seq_lens=ragged, head_chunks=2),
            "a kv head on both ranks": error((4, 1), seq_lens=ragged),
            "eager": error((8, 2), "eager", ragged),
            "sliding window": error((8, 2), seq_lens=ragged, window=3),
            "not causal": error((8, 2), seq_lens=ragged, is_causal=False),
            "checkpoints": error((8, 2), seq_lens=ragged, checkpoint=True),
        }
    return {
        "groups cut": error((8, 2), seq_lens=ragged),
        "groups cut, eager": error((8, 2), "eager", ragged),
        "a rank without heads": error((2, 1), seq_lens=ragged),
    }


# ---- Refusals ------------------------------------------------------------------------------------


def error_of(call):
    """Return the class and text of what a call raises."""
    try:
        call()
    except Exception as raised:
        return type(raised).__name__, str(raised)
    return None


def refused(world):
    """Return what is refused: on all ranks alike, so that they can go on."""
    model = model_of(4, 2).eval()
    plan = register_attention(None, debug=True)
    model.set_attn_implementation("ulysses")
    tokens = shard_sequence(whole()[0], plan)
    positions = position_ids(plan, TOKENS)[None]
    here = tokens.shape[1]
    ones = torch.ones_like(tokens)

    def call(**kwargs):
        return model(tokens, **{"position_ids": positions, "use_cache": False, **kwargs})

    def decode():
        cache = call(use_cache=True).past_key_values
        model(tokens[:, :1], past_key_values=cache, position_ids=positions[:, :1] + TOKENS)

    def attend(**kwargs):
        """Call what is registered as a layer would."""
        layer, q = model.model.layers[0].self_attn, torch.randn(BATCH, 4, here, 8)
        k = torch.randn(BATCH, 2, here, 8)
        ALL_ATTENTION_FUNCTIONS["ulysses"](layer, q, k, k, None, scaling=1.0, **kwargs)

    calls = {
        "padding": lambda: call(attention_mask=ones),
        "local mask": lambda: call(attention_mask=torch.zeros(BATCH, 1, here, here)),
        "positions forgotten": lambda: call(position_ids=None),
        "packed": lambda: call(position_ids=torch.arange(here)[None] % 3),
        "generate": lambda: model.generate(tokens, max_new_tokens=2, do_sample=False),
        "decode": decode,
        "bias": lambda: attend(position_bias=torch.zeros(1, 4, here, here)),
        "name": lambda: register_attention(None, "sdpa", "eager"),
        "name eager": lambda: register_attention(None, "eager"),
        "name, a number": lambda: register_attention(None, 5),
        "attention": lambda: register_attention(None, attention="fast"),
        "around itself": lambda: register_attention(None, attention="ulysses"),
        "seq_lens": lambda: register_attention(None, seq_lens=[1] * (world + 1)),
    }
    found = {name: error_of(call) for name, call in calls.items()}
    found["nothing"] = error_of(call)
    return found


def replaced():
    """Return how many plans there are, for layers of two models with other heads."""
    register_attention(None, "ulysses")
    attention = ALL_ATTENTION_FUNCTIONS["ulysses"]
    for heads in ((4, 2), (4, 2), (8, 2)):
        model = model_of(*heads)
        model.set_attn_implementation("ulysses")
        positions = position_ids(attention.tokens, TOKENS)[None]
        model(shard_sequence(whole()[0], attention.tokens), position_ids=positions)
    before = sorted(attention.attends)
    register_attention(None, "ulysses")
    return before, sorted(ALL_ATTENTION_FUNCTIONS["ulysses"].attends)


def main(rank, folder):
    world = int(Path(folder).name)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of plans that are slow on purpose
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    found = {"equal": equal(world)}
    if world == 2:
        found |= {"refused": refused(world), "plans": replaced()}
    dist.barrier()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
