// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Unpacking a run of slots, and the sum of all ranks in a tile, compiled for each instruction set.
#include "core/lanes.h"
#include "core/visit.h"
#include "wire/wire.h"
#include "wire/wire_index.h"
#include "wire/wire_rule.h"

namespace lb::LB_ISA {

namespace {

constexpr int kPiece = 1024;  // slots whose codes and values stay in the first-level cache
static_assert(kTile % kPiece == 0, "pieces of a tile begin at whole words of signs");

// ---- Unpacking values --------------------------------------------------------------------------

template <class T, class R>
LB_OUTLINE void decode_floats(const T* __restrict from, int64_t n, R* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = R(to_real(from[i]));
}

template <class R>
LB_OUTLINE void decode_signs(const uint32_t* __restrict from, float scale, int64_t n,
                             R* __restrict to) {
  static constexpr SignBits bit;
  const R positive = R(scale), negative = R(-scale);
  const auto word = [&](int64_t first, int count) LB_INLINE {
    const uint32_t bits = from[first / 32];
#pragma omp simd
    for (int j = 0; j < count; ++j) to[first + j] = (bits & bit.of[j]) != 0 ? negative : positive;
  };
  int64_t first = 0;
  for (; first + 32 <= n; first += 32) word(first, 32);
  if (first < n) word(first, int(n - first));
}

// Codes of slots [first, first + n), in `room` for them and some neighbours, or where they lie.
LB_OUTLINE const int8_t* unpack_codes(WireValue value, const uint8_t* __restrict from,
                                      int64_t first, int n, uint32_t* __restrict room) {
  if (value == WireValue::int8) return reinterpret_cast<const int8_t*>(from) + first;
  int8_t* codes = reinterpret_cast<int8_t*>(room);
  if (value == WireValue::int4) {
    const uint8_t* __restrict pairs = from + first / 2;
    for_lanes((int(first % 2) + n + 1) / 2, [&](int64_t i, int) LB_INLINE {
      codes[2 * i] = int8_t(int8_t(pairs[i] << 4) >> 4);
      codes[2 * i + 1] = int8_t(int8_t(pairs[i]) >> 4);
    });
    return codes + first % 2;
  }
  const uint8_t* __restrict fours = from + first / 4;
  for_lanes((int(first % 4) + n + 3) / 4, [&](int64_t i, int) LB_INLINE {
    const uint32_t four = fours[i];
    room[i] = (four | four << 6 | four << 12 | four << 18) & 0x03030303u;
  });
  return codes + first % 4;
}

template <class R>
LB_OUTLINE void decode_levels(const Record& r, const uint8_t* bytes, int64_t first, int64_t n,
                              R* __restrict to) {
  const WireLevels levels = levels_of(r.value);
  const float* scales = section<float>(bytes, r.scales_at);
  uint32_t room[kPiece / 4 + 2];
  for (int64_t done = 0; done < n;) {
    const int64_t slot = first + done, chunk = slot / r.scale_block;
    int64_t count = (chunk + 1) * r.scale_block - slot;  // of the same scale
    count = count < n - done ? count : n - done;
    count = count < kPiece ? count : kPiece;
    const float step = scales[chunk] / levels.reach;
    const int8_t* __restrict codes =
        unpack_codes(r.value, bytes + r.values_at, slot, int(count), room);
    R* __restrict out = to + done;
    for_lanes(count,
              [&](int64_t i, int) LB_INLINE { out[i] = R(decode_level(codes[i], step, levels)); });
    done += count;
  }
}

// Slots [first, first + n); of signs, `first` is a multiple of 32.
template <class R>
LB_OUTLINE void decode(const Record& r, const uint8_t* bytes, int64_t first, int64_t n, R* to) {
  visit_value(r.value, [&](auto tag) LB_INLINE {
    constexpr WireValue value = decltype(tag)::value;
    if constexpr (value == WireValue::sign) {
      decode_signs(section<uint32_t>(bytes, r.values_at) + first / 32,
                   *section<float>(bytes, r.scales_at), n, to);
    } else if constexpr (is_float(value)) {
      decode_floats(section<stored_t<value>>(bytes, r.values_at) + first, n, to);
    } else {
      decode_levels(r, bytes, first, n, to);
    }
  });
}

// ---- Indices -----------------------------------------------------------------------------------

// Slots [first, first + n) of a payload, neither dense nor drawn.
LB_OUTLINE void decode_indices(const Record& r, const uint8_t* bytes, int64_t first, int64_t n,
                               int64_t* __restrict to) {
  if (r.index == WireIndex::abs32) {
    const uint32_t* __restrict from = section<uint32_t>(bytes, r.indices_at) + first;
    const int64_t numel = r.numel;
    for_lanes(n, [&](int64_t i, int)
                     LB_INLINE { to[i] = from[i] == kEmptySlot ? numel : int64_t(from[i]); });
  } else if (r.index == WireIndex::blk16) {
    const uint32_t* ends = ends_of(r, bytes);
    const uint16_t* offsets = offsets_of(r, bytes);
    const int64_t blocks = num_index_blocks(r);
    int64_t block = block_of_slot(r, ends, first);
    for (int64_t i = 0; i < n; ++i) {
      while (block < blocks && int64_t(ends[block]) <= first + i) ++block;
      to[i] = block < blocks ? block * kIndexBlock + offsets[first + i] : r.numel;
    }
  } else {
    int64_t block = first / r.kept, end = (block + 1) * r.kept;
    for (int64_t i = 0; i < n; ++i) {
      if (first + i == end) {
        block += 1;
        end += r.kept;
      }
      to[i] = block * r.block + offset12(r, bytes, first + i);
    }
  }
}

}  // namespace

// Values of slots [first, first + n).
void wire_decode(DType real, const Record& r, const uint8_t* bytes, int64_t first, int64_t n,
                 void* values) {
  visit_real(real, [&](auto type) LB_INLINE {
    decode(r, bytes, first, n, static_cast<typename decltype(type)::type*>(values));
  });
}

void wire_decode_indices(const Record& r, const uint8_t* bytes, int64_t first, int64_t n,
                         int64_t* indices) {
  decode_indices(r, bytes, first, n, indices);
}

// Adds the payloads of all ranks to the sums of positions [position, position + n) of a record.
void wire_add(DType real, const Record& r, const WireReduce& reduce, int64_t position, int64_t n,
              void* sums_of_tile) {
  visit_real(real, [&](auto type) LB_INLINE {
    using R = typename decltype(type)::type;
    const R share = R(1 / double(reduce.world));
    R* __restrict sums = static_cast<R*>(sums_of_tile);
    R values[kPiece];
    int64_t indices[kPiece];
    for (int64_t rank = 0; rank < reduce.world; ++rank) {
      const uint8_t* bytes = record_from(reduce, r, rank);
      const int64_t begin = slots_below(r, bytes, position);
      const int64_t end = slots_below(r, bytes, position + n);
      for (int64_t slot = begin; slot < end; slot += kPiece) {
        const int count = int(end - slot < kPiece ? end - slot : kPiece);
        decode(r, bytes, slot, count, values);
        if (r.dense()) {
          R* __restrict to = sums + (slot - begin);
          for_lanes(count, [&](int64_t i, int) LB_INLINE { to[i] += values[i] * share; });
        } else {
          decode_indices(r, bytes, slot, count, indices);
          for (int i = 0; i < count; ++i) sums[indices[i] - position] += values[i] * share;
        }
      }
    }
  });
}

// kOut of elements [start, start + n) of a tensor from their sums.
void wire_finish(DType real, const Row& row, int64_t start, int64_t n, const float* scale) {
  if (scale == nullptr && row.data[kOut] == row.data[kSum]) return;
  visit_real(real, [&](auto type) LB_INLINE {
    using R = typename decltype(type)::type;
    const R* sums = row.role<const R>(kSum) + start;
    const R factor = scale == nullptr ? R(1) : R(*scale);
    visit(row.dtypes[kOut], [&](auto out) LB_INLINE {
      using T = typename decltype(out)::type;
      T* to = row.role<T>(kOut) + start;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) to[i] = from_real<T>(real_t<T>(sums[i] * factor));
    });
  });
}

}  // namespace lb::LB_ISA
