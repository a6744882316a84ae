// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Lion on CUDA: one launch for all tensors of the same types.
//
//   launch           reads                    writes            B / element of fp32
//   upload           -                        groups, gradient addresses; only what has changed
//   lion_reduce      g, m                     parts of groups    8   (only where groups are larger
//   lion_merge       parts of groups          groups             -    than a tile)
//   lion_step        p, g, m, step            p, m, step        20
//
// Every block derives the scalars of its tensor; the last one to be done advances the steps, which
// all have read by then, and publishes what was counted. Where a tile has whole groups its block
// reduces them first: the second time it reads g and m, they come from the cache.
#include "core/launch.cuh"
#include "core/tile.cuh"
#include "core/visit.h"
#include "lion/lion.h"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kInt8Block == 32 * kQuad, "the quads of a warp are a block of codes");

template <class R>
__device__ __forceinline__ void load_momentum(const Row& row, int64_t i, int count, R (&m)[kQuad]) {
  const auto convert = [&](const float (&from)[kQuad]) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) m[k] = R(from[k]);
  };
  float narrow[kQuad] = {};
  switch (row.dtypes[kLionExpAvg]) {
    case DType::int8: {
      if (count > 0) {
        const float scale = row.role<float>(kLionScale)[i / kInt8Block];
        const int8_t* codes = row.role<int8_t>(kLionExpAvg) + i;
        for (int k = 0; k < count; ++k) narrow[k] = decode_int8(codes[k], scale);
      }
      return convert(narrow);
    }
    case DType::bfloat16:
      load_quad(row.role<BFloat16>(kLionExpAvg) + i, count, narrow);
      return convert(narrow);
    default:
      load_quad(row.role<R>(kLionExpAvg) + i, count, m);
  }
}

// The words of the elements from i on; of a group, tiles need not begin with a quad.
__device__ __forceinline__ void load_words(const RandomStream& random, int64_t i,
                                           uint32_t (&words)[kQuad]) {
  random_words(random, i / kQuad, words);
  const int before = int(i % kQuad);
  if (before == 0) return;
  uint32_t next[kQuad];
  random_words(random, i / kQuad + 1, next);
  for (int k = 0; k < kQuad; ++k) {
    words[k] = k + before < kQuad ? words[k + before] : next[k + before - kQuad];
  }
}

// All lanes of a warp come here together: the largest of a block of codes is theirs.
template <class R>
__device__ __forceinline__ void store_momentum(const Row& row, int64_t i, int count,
                                               const R (&m)[kQuad], bool random,
                                               const uint32_t (&words)[kQuad]) {
  switch (row.dtypes[kLionExpAvg]) {
    case DType::int8: {
      float scale = kInt8Floor;
      for (int k = 0; k < count; ++k) {
        const float magnitude = int8_magnitude(float(m[k]));
        scale = magnitude > scale ? magnitude : scale;
      }
      for (int width = 16; width > 0; width /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, scale, width);
        scale = other > scale ? other : scale;
      }
      if (count <= 0) return;
      if (threadIdx.x % 32 == 0) row.role<float>(kLionScale)[i / kInt8Block] = scale;
      int8_t* codes = row.role<int8_t>(kLionExpAvg) + i;
      for (int k = 0; k < count; ++k) {
        const float u = random ? float(int(momentum_bits(words[k]))) * 0x1p-16f : 0.5f;
        codes[k] = encode_int8(float(m[k]), scale, u);
      }
      return;
    }
    case DType::bfloat16: {
      BFloat16* to = row.role<BFloat16>(kLionExpAvg) + i;
      for (int k = 0; k < count; ++k) {
        to[k] = random ? round_to_bfloat16(float(m[k]), momentum_bits(words[k]))
                       : from_real<BFloat16>(float(m[k]));
      }
      return;
    }
    default:
      store_quad(row.role<R>(kLionExpAvg) + i, count, m);
  }
}

template <class W, class G>
__device__ __forceinline__ int32_t plain_tile(const Row& row, const G* g,
                                              const LionScalars& scalars, const Tile& tile) {
  using R = real_t<W>;
  W* p = row.role<W>(kLionWeights);
  R* m = row.role<R>(kLionExpAvg);
  const LionRule<R> rule(scalars);
  int32_t nonfinite = 0;
  for_quads(tile, [&](int64_t i, int count) {
    R weight[kQuad], momentum[kQuad];
    real_t<G> grad[kQuad];
    load_quad(p + i, count, weight);
    load_quad(g + i, count, grad);
    load_quad(m + i, count, momentum);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const R gradient = rule.gradient(R(grad[k]));
      const R c = rule.direction(gradient, momentum[k]);
      weight[k] = rule.weights(weight[k], lion_sign(c));
      momentum[k] = rule.momentum(gradient, momentum[k]);
      if (k < count && is_nonfinite(c)) ++nonfinite;
    }
    store_quad(m + i, count, momentum);
    store_quad(p + i, count, weight);
    store_copy(row, kLionCopy, i, count, weight);
  });
  return nonfinite;
}

