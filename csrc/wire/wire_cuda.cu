// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Packing, unpacking and the sum of all ranks on CUDA, for all records of a call.
//
//   launch         does                                          reads and writes
//   wire_size      signs: the sum of magnitudes of a tile        keys
//   wire_pack      chunks of slots; headers                      values, indices; payload
//   wire_unpack    chunks of slots                               payload; values, indices
//   wire_inspect   adds up the headers, and says whether to stop headers
//   wire_sum       sums and outs of a part of a tile             W payloads, tensors
//   wire_drawn     sums of a chunk of slots, drawn               W payloads, slots of the tensors
//   wire_outs      outs of a tile, drawn                         tensors
//
// Bytes moved by wire_sum, of fp32, beside the payloads: 4 an element where sums begin at 0, else
// 8; and those of outs. A part of a tile is in shared memory while the ranks are added to it; what
// is drawn is in no order, and is added in place.
#include "core/visit.h"
#include "wire/wire_pack.cuh"
#include "wire/wire_slots.cuh"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kInspectThreads = 1024;

template <class R>
__device__ __forceinline__ void store_outs(const Row& row, const WireReduce& reduce, bool stop,
                                           int32_t t, int64_t i, int count, R (&x)[kQuad]) {
  const R factor = reduce.scale == nullptr ? R(1) : R(*reduce.scale);
  visit(row.dtypes[kOut], [&](auto type) {
    using T = typename decltype(type)::type;
    real_t<T> out[kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) out[k] = real_t<T>(x[k] * factor);
    // Says that nothing was added, to a loss scaler that looks for what is not finite.
    if (stop && t == 0 && i == 0) out[0] = real_t<T>(detail::float_of(0x7fc00000u));
    store_quad(row.role<T>(kOut) + i, count, out);
  });
}

// Adds all ranks to four sums of a dense record, from element `i` on.
template <WireValue kValue, class R>
__device__ __forceinline__ void add_quad(const WireReduce& reduce, const Record& record, int64_t i,
                                         int64_t chunk, R share, R (&x)[kQuad]) {
#pragma unroll 4
  for (int64_t rank = 0; rank < reduce.world; ++rank) {
    const uint8_t* bytes = record_from(reduce, record, rank);
    R value[kQuad];
    decode_quad<kValue>(record, bytes, i, step_of<kValue>(record, bytes, chunk), value);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] += value[k] * share;
  }
}

__global__ void __launch_bounds__(kInspectThreads)
    wire_inspect_kernel(WireWork work, WireReduce reduce) {
  __shared__ int found[kInspectThreads / 32];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  bool any = false;
  for (int64_t rank = warp; rank < reduce.world; rank += kInspectThreads / 32) {
    int64_t nonfinite = 0;
    for (int32_t r = lane; r < work.num_records; r += 32) {
      nonfinite += header_nonfinite(record_from(reduce, work.records[r], rank));
    }
    for (int width = 16; width > 0; width /= 2) {
      nonfinite += __shfl_xor_sync(0xffffffffu, nonfinite, width);
    }
    if (lane == 0) reduce.nonfinite[rank] = nonfinite;
    any = any || nonfinite > 0;
  }
  if (lane == 0) found[warp] = any;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 0; w < kInspectThreads / 32; ++w) any = any || found[w] != 0;
  *reduce.stop = reduce.skip && any;
}

template <class R>
__global__ void __launch_bounds__(kTileThreads) wire_sum_kernel(WireWork work, WireReduce reduce) {
  alignas(16) __shared__ R shared[kPart];
  const auto t = int32_t(blockIdx.x / kParts);
  Tile part = tile_at(work.table, t);
  const int64_t skipped = int64_t(blockIdx.x) % kParts * kPart, rest = part.numel - skipped;
  if (rest <= 0) return;
  part = {part.row, part.start + skipped, rest < kPart ? rest : kPart};
  const Row& row = work.table.rows[part.row];
  const Record& record = work.records[row.group];
  const bool stop = *reduce.stop != 0;
  R* sums = row.role<R>(kSum);
  const auto load = [&](int64_t i, int count, R(&x)[kQuad]) {
    if (reduce.zero) {
      for (int k = 0; k < kQuad; ++k) x[k] = 0;
    } else {
      load_quad(sums + i, count, x);
    }
  };
  const auto store = [&](int64_t i, int count, R(&x)[kQuad]) {
    if (reduce.zero || (!stop && !record.drawn())) store_quad(sums + i, count, x);
    if (reduce.outs && !record.drawn()) store_outs(row, reduce, stop, t, i, count, x);
  };

  if (record.drawn() && !reduce.zero) return;
  if (stop || record.drawn() || record.dense()) {
    const R share = R(1 / double(reduce.world));
    // Chunks are whole quads, and no more than a tile: 32 bits count them from here.
    const int64_t chunk = part.start / record.scale_block;
    const auto before = uint32_t(part.start % record.scale_block);
    const bool adds = !stop && record.dense();
    for_quads(part, [&](int64_t i, int count) {
      R x[kQuad];
      load(i, count, x);
      const uint32_t chunks = (before + uint32_t(i - part.start)) / uint32_t(record.scale_block);
      if (adds) {
        visit_value(record.value, [&](auto tag) {
          add_quad<decltype(tag)::value>(reduce, record, i, chunk + chunks, share, x);
        });
      }
      store(i, count, x);
    });
    return;
  }

  for_quads(part, [&](int64_t i, int count) {
    R x[kQuad];
    load(i, count, x);
    store_quad(shared + (i - part.start), kQuad, x);
  });
  const int64_t position = position_of(record, row, part.start);
  add_slots(reduce, record, position, part.numel, shared);
  for_quads(part, [&](int64_t i, int count) {
    R x[kQuad];
    load_quad(shared + (i - part.start), kQuad, x);
    store(i, count, x);
  });
}

