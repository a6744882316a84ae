// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Rows on CUDA: each byte is read once and written once, 2 bytes moved for a byte of payload.
// What is where comes as arguments of the kernel, so that nothing is uploaded, and a graph replays
// it.
#include <cstdint>

#include "core/launch.cuh"
#include "core/visit.h"
#include "ulysses/ulysses.h"

namespace lb::cuda {

// --------------------------------------------------------------- constants

namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // loads in flight before the first store
constexpr int64_t kTileVectors = int64_t(kThreads) * kUnroll;  // of a block of threads
constexpr int64_t kMostVectors = int64_t(1) << 30;  // of a move: 31 bits with room for a tile
constexpr int kSumThreads = 128;

// Division of n < 2^31 by a fixed d in [1, 2^31): with 2^(s-1) < d <= 2^s and
// m = ceil(2^(31+s) / d), which is below 2^32, n / d = n m >> (31 + s) (Granlund and Montgomery
// 1994, theorem 4.2: m d - 2^(31+s) is at most 2^s).
struct Divider {
  uint32_t d, m, shift;

  Divider() = default;
  explicit Divider(int64_t by) : d(uint32_t(by)), shift(31) {
    while ((int64_t(1) << (shift - 31)) < by) ++shift;
    m = uint32_t(((uint64_t(1) << shift) + d - 1) / d);
  }
  // n = quotient * d + the rest, which takes the place of n.
  __device__ uint32_t divide(uint32_t& n) const {
    const auto quotient = uint32_t((uint64_t(n) * m) >> shift);
    n -= quotient * d;
    return quotient;
  }
};

// Rows, in vectors of one size.
struct Move {
  const char* from;
  char* to;
  RowStrides from_strides, to_strides;
  Divider vectors, heads, batch, replicas;  // vectors: of a row
  uint32_t first;
  uint32_t total;       // vectors
  uint32_t first_tile;  // number of the first block of threads
};

struct Moves {
  int count;
  Move items[kUlyssesRows];
};
static_assert(sizeof(Moves) <= 32764, "CUDA takes no more arguments");

struct Sums {
  HeadSums sums;
  HeadCopies copies[kUlyssesCopies];
};
static_assert(sizeof(Sums) <= 32764, "CUDA takes no more arguments");

// ---------------------------------------------------------------- kernels

template <class V>
__global__ void __launch_bounds__(kThreads)
    ulysses_rows_kernel(const __grid_constant__ Moves moves) {
  // The move of this block: the last one that begins at or before it.
  int low = 0, high = moves.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (moves.items[middle].first_tile <= blockIdx.x ? low : high) = middle;
  }
  const Move& move = moves.items[low];
  const uint32_t start = (blockIdx.x - move.first_tile) * uint32_t(kTileVectors) + threadIdx.x;

  V values[kUnroll];
  V* targets[kUnroll];
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    const uint32_t index = start + uint32_t(k) * kThreads;
    targets[k] = nullptr;
    if (index >= move.total) continue;
    uint32_t vector = index;
    uint32_t head = move.vectors.divide(vector);
    uint32_t b = move.heads.divide(head);
    const uint32_t token = move.batch.divide(b);
    uint32_t copy = move.first + head;
    const uint32_t source = move.replicas.divide(copy);
    const int64_t byte = int64_t(vector) * int64_t(sizeof(V));
    const RowStrides &from = move.from_strides, &to = move.to_strides;
    values[k] = *reinterpret_cast<const V*>(move.from + token * from.token + b * from.batch +
                                            source * from.head + byte);
    targets[k] =
        reinterpret_cast<V*>(move.to + token * to.token + b * to.batch + head * to.head + byte);
  }
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    if (targets[k] != nullptr) *targets[k] = values[k];
  }
}

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T items[kWidth];
};

// One block of threads for a token and batch; a thread for kWidth elements of a head.
template <class T, int kWidth>
__global__ void __launch_bounds__(kSumThreads)
    ulysses_sum_kernel(const __grid_constant__ Sums arguments) {
  using P = Pack<T, kWidth>;
  const HeadSums& sums = arguments.sums;
  const int64_t token = blockIdx.x / sums.batch, b = blockIdx.x % sums.batch;
  const int64_t packs = sums.dim / kWidth;
  for (int64_t i = threadIdx.x; i < sums.heads * packs; i += kSumThreads) {
    const int64_t h = i / packs, byte = i % packs * int64_t(sizeof(P));
    const int64_t begin = h * sums.replicas, end = begin + sums.replicas;
    real_t<T> total[kWidth] = {};
    for (int64_t p = 0; p < sums.num_copies; ++p) {
      const HeadCopies& copies = arguments.copies[p];
      const int64_t last = min(copies.first + copies.heads, end);
      for (int64_t m = max(copies.first, begin); m < last; ++m) {
        const P x = *reinterpret_cast<const P*>(copies.from + token * copies.strides.token +
                                                b * copies.strides.batch +
                                                (m - copies.first) * copies.strides.head + byte);
#pragma unroll
        for (int w = 0; w < kWidth; ++w) {
          total[w] = m == begin ? to_real(x.items[w]) : total[w] + to_real(x.items[w]);
        }
      }
    }
    P out;
#pragma unroll
    for (int w = 0; w < kWidth; ++w) out.items[w] = from_real<T>(total[w]);
    *reinterpret_cast<P*>(sums.to + token * sums.strides.token + b * sums.strides.batch +
                          h * sums.strides.head + byte) = out;
  }
}

}  // namespace

