// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Lion and Lion-K on many tensors. The rule is in lion_rule.h, that of norms and groups in
// lion_groups.h.
//
// One pass: reads and writes weights and momentum, reads the gradient, writes the 16-bit copy,
// advances `step`. Bytes moved an element: 20 of fp32; 8.1 of bf16 weights and gradients with an
// int8 momentum. Groups that fit a tile are reduced on the way. Larger ones, whole tensors mostly,
// take a pass before that one, which reads momentum and gradient: 28.
//
// Gradients are only read. Nothing is allocated. If inputs.found_inf is not 0, nothing but
// `control` is written. Random bits are a function of the element, sums over a group are fp64 in a
// fixed order: the same bits on every run, for any number of threads and, on the CPU, for any
// instruction set. Without sums the same bits on every backend. No alignment is required beyond
// that of the element type.
#pragma once

#include "core/rounding.h"
#include "lion/lion_groups.h"

namespace lb {

// Entry::data by role.
enum LionRole {
  kLionWeights,  // [numel] fp32, fp16, bf16 or fp64; fp32 when there is a copy
  kLionExpAvg,   // [numel] m: fp32, bf16 or int8; fp64 with fp64 weights
  kLionScale,    // [ceil(numel / 128)] fp32 with an int8 m, else absent
  kLionCopy,     // [numel] fp16 or bf16, or absent: the weights rounded to nearest even
};

// Entry::variant. Plain is Lion itself with nothing rounded stochastically and m in the type of the
// arithmetic: no branches in its loop. Grouped: its kappa looks at groups of elements, all of
// which a tile has; parted: some tiles have parts of them.
enum LionVariant : int32_t { kLionPlain, kLionGeneral, kLionGrouped, kLionParted };

// Control::nonfinite counts elements of c that are not finite, up to this: no more are added to it
// from here on, so that it never comes round to 0.
constexpr int32_t kLionMaxNonfinite = 1 << 30;

struct LionNothing {};  // scalars are derived where they are used, not kept

struct LionCall {
  const Plan& plan;
  Workspace<LionGroup, LionNothing> workspace;
  StepInputs inputs;
};

// Whether something of a tensor is rounded stochastically.
LB_HD bool lion_draws(const Row& row, const LionScalars& scalars) {
  return scalars.stochastic &&
         (row.dtypes[kLionWeights] == DType::bfloat16 ||
          row.dtypes[kLionExpAvg] == DType::bfloat16 || row.dtypes[kLionExpAvg] == DType::int8);
}

// Whether the groups of a tensor need a pass of their own.
LB_HD bool lion_in_parts(LionKappa kappa, const Cut& cut) {
  return cut.parts > 1 || (kappa == LionKappa::l2_inf && cut.num_tiles() > 1);
}

namespace cpu {
void lion_step(const LionCall& call);
}
namespace cuda {
void lion_step(const LionCall& call, void* stream);
}

// Finished stats of the groups first, first + stride, .. of a row from their parts.
LB_HD void lion_merge_groups(const Row& row, const LionGroup& group, const double* partials,
                             double* sums, int64_t first, int64_t stride) {
  const Cut& cut = row.cut;
  const LionReduction reduction = lion_reduction(group.kappa, group.relative);
  for (int64_t g = first; g < cut.groups; g += stride) {
    const double* of_group = partials + 2 * (row.first_part + g * cut.parts);
    LionStat stat = lion_nothing(reduction);
    for (int64_t part = 0; part < cut.parts; ++part) {
      const LionStat other{of_group[2 * part], of_group[2 * part + 1]};
      stat = part == 0 ? other : lion_merge(group.kappa, group.parameter, reduction, stat, other);
    }
    sums[2 * (row.first_group + g)] = stat.a;
    sums[2 * (row.first_group + g) + 1] = stat.b;
  }
}

// Where groups compete, the largest stays what it is and the others become 0.
LB_HD void lion_choose_group(const Row& row, double* sums) {
  double* of_row = sums + 2 * row.first_group;
  int64_t best = 0;
  for (int64_t g = 1; g < row.cut.groups; ++g) {
    if (detail::is_larger(of_row[2 * g] + (of_row[2 * g] - of_row[2 * g]),
                          of_row[2 * best] + (of_row[2 * best] - of_row[2 * best]))) {
      best = g;
    }
  }
  for (int64_t g = 0; g < row.cut.groups; ++g) of_row[2 * g] = g == best ? of_row[2 * g] : 0;
}

// From the stats of the groups first, first + stride, .. to what their elements need.
LB_HD void lion_finish_groups(const Row& row, const LionGroup& group, double* sums, int64_t first,
                              int64_t stride, int64_t end) {
  const Cut& cut = row.cut;
  const double scale = lion_scale(group.kappa, group.parameter, group.rms, row.numel, cut.groups);
  for (int64_t g = first; g < end; g += stride) {
    double* stat = sums + 2 * (row.first_group + g);
    const LionStat finished = lion_finish(group.kappa, group.parameter, scale,
                                          row.numel / cut.groups, {stat[0], stat[1]});
    stat[0] = finished.a;
    stat[1] = finished.b;
  }
}

// The decision to skip: one formula for both backends.
LB_HD bool lion_skips(const StepInputs& inputs) {
  return inputs.found_inf != nullptr && *inputs.found_inf != 0;
}

}  // namespace lb
