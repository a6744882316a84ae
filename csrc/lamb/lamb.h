// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// LAMB on many tensors. The rule is in lamb_rule.h.
//
// First phase (moments): reads weights, gradient, exp_avg, exp_avg_sq; writes the moments, advances
// `step`, and writes the sums of squares of weights and update of each tensor. When a group clips
// and inputs.grad_sq_sum is null it begins with a pass over the gradients.
// Second phase (apply): reads weights, moments and sums; writes weights, and their 16-bit copy.
// Bytes moved an element of fp32: 4 (norm) + 24 (moments) + 16 (apply) = 44.
//
// Gradients are only read. Nothing is allocated. If the step is to be skipped (inputs.found_inf, or
// a gradient norm that is not finite under a loss scaler), nothing but `control` is written.
// Sums are taken in a fixed order in fp64: the same bits on every run, for any number of threads
// and, on the CPU, for any instruction set; a call of both phases gives the bits of two calls.
// No alignment is required beyond that of the element type.
#pragma once

#include "core/workspace.h"
#include "lamb/lamb_rule.h"

namespace lb {

// Entry::data by role.
enum LambRole {
  kLambWeights,   // [numel] fp32, fp16, bf16 or fp64; fp32 when there is a copy
  kLambExpAvg,    // [numel] fp32, or fp64 with fp64 weights
  kLambExpAvgSq,  // [numel] as exp_avg
  kLambCopy,      // [numel] fp16 or bf16, or absent: the weights rounded to nearest even
};

struct LambCall {
  const Plan& plan;
  Workspace<LambGroup, LambScalars> workspace;
  StepInputs inputs;
  bool clip;     // some group clips: the global gradient norm is needed
  double* sums;  // [num_tensors, 2] sums of squares of weights and of update, in caller's order
  Phases phases;
};

namespace cpu {
void lamb_step(const LambCall& call);
}
namespace cuda {
void lamb_step(const LambCall& call, void* stream);
}

// Global gradient norm and the decision to skip: one formula for both backends.
LB_HD void lamb_decide(const StepInputs& inputs, bool clip, double grad_sq_sum, Control& control) {
  const bool scaler = inputs.found_inf != nullptr || inputs.grad_scale != nullptr;
  control.grad_norm = std::sqrt(grad_sq_sum) / grad_scale_of(inputs);
  control.skip = (inputs.found_inf != nullptr && *inputs.found_inf != 0) ||
                 (scaler && clip && is_nonfinite(grad_sq_sum));
  control.nonfinite = 0;
}

// Scalars of one tensor; the first phase makes the step that the second one belongs to.
LB_HD LambScalars lamb_prepare(const LambGroup& group, const StepInputs& inputs, const Control& c,
                               bool first_phase, float* step) {
  if (first_phase && !c.skip) *step += 1;
  return lamb_scalars(group, int64_t(*step), c.grad_norm, grad_scale_of(inputs));
}

}  // namespace lb