// Gradient and c of a quad, and its next momentum. Returns how many of c are not finite.
template <class R, class G>
__device__ __forceinline__ int32_t load_directions(const Row& row, const G* g,
                                                   const LionRule<R>& rule, int64_t i, int count,
                                                   R (&gradient)[kQuad], R (&c)[kQuad],
                                                   R (&momentum)[kQuad]) {
  real_t<G> grad[kQuad];
  load_quad(g + i, count, grad);
  load_momentum(row, i, count, momentum);
  int32_t nonfinite = 0;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    gradient[k] = rule.gradient(R(grad[k]));
    c[k] = rule.direction(gradient[k], momentum[k]);
    momentum[k] = rule.momentum(gradient[k], momentum[k]);
    if (k < count && is_nonfinite(c[k])) ++nonfinite;
  }
  return nonfinite;
}

// Weights, momentum and copy of a quad, rounded as their types need.
template <class W, class R>
__device__ __forceinline__ void store_all(const Row& row, const LionScalars& scalars, int64_t i,
                                          int count, const R (&weight)[kQuad],
                                          const R (&momentum)[kQuad]) {
  const bool random = lion_draws(row, scalars);
  uint32_t words[kQuad] = {};
  if (random) load_words(scalars.random, i, words);
  store_momentum(row, i, count, momentum, random, words);
  W* p = row.role<W>(kLionWeights) + i;
  if constexpr (std::is_same_v<W, BFloat16>) {
    for (int k = 0; k < count; ++k) {
      p[k] = random ? round_to_bfloat16(weight[k], weight_bits(words[k]))
                    : from_real<BFloat16>(weight[k]);
    }
  } else {
    store_quad(p, count, weight);
  }
  store_copy(row, kLionCopy, i, count, weight);
}

template <class W, class G>
__device__ __forceinline__ int32_t general_tile(const Row& row, const G* g,
                                                const LionScalars& scalars, const Tile& tile) {
  using R = real_t<W>;
  W* p = row.role<W>(kLionWeights);
  const LionRule<R> rule(scalars);
  int32_t nonfinite = 0;
  // As for_quads, but whole warps go round together.
  for (int64_t first = int64_t(threadIdx.x) / 32 * kInt8Block; first < tile.numel;
       first += kTileThreads * kQuad) {
    const int64_t offset = first + int64_t(threadIdx.x % 32) * kQuad, i = tile.start + offset;
    const int64_t rest = tile.numel - offset;
    const int count = rest <= 0 ? 0 : rest < kQuad ? int(rest) : kQuad;
    R weight[kQuad], gradient[kQuad], c[kQuad], momentum[kQuad];
    load_quad(p + i, count, weight);
    nonfinite += load_directions(row, g, rule, i, count, gradient, c, momentum);
    visit_kappa<R>(scalars.kappa, scalars.parameter, [&](auto subgradient) {
      const R e = R(scalars.parameter);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) weight[k] = rule.weights(weight[k], subgradient(c[k], e));
    });
    store_all<W>(row, scalars, i, count, weight, momentum);
  }
  return nonfinite;
}

// ---- Groups -----------------------------------------------------------------

// Merges what each thread of a team has; all get the result. A team is a thread, a warp or a block.
template <int Team, class Merge>
__device__ __forceinline__ LionStat merge_team(LionStat x, Merge merge) {
  if constexpr (Team > 1) {
    for (int width = 16; width > 0; width /= 2) {
      const LionStat other{__shfl_down_sync(kAllLanes, x.a, unsigned(width)),
                           __shfl_down_sync(kAllLanes, x.b, unsigned(width))};
      x = merge(x, other);
    }
    x = {__shfl_sync(kAllLanes, x.a, 0), __shfl_sync(kAllLanes, x.b, 0)};
  }
  if constexpr (Team > 32) {
    __shared__ double firsts[Team / 32], seconds[Team / 32];
    if (threadIdx.x % 32 == 0) {
      firsts[threadIdx.x / 32] = x.a;
      seconds[threadIdx.x / 32] = x.b;
    }
    __syncthreads();
    x = {firsts[0], seconds[0]};
    for (int warp = 1; warp < Team / 32; ++warp) x = merge(x, {firsts[warp], seconds[warp]});
    __syncthreads();  // the next merge may write them again
  }
  return x;
}

