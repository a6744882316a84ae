// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Packing a chunk of slots, compiled for each instruction set.
#include "core/lanes.h"
#include "wire/wire.h"
#include "wire/wire_index.h"
#include "wire/wire_rule.h"

namespace lb::LB_ISA {

namespace {

constexpr int kPiece = 1024;  // slots whose words and codes stay in the first-level cache

template <class T, class R>
LB_OUTLINE void encode_floats(const R* __restrict x, int64_t n, T* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = to_wire<T>(x[i]);
}

template <class R>
LB_OUTLINE void encode_signs(const R* __restrict x, int64_t n, uint32_t* __restrict to) {
  static constexpr SignBits bit;
  const auto word = [&](int64_t first, int count) LB_INLINE {
    uint32_t bits = 0;
#pragma omp simd reduction(| : bits)
    for (int j = 0; j < count; ++j) bits |= bit.of[j] & (0u - uint32_t(x[first + j] < 0));
    to[first / 32] = bits;
  };
  int64_t first = 0;
  for (; first + 32 <= n; first += 32) word(first, 32);
  if (first < n) word(first, int(n - first));
}

template <class R>
LB_OUTLINE float scale_of(const R* __restrict x, int64_t n) {
  int32_t most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    const auto size = int32_t(size_bits(float(x[i])));
    most = size > most ? size : most;
  }
  return detail::float_of(uint32_t(most));
}

// The random words of `n` slots from `first` on, a multiple of 4.
LB_OUTLINE void draw_words(const RandomStream& stream, int64_t first, int n,
                           uint32_t* __restrict words) {
  uint32_t of_quad[4][kPiece / 4];
  const int quads = (n + 3) / 4;
#pragma omp simd
  for (int quad = 0; quad < quads; ++quad) {
    uint32_t four[4];
    random_words(stream, first / 4 + quad, four);
    of_quad[0][quad] = four[0];
    of_quad[1][quad] = four[1];
    of_quad[2][quad] = four[2];
    of_quad[3][quad] = four[3];
  }
  for (int quad = 0; quad < quads; ++quad) {
    for (int k = 0; k < 4; ++k) words[4 * quad + k] = of_quad[k][quad];
  }
}

// `words` is null when rounding is to nearest.
template <class R>
LB_OUTLINE void encode_levels(const R* __restrict x, int n, float step, const WireLevels& levels,
                              const uint32_t* __restrict words, int8_t* __restrict codes) {
  const WireLevels l = levels;
  if (words == nullptr) {
    for_lanes(n, [&](int64_t i, int)
                     LB_INLINE { codes[i] = int8_t(encode_level(float(x[i]), step, 0.5f, l)); });
  } else {
    for_lanes(n, [&](int64_t i, int) LB_INLINE {
      codes[i] = int8_t(encode_level(float(x[i]), step, uniform(words[i]), l));
    });
  }
}

// Codes of whole bytes: what is beyond the last one is 0.
LB_OUTLINE void pack_codes(WireValue value, const int8_t* __restrict codes, int n,
                           uint8_t* __restrict to) {
  if (value == WireValue::int8) {
    for_lanes(n, [&](int64_t i, int) LB_INLINE { to[i] = uint8_t(codes[i]); });
  } else if (value == WireValue::int4) {
    for_lanes((n + 1) / 2, [&](int64_t i, int) LB_INLINE {
      to[i] = uint8_t((codes[2 * i] & 15) | codes[2 * i + 1] << 4);
    });
  } else {
    for_lanes((n + 3) / 4, [&](int64_t i, int) LB_INLINE {
      to[i] = uint8_t(codes[4 * i] | codes[4 * i + 1] << 2 | codes[4 * i + 2] << 4 |
                      codes[4 * i + 3] << 6);
    });
  }
}

// The slots of one scale, the first of which is `first`.
template <class R>
LB_OUTLINE void encode_chunk(const Record& r, const R* x, int64_t first, int64_t n,
                             const RandomStream& stream, uint8_t* bytes) {
  const WireLevels levels = levels_of(r.value);
  const float scale = scale_of(x, n);
  section<float>(bytes, r.scales_at)[first / r.scale_block] = scale;
  const int per_byte = r.value == WireValue::int8 ? 1 : r.value == WireValue::int4 ? 2 : 4;
  uint8_t* to = bytes + r.values_at + first / per_byte;
  uint32_t words[kPiece];
  int8_t codes[kPiece + 4];
  for (int64_t at = 0; at < n; at += kPiece) {
    const int count = int(n - at < kPiece ? n - at : kPiece);
    if (!r.nearest) draw_words(stream, first + at, count, words);
    encode_levels(x + at, count, scale / levels.reach, levels, r.nearest ? nullptr : words, codes);
    for (int k = 0; k < 3; ++k) codes[count + k] = 0;
    pack_codes(r.value, codes, count, to + at / per_byte);
  }
}

}  // namespace

