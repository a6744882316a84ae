// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Lion, and Lion-K with a K that is a sum over elements, on many tensors. The rule is in
// lion_rule.h.
//
// One pass: reads and writes weights and momentum, reads the gradient, writes the 16-bit copy,
// advances `step`. Bytes moved an element: 20 of fp32; 8.1 of bf16 weights and gradients with an
// int8 momentum.
//
// Gradients are only read. Nothing is allocated. If inputs.found_inf is not 0, nothing but
// `control` is written. Each element is by itself, but for the scale of its block of 128 in an int8
// momentum, and random bits are a function of the element: the same bits on every run, for any
// number of threads, and on every backend. No alignment is required beyond that of the element
// type.
#pragma once

#include "core/rounding.h"
#include "lion/lion_rule.h"

namespace lb {

// Entry::data by role.
enum LionRole {
  kLionWeights,  // [numel] fp32, fp16, bf16 or fp64; fp32 when there is a copy
  kLionExpAvg,   // [numel] m: fp32, bf16 or int8; fp64 with fp64 weights
  kLionScale,    // [ceil(numel / 128)] fp32 with an int8 m, else absent
  kLionCopy,     // [numel] fp16 or bf16, or absent: the weights rounded to nearest even
};

// Entry::variant. Plain is Lion itself with nothing rounded stochastically and m in the type of the
// arithmetic: no branches in its loop.
enum LionVariant : int32_t { kLionPlain, kLionGeneral };

// Control::nonfinite counts elements of c that are not finite, up to this: no more are added to it
// from here on, so that it never comes round to 0.
constexpr int32_t kLionMaxNonfinite = 1 << 30;

struct LionNothing {};  // scalars are derived where they are used, not kept

struct LionCall {
  const Plan& plan;
  Workspace<LionGroup, LionNothing> workspace;
  StepInputs inputs;
};

namespace cpu {
void lion_step(const LionCall& call);
}
namespace cuda {
void lion_step(const LionCall& call, void* stream);
}

// The decision to skip: one formula for both backends.
LB_HD bool lion_skips(const StepInputs& inputs) {
  return inputs.found_inf != nullptr && *inputs.found_inf != 0;
}

}  // namespace lb