// The stat of group g of a block, by a team. c(i) is that of an element.
template <int Team, class R, class C>
__device__ __forceinline__ LionStat stat_of(const LionScalars& scalars, const Block& block,
                                            int64_t stride, int64_t g, C c) {
  const int rank = int(threadIdx.x) % Team;
  const auto for_elements = [&](auto body) {
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t start = block.start + r * stride + g * block.width;
      for (int64_t k = rank; k < block.width; k += Team) body(start + k);
    }
  };
  const LionReduction reduction = lion_reduction(scalars.kappa, scalars.relative);
  const auto merge = [&](const LionStat& x, const LionStat& y) {
    return lion_merge(scalars.kappa, scalars.parameter, reduction, x, y);
  };
  const auto add = [](const LionStat& x, const LionStat& y) { return LionStat{x.a + y.a, 0}; };
  const auto maximum = [](const LionStat& x, const LionStat& y) { return x.a < y.a ? y : x; };
  LionStat stat = lion_nothing(reduction);
  if (reduction == LionReduction::sum) {
    visit_term<R>(scalars.kappa,
                  [&](auto term) { for_elements([&](int64_t i) { stat.a += term(c(i)); }); });
    return merge_team<Team>(stat, add);
  }
  if (reduction == LionReduction::largest) {
    for_elements(
        [&](int64_t i) { stat = merge(stat, {detail::magnitude(double(c(i))), double(i)}); });
    return merge_team<Team>(stat, merge);
  }
  visit_peak<R>(scalars.kappa, scalars.parameter, [&](auto height, auto term) {
    for_elements([&](int64_t i) {
      const double h = height(c(i));
      stat.a = h > stat.a ? h : stat.a;
    });
    const double peak = merge_team<Team>(stat, maximum).a;
    stat = {0, 0};
    for_elements([&](int64_t i) { stat.a += term(c(i), peak); });
    stat = {peak, merge_team<Team>(stat, add).a};
  });
  return stat;
}

// c, or what stands in its place.
template <class R>
__device__ __noinline__ R reduced(const LionScalars& scalars, R c, R g) {
  if (scalars.kappa != LionKappa::cautious) return c;
  R u = 0;
  visit_kappa<R>(scalars.base, scalars.parameter,
                 [&](auto subgradient) { u = subgradient(c, R(scalars.parameter)); });
  return lion_cautious(u, g);
}

// stats[g * parts] of the groups of a block, by teams that suit their size. Called, and the type of
// the gradient branched on, or a file of all combinations would take minutes to compile.
template <class R>
__device__ __noinline__ void reduce_block(const Row& row, const void* grad,
                                          const LionScalars& scalars, const Block& block,
                                          int64_t parts, LionStat* stats) {
  const LionRule<R> rule(scalars);
  const auto c = [&](int64_t i) {
    R m[kQuad], g = 0;
    visit(row.grad_dtype, [&](auto type) {
      using G = typename decltype(type)::type;
      g = R(to_real(static_cast<const G*>(grad)[i]));
    });
    load_momentum(row, i, 1, m);
    return reduced(scalars, rule.direction(rule.gradient(g), m[0]), rule.gradient(g));
  };
  const auto by_teams = [&](auto team) {
    constexpr int kTeam = decltype(team)::value;
    for (int64_t k = int(threadIdx.x) / kTeam; k < block.groups; k += kTileThreads / kTeam) {
      const LionStat stat = stat_of<kTeam, R>(scalars, block, row.cut.columns, k, c);
      if (threadIdx.x % kTeam == 0) stats[k * parts] = stat;
    }
  };
  if (block.width < 32) return by_teams(std::integral_constant<int, 1>{});
  if (block.groups >= kTileThreads / 32) return by_teams(std::integral_constant<int, 32>{});
  by_teams(std::integral_constant<int, kTileThreads>{});
}