// -------------------------------------------------------------- launchers

namespace {

// All low bits of addresses, strides and sizes: what divides them divides this.
uint64_t bits_of(const void* address, const RowStrides& strides) {
  return uint64_t(reinterpret_cast<uintptr_t>(address)) |
         uint64_t(strides.token | strides.batch | strides.head);
}

int64_t vectors_of(const Rows& rows, int64_t width) {
  return rows.tokens * rows.batch * rows.heads * (rows.bytes / width);
}

// The moves of one launch, given to the device when they are full, and at the end.
class Launch {
 public:
  Launch(int64_t width, void* stream) : width_(width), stream_(stream) {}

  // Halves what is too long for 31 bits.
  void add(Rows rows) {
    if (vectors_of(rows, width_) > kMostVectors) {
      add_halves(rows);
      return;
    }
    const auto total = uint32_t(vectors_of(rows, width_));
    const int64_t tiles = (int64_t(total) + kTileVectors - 1) / kTileVectors;
    if (moves_.count == kUlyssesRows || tiles_ + tiles > INT32_MAX) flush();
    moves_.items[moves_.count++] = {rows.from,
                                    rows.to,
                                    rows.from_strides,
                                    rows.to_strides,
                                    Divider(rows.bytes / width_),
                                    Divider(rows.heads),
                                    Divider(rows.batch),
                                    Divider(rows.replicas),
                                    uint32_t(rows.first),
                                    total,
                                    uint32_t(tiles_)};
    tiles_ += tiles;
  }

  void flush() {
    const Grid grid(tiles_, kThreads);
    const auto go = [&](auto kernel) {
      launch("ulysses_rows_kernel", kernel, grid, stream_, moves_);
    };
    switch (width_) {
      case 16:
        go(ulysses_rows_kernel<float4>);
        break;
      case 8:
        go(ulysses_rows_kernel<uint64_t>);
        break;
      case 4:
        go(ulysses_rows_kernel<uint32_t>);
        break;
      case 2:
        go(ulysses_rows_kernel<uint16_t>);
        break;
      default:
        go(ulysses_rows_kernel<uint8_t>);
    }
    moves_.count = 0;
    tiles_ = 0;
  }

 private:
  void add_halves(Rows rows) {
    Rows rest = rows;
    if (rows.tokens > 1) {
      rest.tokens -= rows.tokens /= 2;
      rest.from += rows.tokens * rows.from_strides.token;
      rest.to += rows.tokens * rows.to_strides.token;
    } else if (rows.batch > 1) {
      rest.batch -= rows.batch /= 2;
      rest.from += rows.batch * rows.from_strides.batch;
      rest.to += rows.batch * rows.to_strides.batch;
    } else if (rows.heads > 1) {
      rest.heads -= rows.heads /= 2;
      rest.first += rows.heads;
      rest.to += rows.heads * rows.to_strides.head;
    } else {
      rest.bytes -= rows.bytes = rows.bytes / width_ / 2 * width_;
      rest.from += rows.bytes;
      rest.to += rows.bytes;
    }
    add(rows);
    add(rest);
  }

  int64_t width_;
  void* stream_;
  int64_t tiles_ = 0;
  Moves moves_{};
};

template <class T>
void sum(const Sums& sums, uint64_t bits, void* stream) {
  constexpr int kWidth = 16 / int(sizeof(T));
  const Grid grid(sums.sums.tokens * sums.sums.batch, kSumThreads);
  if (bits % 16 == 0) {
    launch("ulysses_sum_kernel", ulysses_sum_kernel<T, kWidth>, grid, stream, sums);
  } else {
    launch("ulysses_sum_kernel", ulysses_sum_kernel<T, 1>, grid, stream, sums);
  }
}

}  // namespace

void ulysses_rows(const Rows* rows, int64_t count, void* stream) {
  uint64_t bits = 16;
  for (int64_t i = 0; i < count; ++i) {
    bits |= bits_of(rows[i].from, rows[i].from_strides) | bits_of(rows[i].to, rows[i].to_strides) |
            uint64_t(rows[i].bytes);
  }
  Launch launch(int64_t(bits & (~bits + 1)), stream);  // the lowest bit
  for (int64_t i = 0; i < count; ++i) launch.add(rows[i]);
  launch.flush();
}

void ulysses_sum(const HeadSums& sums, void* stream) {
  Sums arguments{sums, {}};
  uint64_t bits = bits_of(sums.to, sums.strides) | uint64_t(sums.dim * size_of(sums.dtype));
  for (int64_t p = 0; p < sums.num_copies; ++p) {
    arguments.copies[p] = sums.copies[p];
    bits |= bits_of(sums.copies[p].from, sums.copies[p].strides);
  }
  visit(sums.dtype,
        [&](auto type) { sum<typename decltype(type)::type>(arguments, bits, stream); });
}

}  // namespace lb::cuda
