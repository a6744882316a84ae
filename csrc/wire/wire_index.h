// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The wire format of indices, and how a slot is found by its index. They ascend, so that where one
// would be is found by halving; which of a tile's elements a rank has kept is a run of its slots.
#pragma once

#include "wire/wire_rule.h"

namespace lb {

// The first of [low, high) that is not `below`, or high: those that are come first.
template <class Below>
LB_HD int64_t first_not(int64_t low, int64_t high, Below below) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (below(middle)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

constexpr uint32_t kEmptySlot = 0xffffffffu;  // in abs32

LB_HD int64_t num_index_blocks(const Record& r) {
  return (r.numel + kIndexBlock - 1) / kIndexBlock;
}
LB_HD const uint32_t* ends_of(const Record& r, const uint8_t* bytes) {
  return section<uint32_t>(bytes, r.indices_at);
}
LB_HD const uint16_t* offsets_of(const Record& r, const uint8_t* bytes) {
  return section<uint16_t>(bytes, r.indices_at + 4 * num_index_blocks(r));
}

// blk16: how many of the ascending indices are below the end of a block.
LB_HD uint32_t count_below_end(const Record& r, const int64_t* indices, int64_t block) {
  const int64_t whole = (block + 1) * kIndexBlock, end = whole < r.numel ? whole : r.numel;
  return uint32_t(first_not(0, r.slots, [&](int64_t i) { return indices[i] < end; }));
}
// And the first block that ends beyond a slot; their number, if the slot is empty.
LB_HD int64_t block_of_slot(const Record& r, const uint32_t* ends, int64_t slot) {
  return first_not(0, num_index_blocks(r), [&](int64_t b) { return int64_t(ends[b]) <= slot; });
}

// blk12: the two bytes that an offset is in, and itself.
LB_HD const uint8_t* twelve_at(const Record& r, const uint8_t* bytes, int64_t slot) {
  return bytes + r.indices_at + slot / 2 * 3 + slot % 2;
}
LB_HD uint32_t twelve_of(uint32_t low, uint32_t high, int64_t slot) {
  return slot % 2 == 0 ? low | (high & 15) << 8 : low >> 4 | high << 4;
}
LB_HD int64_t offset12(const Record& r, const uint8_t* bytes, int64_t slot) {
  const uint8_t* two = twelve_at(r, bytes, slot);
  return twelve_of(two[0], two[1], slot);
}

// The index of a slot in a payload; numel where it is empty.
LB_HD int64_t index_at(const Record& r, const uint8_t* bytes, int64_t slot) {
  switch (r.index) {
    case WireIndex::abs32: {
      const uint32_t index = section<uint32_t>(bytes, r.indices_at)[slot];
      return index == kEmptySlot ? r.numel : int64_t(index);
    }
    case WireIndex::blk16: {
      const int64_t block = block_of_slot(r, ends_of(r, bytes), slot);
      if (block == num_index_blocks(r)) return r.numel;
      return block * kIndexBlock + offsets_of(r, bytes)[slot];
    }
    case WireIndex::blk12:
      return slot / r.kept * r.block + offset12(r, bytes, slot);
    case WireIndex::none:
      break;
  }
  return slot;
}

// How many slots of a payload have an index below `position`, which may be numel.
LB_HD int64_t slots_below(const Record& r, const uint8_t* bytes, int64_t position) {
  switch (r.index) {
    case WireIndex::abs32: {
      const uint32_t* indices = section<uint32_t>(bytes, r.indices_at);
      return first_not(0, r.slots, [&](int64_t s) { return int64_t(indices[s]) < position; });
    }
    case WireIndex::blk16: {
      const int64_t block = position / kIndexBlock, offset = position % kIndexBlock;
      const uint32_t* ends = ends_of(r, bytes);
      const int64_t first = block == 0 ? 0 : int64_t(ends[block - 1]);
      if (offset == 0) return first;
      const uint16_t* offsets = offsets_of(r, bytes);
      return first_not(first, int64_t(ends[block]), [&](int64_t s) { return offsets[s] < offset; });
    }
    case WireIndex::blk12: {
      const int64_t block = position / r.block, offset = position % r.block;
      const int64_t first = block * r.kept, last = first + r.kept;
      if (first >= r.slots) return r.slots;
      if (offset == 0) return first;
      return first_not(first, last < r.slots ? last : r.slots,
                       [&](int64_t s) { return offset12(r, bytes, s) < offset; });
    }
    case WireIndex::none:
      break;
  }
  return position;
}

}  // namespace lb
