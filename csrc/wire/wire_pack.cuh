// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Packing and unpacking on CUDA. A block takes a chunk of slots, a thread four neighbours of them
// at a time: they begin at a whole byte of whatever they are packed as, and at a multiple of four
// times the size of a larger value.
#pragma once

#include "core/draw.h"
#include "core/launch.cuh"
#include "core/tile.cuh"
#include "wire/wire.h"
#include "wire/wire_index.h"
#include "wire/wire_rule.h"

namespace lb::cuda {

template <WireValue kValue>
constexpr int kFieldBits = int(value_bits(kValue));

// Calls body(i, count) for the quads of n slots that are this thread's.
template <class Body>
__device__ __forceinline__ void for_slot_quads(int64_t n, Body body) {
  for_quads({0, 0, n}, body);
}

// ---- Packing -----------------------------------------------------------------------------------

// The largest of all threads.
__device__ __forceinline__ uint32_t block_largest(uint32_t x) {
  __shared__ uint32_t warps[kTileThreads / 32];
  for (int width = 16; width > 0; width /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, x, width);
    x = x < other ? other : x;
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  for (int w = 0; w < kTileThreads / 32; ++w) x = x < warps[w] ? warps[w] : x;
  return x;
}

template <class T, class R>
__device__ __forceinline__ void pack_floats(const R* x, const RecordChunk& chunk, T* to) {
  for_slot_quads(chunk.count, [&](int64_t i, int count) {
    R value[kQuad];
    Quad<T> stored;
    load_quad(x + i, count, value);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) stored.x[k] = to_wire<T>(value[k]);
    T* at = to + chunk.first + i;
    if (count == kQuad) {
      *reinterpret_cast<Quad<T>*>(at) = stored;
    } else {
      for (int k = 0; k < count; ++k) at[k] = stored.x[k];
    }
  });
}

// Eight of them a thread: a byte. Whole words are written.
template <class R>
__device__ __forceinline__ void pack_signs(const R* x, const RecordChunk& chunk, uint8_t* to) {
  const int64_t n = (chunk.count + 31) / 32 * 32;
  for (int64_t i = int64_t(threadIdx.x) * 8; i < n; i += kTileThreads * 8) {
    uint32_t bits = 0;
#pragma unroll
    for (int quad = 0; quad < 8; quad += kQuad) {
      const int64_t rest = chunk.count - i - quad;
      R value[kQuad];
      load_quad(x + i + quad, rest < 0 ? 0 : rest < kQuad ? int(rest) : kQuad, value);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) bits |= value[k] < 0 ? 1u << (quad + k) : 0u;
    }
    to[(chunk.first + i) / 8] = uint8_t(bits);
  }
}

template <class R, WireValue kValue>
__device__ __forceinline__ void pack_levels(const Record& record, const R* x,
                                            const RecordChunk& chunk, const RandomStream& stream,
                                            uint8_t* bytes) {
  constexpr int kBits = kFieldBits<kValue>;
  const WireLevels levels = levels_of(kValue);
  uint32_t most = 0;
  for_slot_quads(chunk.count, [&](int64_t i, int count) {
    R value[kQuad];
    load_quad(x + i, count, value);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const uint32_t size = size_bits(float(value[k]));
      most = most < size ? size : most;
    }
  });
  const float scale = detail::float_of(block_largest(most)), step = scale / levels.reach;
  if (threadIdx.x == 0) section<float>(bytes, record.scales_at)[chunk.number] = scale;
  uint8_t* to = bytes + record.values_at + chunk.first * kBits / 8;
  for_slot_quads(chunk.count, [&](int64_t i, int count) {
    R value[kQuad];
    uint32_t words[kQuad];
    load_quad(x + i, count, value);
    if (!record.nearest) random_words(stream, (chunk.first + i) / kQuad, words);
    uint32_t fields = 0;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const float u = record.nearest ? 0.5f : uniform(words[k]);
      const int code = encode_level(float(value[k]), step, u, levels);
      if (k < count) fields |= (uint32_t(code) & ((1u << kBits) - 1)) << kBits * k;
    }
    uint8_t* at = to + i * kBits / 8;
    if (kBits == 8 && count == kQuad) {
      *reinterpret_cast<uint32_t*>(at) = fields;
    } else if (kBits == 4 && count == kQuad) {
      *reinterpret_cast<uint16_t*>(at) = uint16_t(fields);
    } else {
      for (int b = 0; b * 8 < count * kBits; ++b) at[b] = uint8_t(fields >> 8 * b);
    }
  });
}