template <class W, class G>
__device__ __forceinline__ int32_t group_tile(const Row& row, const G* g,
                                              const LionScalars& scalars, const LionGroup& group,
                                              int64_t t, double* sums) {
  using R = real_t<W>;
  const Block block = block_at(row.cut, t);
  auto* stats = reinterpret_cast<LionStat*>(sums) + row.first_group + block.group;
  if (row.variant == kLionGrouped) {
    reduce_block<R>(row, g, scalars, block, 1, stats);
    __syncthreads();
    if (group.kappa == LionKappa::l2_inf) {  // all of the tensor's groups are here
      if (threadIdx.x == 0) lion_choose_group(row, sums);
      __syncthreads();
    }
    lion_finish_groups(row, group, sums, block.group + int(threadIdx.x), kTileThreads,
                       block.group + block.groups);
    __syncthreads();
  }
  const W* p = row.role<W>(kLionWeights);
  const LionRule<R> rule(scalars);
  int32_t nonfinite = 0;
  const int64_t chunks = (block.columns + kInt8Block - 1) / kInt8Block;  // of a row, one a warp
  for (int64_t n = int(threadIdx.x) / 32; n < block.rows * chunks; n += kTileThreads / 32) {
    const int64_t column = n % chunks * kInt8Block + int(threadIdx.x) % 32 * kQuad;
    const int64_t i = block.start + n / chunks * row.cut.columns + column;
    const int64_t rest = block.columns - column;
    const int count = rest <= 0 ? 0 : rest < kQuad ? int(rest) : kQuad;
    R weight[kQuad], gradient[kQuad], c[kQuad], momentum[kQuad];
    load_quad(p + i, count, weight);
    nonfinite += load_directions(row, g, rule, i, count, gradient, c, momentum);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) c[k] = reduced(scalars, c[k], gradient[k]);
    visit_group_kappa<R>(scalars.kappa, scalars.parameter, [&](auto subgradient) {
      for (int k = 0; k < count; ++k) {
        const R u = subgradient(c[k], stats[(column + k) / block.width], i + k);
        weight[k] = rule.weights(weight[k], u);
      }
    });
    store_all<W>(row, scalars, i, count, weight, momentum);
  }
  return nonfinite;
}

// The scalars of a row, by one thread: fp64 is slow on small GPUs.
__device__ __forceinline__ const LionScalars& share_scalars(
    const Workspace<LionGroup, LionNothing>& ws, const StepInputs& inputs, const Row& row) {
  __shared__ LionScalars scalars;
  if (threadIdx.x == 0) {
    scalars = lion_scalars(ws.groups[row.group], row.id, int64_t(*row.step), grad_scale_of(inputs));
  }
  __syncthreads();
  return scalars;
}

template <class R>
__global__ void __launch_bounds__(kTileThreads)
    lion_reduce_kernel(Workspace<LionGroup, LionNothing> ws, StepInputs inputs,
                       int32_t first_tile) {
  if (lion_skips(inputs)) return;
  const int32_t t = first_tile + int32_t(blockIdx.x), r = ws.tile_row[t];
  const Row& row = ws.rows[r];
  const LionScalars& scalars = share_scalars(ws, inputs, row);
  const Block block = block_at(row.cut, t - row.first_tile);
  reduce_block<R>(row, ws.grads[r], scalars, block, row.cut.parts,
                  reinterpret_cast<LionStat*>(ws.partials) + row.first_part +
                      block.group * row.cut.parts + block.part);
}

// One block a row.
__global__ void __launch_bounds__(kTileThreads)
    lion_merge_kernel(Workspace<LionGroup, LionNothing> ws, StepInputs inputs, int32_t first_row) {
  const Row& row = ws.rows[first_row + int32_t(blockIdx.x)];
  if (lion_skips(inputs) || row.numel == 0) return;
  const LionGroup& group = ws.groups[row.group];
  if (row.cut.groups == 1) {
    const LionReduction reduction = lion_reduction(group.kappa, group.relative);
    const auto merge = [&](const LionStat& x, const LionStat& y) {
      return lion_merge(group.kappa, group.parameter, reduction, x, y);
    };
    const auto* parts = reinterpret_cast<const LionStat*>(ws.partials) + row.first_part;
    LionStat stat = lion_nothing(reduction);
    for (int64_t part = int(threadIdx.x); part < row.cut.parts; part += kTileThreads) {
      stat = merge(stat, parts[part]);
    }
    stat = merge_team<kTileThreads>(stat, merge);
    if (threadIdx.x == 0) reinterpret_cast<LionStat*>(ws.sums)[row.first_group] = stat;
  } else {
    lion_merge_groups(row, group, ws.partials, ws.sums, int(threadIdx.x), kTileThreads);
  }
  __syncthreads();
  if (group.kappa == LionKappa::l2_inf && threadIdx.x == 0) lion_choose_group(row, ws.sums);
  __syncthreads();
  lion_finish_groups(row, group, ws.sums, int(threadIdx.x), kTileThreads, row.cut.groups);
}