template <class R>
__global__ void __launch_bounds__(kTileThreads)
    wire_drawn_kernel(WireWork work, WireReduce reduce) {
  const RecordChunk chunk = chunk_at(work.records, work.num_records, int64_t(blockIdx.x));
  const Record& record = work.records[chunk.record];
  if (*reduce.stop != 0 || !record.drawn()) return;
  const Draw draw(record, header_step(record_from(reduce, record, 0)));
  const R share = R(1 / double(reduce.world));
  for_slot_quads(chunk.count, [&](int64_t i, int count) {
    R* at[kQuad];
    R x[kQuad];
    for (int k = 0; k < count; ++k) {
      at[k] = sum_at<R>(work, record, draw(chunk.first + i + k));
      x[k] = *at[k];
    }
    visit_value(record.value, [&](auto tag) {
      add_quad<decltype(tag)::value>(reduce, record, chunk.first + i, chunk.number, share, x);
    });
    for (int k = 0; k < count; ++k) *at[k] = x[k];
  });
}

template <class R>
__global__ void __launch_bounds__(kTileThreads) wire_outs_kernel(WireWork work, WireReduce reduce) {
  const auto t = int32_t(blockIdx.x);
  const Tile tile = tile_at(work.table, t);
  const Row& row = work.table.rows[tile.row];
  if (!work.records[row.group].drawn()) return;
  const bool stop = *reduce.stop != 0;
  for_quads(tile, [&](int64_t i, int count) {
    R x[kQuad];
    load_quad(row.role<const R>(kSum) + i, count, x);
    store_outs(row, reduce, stop, t, i, count, x);
  });
}

}  // namespace

// -------------------------------------------------------------- launchers

// A block a chunk, a record or a tile: no result depends on which block takes it.
void wire_pack(const WireWork& work, const WirePack& pack, void* stream) {
  const int64_t blocks = work.num_chunks + work.num_records, tiles = work.table.num_tiles;
  visit_real(work.real, [&](auto type) {
    using R = typename decltype(type)::type;
    if (work.num_signs > 0) {
      launch("wire_size_kernel", wire_size_kernel<R>, {tiles, kTileThreads}, stream, work, pack);
    }
    launch("wire_pack_kernel", wire_pack_kernel<R>, {blocks, kTileThreads}, stream, work, pack);
  });
}

void wire_unpack(const WireWork& work, const WireUnpack& unpack, void* stream) {
  const int64_t chunks = work.num_chunks;
  visit_real(work.real, [&](auto type) {
    using R = typename decltype(type)::type;
    launch("wire_unpack_kernel", wire_unpack_kernel<R>, {chunks, kTileThreads}, stream, work,
           unpack);
  });
}

void wire_inspect(const WireWork& work, const WireReduce& reduce, void* stream) {
  launch("wire_inspect_kernel", wire_inspect_kernel, {1, kInspectThreads}, stream, work, reduce);
}

void wire_reduce(const WireWork& work, const WireReduce& reduce, void* stream) {
  const int64_t tiles = work.table.num_tiles, chunks = work.num_chunks;
  visit_real(work.real, [&](auto type) {
    using R = typename decltype(type)::type;
    launch("wire_sum_kernel", wire_sum_kernel<R>, {tiles * kParts, kTileThreads}, stream, work,
           reduce);
    if (work.num_drawn == 0) return;
    launch("wire_drawn_kernel", wire_drawn_kernel<R>, {chunks, kTileThreads}, stream, work, reduce);
    if (!reduce.outs) return;
    launch("wire_outs_kernel", wire_outs_kernel<R>, {tiles, kTileThreads}, stream, work, reduce);
  });
}

}  // namespace lb::cuda