__device__ __forceinline__ void pack_indices(const Record& record, const int64_t* indices,
                                             const RecordChunk& chunk, uint8_t* bytes) {
  const int64_t last = chunk.first + chunk.count;
  if (record.index == WireIndex::blk12) {
    const auto offset = [&](int64_t slot) {
      return slot < last ? uint32_t(indices[slot]) & (uint32_t(record.block) - 1) : 0u;
    };
    for (int64_t slot = chunk.first + 2 * int64_t(threadIdx.x); slot < last;
         slot += 2 * kTileThreads) {
      uint8_t* at = bytes + record.indices_at + slot / 2 * 3;
      const uint32_t pair = offset(slot) | offset(slot + 1) << 12;
      for (int b = 0; b < 3; ++b) at[b] = uint8_t(pair >> 8 * b);
    }
    return;
  }
  const bool wide = record.index == WireIndex::abs32;
  const int64_t ends = wide ? 0 : num_index_blocks(record), chunks = num_chunks(record);
  uint32_t* to = section<uint32_t>(bytes, record.indices_at);
  uint16_t* offsets = reinterpret_cast<uint16_t*>(to + ends);
  for (int64_t slot = chunk.first + threadIdx.x; slot < last; slot += kTileThreads) {
    const int64_t index = indices[slot];
    const bool empty = index >= record.numel;
    if (wide) to[slot] = empty ? kEmptySlot : uint32_t(index);
    if (!wide) offsets[slot] = empty ? uint16_t(0) : uint16_t(index % kIndexBlock);
  }
  // The part of the counts of blk16 that goes with the chunk.
  for (int64_t b = ends * chunk.number / chunks + threadIdx.x;
       b < ends * (chunk.number + 1) / chunks; b += kTileThreads) {
    to[b] = count_below_end(record, indices, b);
  }
}

// What of a record is not in its chunks.
__device__ __forceinline__ void pack_rest(const WireWork& work, const WirePack& pack, int32_t r) {
  const Record& record = work.records[r];
  uint8_t* bytes = pack.payload + record.offset;
  const auto thread = int(threadIdx.x);
  if (thread < kHeaderWords) {
    section<uint32_t>(bytes, 0)[thread] =
        header_word(record, pack.step, pack.counts[2 * int64_t(r) + 1], thread);
  }
  if (record.value == WireValue::sign) {
    double size[1] = {0};
    for (int32_t t = thread; t < record.num_tiles; t += kTileThreads) {
      size[0] += pack.partials[2 * (int64_t(record.first_tile) + t)];
    }
    block_sum<kTileThreads>(size);
    if (thread == 0) {
      *section<float>(bytes, record.scales_at) =
          record.numel == 0 ? 0.0f : float(size[0] / double(record.numel));
    }
  }
  for (int part = 0; part < 3; ++part) {
    const int64_t end = padding_at(record, part);
    if (thread < aligned(end) - end) bytes[end + thread] = 0;
  }
  if (record.index == WireIndex::blk16 && record.slots == 0) {
    for (int64_t b = thread; b < num_index_blocks(record); b += kTileThreads) {
      section<uint32_t>(bytes, record.indices_at)[b] = 0;
    }
  }
}

// ---- Unpacking ---------------------------------------------------------------------------------

// What fields of a chunk are decoded with: 0 for floating-point values.
template <WireValue kValue>
__device__ __forceinline__ float step_of(const Record& record, const uint8_t* bytes,
                                         int64_t chunk) {
  if constexpr (is_float(kValue)) return 0;
  const float* scales = section<float>(bytes, record.scales_at);
  return kValue == WireValue::sign ? scales[0] : scales[chunk] / levels_of(kValue).reach;
}

