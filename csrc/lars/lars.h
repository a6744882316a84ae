// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// LARS on many tensors. The rule is in lars_rule.h.
//
// First phase (norms): reads weights and gradient; writes the sums of squares of each tensor.
// Second phase (apply): reads weights, gradient, momentum and sums; writes weights, momentum, the
// 16-bit copy, and advances `step`.
// Bytes moved an element of fp32: 8 (norms) + 20 (apply) = 28; 20 without momentum.
//
// Gradients are only read. Nothing is allocated. If inputs.found_inf is not 0, nothing but
// `control` is written. Sums are taken in a fixed order in fp64: the same bits on every run, for
// any number of threads and, on the CPU, for any instruction set; a call of both phases gives the
// bits of two calls. No alignment is required beyond that of the element type.
#pragma once

#include "core/workspace.h"
#include "lars/lars_rule.h"

namespace lb {

// Entry::data by role.
enum LarsRole {
  kLarsWeights,   // [numel] fp32, fp16, bf16 or fp64; fp32 when there is a copy
  kLarsMomentum,  // [numel] fp32, or fp64 with fp64 weights; absent without momentum
  kLarsCopy,      // [numel] fp16 or bf16, or absent: the weights rounded to nearest even
};

struct LarsCall {
  const Plan& plan;
  Workspace<LarsGroup, LarsScalars> workspace;
  StepInputs inputs;
  double* sums;  // [num_tensors, 2] sums of squares of weights and of the unscaled gradient, in
                 // the caller's order
  Phases phases;
};

namespace cpu {
void lars_step(const LarsCall& call);
}
namespace cuda {
void lars_step(const LarsCall& call, void* stream);
}

// The decision to skip: one formula for both backends.
LB_HD void lars_decide(const StepInputs& inputs, Control& control) {
  control.grad_norm = 0;
  control.skip = inputs.found_inf != nullptr && *inputs.found_inf != 0;
  control.nonfinite = 0;
}

// Scalars of one tensor; the second phase makes the step.
LB_HD LarsScalars lars_prepare(const LarsGroup& group, const StepInputs& inputs, const Control& c,
                               float* step) {
  const bool first_step = *step == 0;
  if (!c.skip) *step += 1;
  return lars_scalars(group, first_step, grad_scale_of(inputs));
}

}  // namespace lb
