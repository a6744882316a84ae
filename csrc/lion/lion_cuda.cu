// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Lion on CUDA: one launch for all tensors of the same types.
//
//   launch           reads                    writes            B / element of fp32
//   upload           -                        groups, gradient addresses; only what has changed
//   lion_step        p, g, m, step            p, m, step        20
//
// Every block derives the scalars of its tensor; the last one to be done advances the steps, which
// all have read by then, and publishes what was counted.
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

template <class W, class G>
__device__ __forceinline__ int32_t general_tile(const Row& row, const G* g,
                                                const LionScalars& scalars, const Tile& tile) {
  using R = real_t<W>;
  W* p = row.role<W>(kLionWeights);
  const LionRule<R> rule(scalars);
  const bool random = scalars.stochastic && (row.dtypes[kLionWeights] == DType::bfloat16 ||
                                             row.dtypes[kLionExpAvg] == DType::bfloat16 ||
                                             row.dtypes[kLionExpAvg] == DType::int8);
  int32_t nonfinite = 0;
  // As for_quads, but whole warps go round together.
  for (int64_t first = int64_t(threadIdx.x) / 32 * kInt8Block; first < tile.numel;
       first += kTileThreads * kQuad) {
    const int64_t offset = first + int64_t(threadIdx.x % 32) * kQuad, i = tile.start + offset;
    const int64_t rest = tile.numel - offset;
    const int count = rest <= 0 ? 0 : rest < kQuad ? int(rest) : kQuad;
    R weight[kQuad], momentum[kQuad], u[kQuad];
    real_t<G> grad[kQuad];
    load_quad(p + i, count, weight);
    load_quad(g + i, count, grad);
    load_momentum(row, i, count, momentum);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const R gradient = rule.gradient(R(grad[k]));
      u[k] = rule.direction(gradient, momentum[k]);
      momentum[k] = rule.momentum(gradient, momentum[k]);
      if (k < count && is_nonfinite(u[k])) ++nonfinite;
    }
    visit_kappa<R>(scalars.kappa, scalars.parameter, [&](auto subgradient) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) weight[k] = rule.weights(weight[k], subgradient(u[k]));
    });
    uint32_t words[kQuad] = {};
    if (random) random_words(scalars.random, i / kQuad, words);
    store_momentum(row, i, count, momentum, random, words);
    if constexpr (std::is_same_v<W, BFloat16>) {
      for (int k = 0; k < count; ++k) {
        p[i + k] = random ? round_to_bfloat16(weight[k], weight_bits(words[k]))
                          : from_real<BFloat16>(weight[k]);
      }
    } else {
      store_quad(p + i, count, weight);
    }
    store_copy(row, kLionCopy, i, count, weight);
  }
  return nonfinite;
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
    __shared__ LionScalars scalars;  // by one thread: fp64 is slow on small GPUs
    const Tile tile = tile_at(ws.table(), first_tile + int32_t(blockIdx.x));
    const Row& row = ws.rows[tile.row];
    if (threadIdx.x == 0) {
      scalars =
          lion_scalars(ws.groups[row.group], row.id, int64_t(*row.step), grad_scale_of(inputs));
    }
    __syncthreads();
    const G* g = static_cast<const G*>(ws.grads[tile.row]);
    const int32_t nonfinite = Variant == kLionPlain ? plain_tile<W>(row, g, scalars, tile)
                                                    : general_tile<W>(row, g, scalars, tile);
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
             row.variant == kLionPlain ? lion_step_kernel<W, G, kLionPlain>
                                       : lion_step_kernel<W, G, kLionGeneral>,
             grid, stream, ws, call.inputs, segment.first_tile, num_blocks);
    });
  }
}

}  // namespace lb::cuda
