// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Adan on many tensors. The rule is in adan_rule.h.
//
// One pass: reads and writes weights, exp_avg, exp_avg_diff, exp_avg_sq and neg_pre_grad, reads the
// gradient, writes the 16-bit copy, advances `step`. When a group clips and inputs.grad_sq_sum is
// null it begins with a pass over the gradients.
// Bytes moved an element of fp32: 44, and 4 for the norm when clipping.
//
// A tensor whose `step` is 0 makes its first step: whatever neg_pre_grad holds is not looked at.
// Gradients are only read. Nothing is allocated. If the step is to be skipped (inputs.found_inf, or
// a gradient norm that is not finite under a loss scaler), nothing but `control` is written.
// Each element is by itself and the norm is summed in a fixed order in fp64: the same bits on every
// run, for any number of threads and, on the CPU, for any instruction set. No alignment is required
// beyond that of the element type.
#pragma once

#include "adan/adan_rule.h"
#include "core/workspace.h"

namespace lb {

// Entry::data by role.
enum AdanRole {
  kAdanWeights,     // [numel] fp32, fp16, bf16 or fp64; fp32 when there is a copy
  kAdanExpAvg,      // [numel] m: fp32, or fp64 with fp64 weights
  kAdanExpAvgDiff,  // [numel] v, as exp_avg
  kAdanExpAvgSq,    // [numel] n, as exp_avg
  kAdanNegPreGrad,  // [numel] -q, as exp_avg
  kAdanCopy,        // [numel] fp16 or bf16, or absent: the weights rounded to nearest even
};

// Control::nonfinite counts elements whose update is not finite, up to this: no more are added to
// it from here on, so that it never comes round to 0.
constexpr int32_t kAdanMaxNonfinite = 1 << 30;

struct AdanCall {
  const Plan& plan;
  Workspace<AdanGroup, AdanScalars> workspace;
  StepInputs inputs;
  bool clip;  // some group clips: the global gradient norm is needed
};

namespace cpu {
void adan_step(const AdanCall& call);
}
namespace cuda {
void adan_step(const AdanCall& call, void* stream);
}

// Global gradient norm and the decision to skip: one formula for both backends.
LB_HD void adan_decide(const StepInputs& inputs, bool clip, double grad_sq_sum, Control& control) {
  const bool scaler = inputs.found_inf != nullptr || inputs.grad_scale != nullptr;
  control.grad_norm = std::sqrt(grad_sq_sum) / grad_scale_of(inputs);
  control.skip = (inputs.found_inf != nullptr && *inputs.found_inf != 0) ||
                 (scaler && clip && is_nonfinite(grad_sq_sum));
  control.nonfinite = 0;
}

// Scalars of one tensor, and its step made.
LB_HD AdanScalars adan_prepare(const AdanGroup& group, const StepInputs& inputs, const Control& c,
                               float* step) {
  const bool first_step = *step == 0;
  if (!c.skip) *step += 1;
  return adan_scalars(group, int64_t(*step), first_step, c.grad_norm, grad_scale_of(inputs));
}

}  // namespace lb