// Ends a step in its last block. `counted` by this block is in shared memory.
__device__ __forceinline__ void finish_step(const Workspace<LionGroup, LionNothing>& ws, bool skip,
                                            const int32_t& counted, int32_t num_blocks) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    // A number of elements does not depend on the order of additions.
    if (counted > 0 && atomicAdd(&ws.control->counting, 0) < kLionMaxNonfinite) {
      atomicAdd(&ws.control->counting, counted);
    }
    __threadfence();
    last = atomicAdd(&ws.control->arrived, 1) == num_blocks - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  for (int32_t r = int32_t(threadIdx.x); r < ws.num_rows && !skip; r += kTileThreads) {
    *ws.rows[r].step += 1;
  }
  if (threadIdx.x != 0) return;
  ws.control->grad_norm = 0;
  ws.control->skip = skip;
  ws.control->nonfinite = atomicExch(&ws.control->counting, 0);
  atomicExch(&ws.control->arrived, 0);  // theirs are atomic, so is this
}

template <class W, class G, LionVariant Variant>
__global__ void __launch_bounds__(kTileThreads)
    lion_step_kernel(Workspace<LionGroup, LionNothing> ws, StepInputs inputs, int32_t first_tile,
                     int32_t num_blocks) {
  __shared__ int32_t counted;
  if (threadIdx.x == 0) counted = 0;
  const bool skip = lion_skips(inputs);
  if (!skip && ws.num_tiles > 0) {
    const int32_t t = first_tile + int32_t(blockIdx.x), r = ws.tile_row[t];
    const Row& row = ws.rows[r];
    const LionScalars& scalars = share_scalars(ws, inputs, row);
    const G* g = static_cast<const G*>(ws.grads[r]);
    int32_t nonfinite = 0;
    if constexpr (Variant == kLionPlain) {
      nonfinite = plain_tile<W>(row, g, scalars, tile_at(ws.table(), t));
    } else if constexpr (Variant == kLionGeneral) {
      nonfinite = general_tile<W>(row, g, scalars, tile_at(ws.table(), t));
    } else {
      nonfinite = group_tile<W>(row, g, scalars, ws.groups[row.group], t - row.first_tile, ws.sums);
    }
    if (nonfinite > 0) atomicAdd(&counted, nonfinite);
  }
  finish_step(ws, skip, counted, num_blocks);
}

}  // namespace

// -------------------------------------------------------------- launchers

// One block a tile: thousands of tiles for a model that fills the device, and a tile's result does
// not depend on which block takes it. Empty tensors have no tile but a step: one block for them.
void lion_step(const LionCall& call, void* stream) {
  const auto& ws = call.workspace;
  const int32_t num_blocks = ws.num_tiles > 0 ? ws.num_tiles : 1;
  for (const Segment& segment : call.plan.segments()) {
    const Row& row = call.plan.rows()[size_t(segment.first_row)];
    if (row.variant != kLionParted || segment.num_tiles == 0) continue;
    const bool wide = row.dtypes[kLionWeights] == DType::float64;
    launch("lion_reduce_kernel", wide ? lion_reduce_kernel<double> : lion_reduce_kernel<float>,
           {segment.num_tiles, kTileThreads}, stream, ws, call.inputs, segment.first_tile);
    launch("lion_merge_kernel", lion_merge_kernel, {segment.num_rows, kTileThreads}, stream, ws,
           call.inputs, segment.first_row);
  }
  bool launched = false;
  for (const Segment& segment : call.plan.segments()) {
    if (segment.num_tiles == 0 && (ws.num_tiles > 0 || launched)) continue;
    launched = true;
    const Grid grid(segment.num_tiles > 0 ? segment.num_tiles : 1, kTileThreads);
    const Row& row = call.plan.rows()[size_t(segment.first_row)];
    visit_weights_and_grad(row.dtypes[kLionWeights], row.grad_dtype, [&](auto w, auto g) {
      using W = typename decltype(w)::type;
      using G = typename decltype(g)::type;
      launch("lion_step_kernel",
             row.variant == kLionPlain     ? lion_step_kernel<W, G, kLionPlain>
             : row.variant == kLionGeneral ? lion_step_kernel<W, G, kLionGeneral>
                                           : lion_step_kernel<W, G, kLionGrouped>,
             grid, stream, ws, call.inputs, segment.first_tile, num_blocks);
    });
  }
}

}  // namespace lb::cuda