// Four values from `slot` on, a multiple of 4. What is beyond the last one is padding: 16 bytes.
template <WireValue kValue, class R>
__device__ __forceinline__ void decode_quad(const Record& record, const uint8_t* bytes,
                                            int64_t slot, float step, R (&x)[kQuad]) {
  constexpr int kBits = kFieldBits<kValue>;
  if constexpr (is_float(kValue)) {
    using T = stored_t<kValue>;
    const int64_t rest = record.slots - slot;
    const int count = kBits == 64 && rest < kQuad ? int(rest) : kQuad;
    real_t<T> stored[kQuad];
    load_quad(section<T>(bytes, record.values_at) + slot, count, stored);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = R(stored[k]);
  } else {
    const uint8_t* at = bytes + record.values_at + slot * kBits / 8;
    uint32_t fields;
    if constexpr (kBits == 8) {
      fields = *reinterpret_cast<const uint32_t*>(at);
    } else if constexpr (kBits == 4) {
      fields = *reinterpret_cast<const uint16_t*>(at);
    } else {
      fields = uint32_t(*at) >> slot * kBits % 8;
    }
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = decode_field<R, kValue>(fields >> kBits * k, step);
  }
}

// ---------------------------------------------------------------- kernels

namespace {

template <class R>
__global__ void __launch_bounds__(kTileThreads) wire_size_kernel(WireWork work, WirePack pack) {
  const auto t = int32_t(blockIdx.x);
  const Tile tile = tile_at(work.table, t);
  const Row& row = work.table.rows[tile.row];
  if (work.records[row.group].value != WireValue::sign) return;
  double size[1] = {0};
  for_quads(tile, [&](int64_t i, int count) {
    R x[kQuad];
    load_quad(row.role<const R>(kKey) + i, count, x);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) size[0] += double(x[k] < 0 ? -x[k] : x[k]);
  });
  block_sum<kTileThreads>(size);
  if (threadIdx.x == 0) pack.partials[2 * int64_t(t)] = size[0];
}

// Blocks are chunks, then records.
template <class R>
__global__ void __launch_bounds__(kTileThreads) wire_pack_kernel(WireWork work, WirePack pack) {
  const auto block = int64_t(blockIdx.x);
  if (block >= work.num_chunks) return pack_rest(work, pack, int32_t(block - work.num_chunks));
  const RecordChunk chunk = chunk_at(work.records, work.num_records, block);
  const Record& record = work.records[chunk.record];
  uint8_t* bytes = pack.payload + record.offset;
  const R* x = packed_from<R>(work, pack, record) + chunk.first;
  visit_value(record.value, [&](auto tag) {
    constexpr WireValue kValue = decltype(tag)::value;
    if constexpr (kValue == WireValue::sign) {
      pack_signs(x, chunk, bytes + record.values_at);
    } else if constexpr (!is_float(kValue)) {
      const RandomStream stream = rounding_stream(record, pack.step, pack.rank);
      pack_levels<R, kValue>(record, x, chunk, stream, bytes);
    } else {
      pack_floats(x, chunk, section<stored_t<kValue>>(bytes, record.values_at));
    }
  });
  if (record.index == WireIndex::none) return;
  pack_indices(record, pack.indices + record.first_slot, chunk, bytes);
}

template <class R>
__global__ void __launch_bounds__(kTileThreads)
    wire_unpack_kernel(WireWork work, WireUnpack unpack) {
  const RecordChunk chunk = chunk_at(work.records, work.num_records, int64_t(blockIdx.x));
  const Record& record = work.records[chunk.record];
  const uint8_t* bytes = unpack.payload + record.offset;
  R* values = unpacked_to<R>(work, unpack, record) + chunk.first;
  visit_value(record.value, [&](auto tag) {
    constexpr WireValue kValue = decltype(tag)::value;
    const float step = step_of<kValue>(record, bytes, chunk.number);
    for_slot_quads(chunk.count, [&](int64_t i, int count) {
      R x[kQuad];
      decode_quad<kValue>(record, bytes, chunk.first + i, step, x);
      store_quad(values + i, count, x);
    });
  });
  if (unpack.indices == nullptr || (record.dense() && unpack.dense_in_keys)) return;
  int64_t* indices = unpack.indices + record.first_slot;
  const int64_t last = chunk.first + chunk.count;
  if (record.drawn()) {
    const Draw draw(record, header_step(bytes));
    for (int64_t slot = chunk.first + threadIdx.x; slot < last; slot += kTileThreads) {
      indices[slot] = draw(slot);
    }
  } else {
    for (int64_t slot = chunk.first + threadIdx.x; slot < last; slot += kTileThreads) {
      indices[slot] = index_at(record, bytes, slot);
    }
  }
}

}  // namespace

}  // namespace lb::cuda
