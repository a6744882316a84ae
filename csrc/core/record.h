// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// A record: what is kept of one or more tensors, and how it lies in a payload. What selects
// (topk) and what packs (wire) both go by it.
//
// The tensors of a record, one after the other, are one space of `numel` elements; `slots` of them
// are kept. Everything about a record is known before there is data, so that payloads have the same
// size on every rank.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/plan.h"

namespace lb {

enum class Select : uint8_t { dense, topk, block, threshold, random, strided };
enum class WireValue : uint8_t { float32, float16, bfloat16, float64, int8, int4, int2, sign };
enum class WireIndex : uint8_t { none, abs32, blk16, blk12 };

constexpr int64_t kIndexBlock = 65536;  // elements that share a count in blk16
constexpr int64_t kWireHeader = 64;     // bytes
constexpr int64_t kWireAlign = 16;

struct Record {
  Select select;
  WireValue value;
  WireIndex index;
  bool nearest;  // rounding of the integer values; else stochastic
  int64_t numel;
  int64_t slots;        // kept; the most there can be for a threshold
  int64_t block, kept;  // block: `kept` of every `block` elements
  double tau;           // threshold
  int64_t scale_block;  // slots that share a scale in the integer values
  uint64_t seed, id;    // what keys its random numbers

  // Among the others.
  int32_t first_row, num_rows;
  int32_t first_tile, num_tiles;
  int64_t first_element;  // elements of all records before; Row::first_element counts the same way
  int64_t first_slot;     // slots of all records before
  int64_t first_chunk;    // and chunks of slots

  // How it is selected from: blocks one by one, a small tensor as one of them; or all at once, by a
  // histogram and a list of candidates.
  int64_t first_block, num_blocks;  // num_blocks 0: all at once
  int64_t first_candidate, capacity;
  int32_t histogram;

  // Where it lies: `offset` in the payload, the others from there on.
  int64_t offset, bytes;
  int64_t scales_at, values_at, indices_at;

  LB_HD bool dense() const { return select == Select::dense; }
  // Random indices are those of every rank and in any order.
  LB_HD bool drawn() const { return select == Select::random || select == Select::strided; }
};

// What one block keeps, and where it puts it.
struct RecordBlock {
  int64_t start, numel, kept, first_slot;  // of the record
};
LB_HD RecordBlock block_of(const Record& r, int64_t b) {
  const int64_t start = b * r.block, rest = r.numel - start;
  const int64_t numel = rest < r.block ? rest : r.block;
  return {start, numel, (r.kept * numel + r.block - 1) / r.block, b * r.kept};
}

// The record of a number that counts over all of them: `first(record)` is its first one.
template <class First>
LB_HD int32_t record_of(const Record* records, int32_t count, int64_t number, First first) {
  int32_t low = 0,
          high = count;  // the last one whose first number is not above: empty ones skipped
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (first(records[middle]) <= number) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

struct Place {  // of an element of a record
  int32_t row;
  int64_t element;
};
LB_HD Place place_of(const Record& record, const Row* rows, int64_t position) {
  int32_t low = record.first_row, high = low + record.num_rows;
  const int64_t at = record.first_element + position;
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (rows[middle].first_element <= at) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return {low, at - rows[low].first_element};
}

// The position of an element of a tensor in its record.
LB_HD int64_t position_of(const Record& record, const Row& row, int64_t element) {
  return row.first_element - record.first_element + element;
}

// Entry::data by role. Entry::grad is the gradient; arrays of a role may be absent.
enum RecordRole {
  kKey,       // [numel] R: what is selected from; of any type where nothing is accumulated
  kError,     // [numel] R: e; DGC's accumulated v
  kShift,     // [numel] R: h
  kMomentum,  // [numel] R: v of an EMA; DGC's m
  kSum,       // [numel] R: where decoded values are added
  kOut,       // [numel]: what becomes of the sum, in the type of the gradient
};

// ---- The layout --------------------------------------------------------------------------------

constexpr bool is_integer(WireValue value) {
  return value == WireValue::int8 || value == WireValue::int4 || value == WireValue::int2;
}

constexpr int64_t value_bits(WireValue value) {
  switch (value) {
    case WireValue::float64:
      return 64;
    case WireValue::float32:
      return 32;
    case WireValue::float16:
    case WireValue::bfloat16:
      return 16;
    case WireValue::int8:
      return 8;
    case WireValue::int4:
      return 4;
    case WireValue::int2:
      return 2;
    case WireValue::sign:
      return 1;
  }
  return 0;
}

// Slots that are packed together, `scale_block` of them: they share a scale, and no byte with
// others.
constexpr int64_t num_chunks(const Record& r) {
  return (r.slots + r.scale_block - 1) / r.scale_block;
}

struct RecordChunk {
  int32_t record;
  int64_t number;        // in the record
  int64_t first, count;  // slots
};
LB_HD RecordChunk chunk_at(const Record* records, int32_t num_records, int64_t chunk) {
  const int32_t index =
      record_of(records, num_records, chunk, [](const Record& r) { return r.first_chunk; });
  const Record& record = records[index];
  const int64_t number = chunk - record.first_chunk, first = number * record.scale_block;
  const int64_t rest = record.slots - first;
  return {index, number, first, rest < record.scale_block ? rest : record.scale_block};
}

constexpr int64_t aligned(int64_t bytes) {
  return (bytes + kWireAlign - 1) / kWireAlign * kWireAlign;
}

constexpr int64_t scale_bytes(const Record& r) {
  return 4 * (is_integer(r.value) ? num_chunks(r) : r.value == WireValue::sign ? 1 : 0);
}
constexpr int64_t value_bytes(const Record& r) {
  if (r.value == WireValue::sign) return (r.slots + 31) / 32 * 4;  // whole words
  return (r.slots * value_bits(r.value) + 7) / 8;
}
constexpr int64_t index_bytes(const Record& r) {
  switch (r.index) {
    case WireIndex::abs32:
      return 4 * r.slots;
    case WireIndex::blk16:
      return 4 * ((r.numel + kIndexBlock - 1) / kIndexBlock) + 2 * r.slots;
    case WireIndex::blk12: {
      const int64_t whole = r.numel / r.block, rest = r.numel % r.block;
      const int64_t last = (r.kept * rest + r.block - 1) / r.block;
      return whole * (r.kept / 2 * 3) + (last + 1) / 2 * 3;
    }
    case WireIndex::none:
      break;
  }
  return 0;
}

// Fills in where the parts of a record lie, from its beginning on.
inline void lay_out(Record& r) {
  r.scales_at = kWireHeader;
  r.values_at = r.scales_at + aligned(scale_bytes(r));
  r.indices_at = r.values_at + aligned(value_bytes(r));
  r.bytes = r.indices_at + aligned(index_bytes(r));
}

}  // namespace lb
