// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The exchange of Ulysses sequence parallelism (Jacobs et al. 2023, "DeepSpeed Ulysses",
// arXiv 2309.14509), the part that is done on one rank: what all-to-all sends is packed out of
// tensors [tokens, batch, heads, dim] of any strides, and what it brings is unpacked into them.
//
// One primitive moves bytes and knows no dtype. It reads and writes each byte once, in one launch
// for kUlyssesRows blocks of rows. Where several ranks attend with copies of one kv head, packing
// reads its rows several times; the gradients of the copies are summed, which is the one function
// here that has a dtype: in ascending order of ranks, in fp32 (fp64 for fp64), rounded once.
//
// The same bits on every run, for any number of threads and any CPU instruction set. Allocates
// nothing, waits for nothing. Any alignment will do; on CUDA, addresses and strides that are
// multiples of 16 bytes are moved 16 bytes at a time.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace lb {

struct RowStrides {
  int64_t token, batch, head;  // bytes
};

// For every token t, batch b and head h:
//   to[t, b, h] = from[t, b, (first + h) / replicas]
struct Rows {
  const char* from;
  char* to;
  int64_t tokens, batch, heads, bytes;  // bytes: of a row
  RowStrides from_strides, to_strides;
  int64_t first, replicas;
};

// Copies of heads that one rank has sent: copy m in [first, first + heads) is row m - first.
struct HeadCopies {
  const char* from;
  int64_t first, heads;
  RowStrides strides;
};

// For every token t, batch b and head h:
//   to[t, b, h] = sum of the copies m in [h replicas, (h + 1) replicas), in ascending order
struct HeadSums {
  const HeadCopies* copies;  // [num_copies] ascending and without gaps
  int64_t num_copies;        // at most kUlyssesCopies
  char* to;
  DType dtype;
  int64_t tokens, batch, heads, dim;
  RowStrides strides;
  int64_t replicas;
};

constexpr int kUlyssesRows = 200;    // what one launch takes as its arguments
constexpr int kUlyssesCopies = 500;  // the same

namespace cpu {
void ulysses_rows(const Rows* rows, int64_t count);
void ulysses_sum(const HeadSums& sums);
}  // namespace cpu
namespace cuda {
void ulysses_rows(const Rows* rows, int64_t count, void* stream);
void ulysses_sum(const HeadSums& sums, void* stream);
}  // namespace cuda

}  // namespace lb