// Sum of magnitudes.
double wire_size(DType real, const void* values, int64_t n) {
  LaneSum sum;
  visit_real(real, [&](auto type) LB_INLINE {
    using R = typename decltype(type)::type;
    const R* __restrict x = static_cast<const R*>(values);
    for_lanes(n, [&](int64_t i, int lane)
                     LB_INLINE { sum.lanes[lane] += double(x[i] < 0 ? -x[i] : x[i]); });
  });
  return sum.total();
}

// `values` are those of a chunk of slots.
void wire_encode(DType real, const Record& r, const void* values, const RecordChunk& chunk,
                 const RandomStream& stream, uint8_t* bytes) {
  visit_real(real, [&](auto type) LB_INLINE {
    using R = typename decltype(type)::type;
    const R* x = static_cast<const R*>(values);
    visit_value(r.value, [&](auto tag) LB_INLINE {
      constexpr WireValue value = decltype(tag)::value;
      if constexpr (value == WireValue::sign) {
        encode_signs(x, chunk.count, section<uint32_t>(bytes, r.values_at) + chunk.first / 32);
      } else if constexpr (is_float(value)) {
        encode_floats(x, chunk.count, section<stored_t<value>>(bytes, r.values_at) + chunk.first);
      } else {
        encode_chunk(r, x, chunk.first, chunk.count, stream, bytes);
      }
    });
  });
}

void wire_encode_indices(const Record& r, const int64_t* __restrict from, const RecordChunk& chunk,
                         uint8_t* bytes) {
  const int64_t n = chunk.count;
  if (r.index == WireIndex::abs32) {
    uint32_t* __restrict to = section<uint32_t>(bytes, r.indices_at) + chunk.first;
    const int64_t numel = r.numel;
    for_lanes(n, [&](int64_t i, int)
                     LB_INLINE { to[i] = from[i] < numel ? uint32_t(from[i]) : kEmptySlot; });
  } else if (r.index == WireIndex::blk16) {
    uint16_t* __restrict to =
        section<uint16_t>(bytes, r.indices_at + 4 * num_index_blocks(r)) + chunk.first;
    const int64_t numel = r.numel;
    for_lanes(n, [&](int64_t i, int) LB_INLINE {
      to[i] = from[i] < numel ? uint16_t(from[i] % kIndexBlock) : uint16_t(0);
    });
  } else {
    uint8_t* __restrict to = bytes + r.indices_at + chunk.first / 2 * 3;
    const uint32_t mask = uint32_t(r.block) - 1;
    for (int64_t i = 0; i < n; i += 2, to += 3) {
      const uint32_t first = uint32_t(from[i]) & mask;
      const uint32_t second = i + 1 < n ? uint32_t(from[i + 1]) & mask : 0;
      to[0] = uint8_t(first);
      to[1] = uint8_t(first >> 8 | second << 4);
      to[2] = uint8_t(second >> 4);
    }
  }
}

}  // namespace lb::LB_ISA
