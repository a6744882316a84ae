// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The sum of what all ranks have kept of a part of a tile, on CUDA. The runs of slots of all ranks
// are looked for at once; then rank after rank is added, with the slots of some ranks on their way
// from memory meanwhile. No two slots of a rank are the same element.
#pragma once

#include "core/tile.cuh"
#include "wire/wire.h"
#include "wire/wire_index.h"
#include "wire/wire_rule.h"

namespace lb::cuda {

constexpr int64_t kPart = 4096;  // elements: 32 KiB of fp64, and still six blocks on an H100
constexpr int kParts = int(kTile / kPart);
constexpr int kRanks = kTileThreads / 2;  // whose slots are looked for at once, by two threads each
constexpr int kAhead = 4;                 // ranks whose slots are loaded before any is added

// A slot as it is in the payload.
struct Item {
  uint64_t field;
  float scale;
  uint32_t low, high;  // of its index
};

__device__ __forceinline__ Item load_item(const Record& record, const uint8_t* bytes,
                                          int64_t slot) {
  Item item{};
  const uint8_t* values = bytes + record.values_at;
  switch (record.value) {
    case WireValue::float64:
      item.field = reinterpret_cast<const uint64_t*>(values)[slot];
      break;
    case WireValue::float32:
      item.field = reinterpret_cast<const uint32_t*>(values)[slot];
      break;
    case WireValue::float16:
    case WireValue::bfloat16:
      item.field = reinterpret_cast<const uint16_t*>(values)[slot];
      break;
    case WireValue::int8:
      item.field = values[slot];
      break;
    case WireValue::int4:
      item.field = values[slot / 2];
      break;
    default:
      item.field = values[slot / 4];
  }
  if (is_integer(record.value)) {  // what has indices has less than 2^32 slots: no 64-bit division
    item.scale =
        section<float>(bytes, record.scales_at)[uint32_t(slot) / uint32_t(record.scale_block)];
  }
  if (record.index == WireIndex::abs32) {
    item.low = section<uint32_t>(bytes, record.indices_at)[slot];
  } else if (record.index == WireIndex::blk16) {
    item.low = offsets_of(record, bytes)[slot];
  } else {
    const uint8_t* two = twelve_at(record, bytes, slot);
    item.low = two[0];
    item.high = two[1];
  }
  return item;
}

template <class R>
__device__ __forceinline__ R value_of(const Record& record, const Item& item, int64_t slot) {
  const int width = record.value == WireValue::int4 ? 4 : record.value == WireValue::int2 ? 2 : 8;
  const uint64_t field = is_integer(record.value) ? item.field >> slot * width % 8 : item.field;
  const float step = item.scale / levels_of(record.value).reach;
  R value = 0;
  visit_value(record.value, [&](auto tag) {
    constexpr WireValue kValue = decltype(tag)::value;
    if constexpr (kValue != WireValue::sign) value = decode_field<R, kValue>(field, step);
  });
  return value;
}

// Its place among the elements from `position` on, of which it is one of the next kPart: what the
// payload says of it is enough, modulo 2^32 or the size of its block.
__device__ __forceinline__ uint32_t offset_in_part(const Record& record, const Item& item,
                                                   int64_t slot, int64_t position) {
  const auto from = uint32_t(position);
  if (record.index == WireIndex::abs32) return item.low - from;
  if (record.index == WireIndex::blk16) return (item.low - from) % uint32_t(kIndexBlock);
  const uint32_t block = uint32_t(slot) / uint32_t(record.kept);
  return block * uint32_t(record.block) + twelve_of(item.low, item.high, slot) - from;
}

// Adds the slots of all ranks with indices in [position, position + n) to sums of these elements,
// in shared memory, which the threads have just filled.
template <class R>
__device__ __forceinline__ void add_slots(const WireReduce& reduce, const Record& record,
                                          int64_t position, int64_t n, R* sums) {
  __shared__ int64_t bounds[2 * kRanks];
  const R share = R(1 / double(reduce.world));
  const auto thread = int(threadIdx.x);
  for (int64_t first = 0; first < reduce.world; first += kRanks) {
    const int64_t rest = reduce.world - first;
    const int ranks = rest < kRanks ? int(rest) : kRanks;
    const auto bytes = [&](int rank) { return record_from(reduce, record, first + rank); };
    if (thread < 2 * ranks) {
      bounds[thread] =
          slots_below(record, bytes(thread / 2), thread % 2 == 0 ? position : position + n);
    }
    __syncthreads();
    for (int rank = 0; rank < ranks; rank += kAhead) {
      Item items[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (rank + a >= ranks) break;
        const int64_t slot = bounds[2 * (rank + a)] + thread;
        if (slot < bounds[2 * (rank + a) + 1]) items[a] = load_item(record, bytes(rank + a), slot);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (rank + a >= ranks) break;
        const int64_t end = bounds[2 * (rank + a) + 1];
        for (int64_t slot = bounds[2 * (rank + a)] + thread; slot < end;) {
          sums[offset_in_part(record, items[a], slot, position)] +=
              value_of<R>(record, items[a], slot) * share;
          slot += kTileThreads;
          if (slot < end) items[a] = load_item(record, bytes(rank + a), slot);
        }
        __syncthreads();  // the next rank may add to what another thread has added to
      }
    }
  }
}

}  // namespace lb::cuda
