// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Where everything lies on the wire. A message is one flat buffer, with a block for every rank:
//
//   block p = [tokens][batch][ heads of tensor 0 | heads of tensor 1 | ... ]
//
// so that blocks of several ranks, one after the other, are [all tokens][batch][...] with no copy,
// whatever the batch, and however many tokens each rank has. The heads of a tensor, each counted
// `replicas` times, go to rank 0, 1, ... in order; with several messages (chunks of heads), to
// message 0, 1, ... of a rank before the next rank.
#pragma once

#include <vector>

#include "ulysses/ulysses.h"

namespace lb {

// [tokens, batch, heads, row_bytes]
struct HeadTensor {
  char* data;
  int64_t heads, row_bytes, replicas;
  RowStrides strides;
};

struct Wire {
  std::vector<char*> messages;
  int64_t tokens, batch, ranks;
  std::vector<HeadTensor> tensors;
  // [messages, ranks, tensors] heads in a block
  std::vector<int64_t> counts;

  int64_t count(size_t message, int64_t rank, size_t tensor) const {
    return counts[(message * size_t(ranks) + size_t(rank)) * tensors.size() + tensor];
  }
  // Of one token and batch in a block, bytes.
  int64_t width(size_t message, int64_t rank) const {
    int64_t bytes = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      bytes += count(message, rank, i) * tensors[i].row_bytes;
    }
    return bytes;
  }
  int64_t message_bytes(size_t message) const {
    int64_t bytes = 0;
    for (int64_t rank = 0; rank < ranks; ++rank) bytes += width(message, rank);
    return tokens * batch * bytes;
  }
};

// The heads of one tensor in one block.
struct WirePart {
  char* data;
  size_t tensor;
  int64_t first, heads;  // of the tensor's heads, copies counted
  RowStrides strides;
};

inline std::vector<WirePart> wire_parts(const Wire& wire) {
  std::vector<WirePart> parts;
  std::vector<char*> at = wire.messages;
  std::vector<int64_t> first(wire.tensors.size());
  for (int64_t rank = 0; rank < wire.ranks; ++rank) {
    for (size_t k = 0; k < at.size(); ++k) {
      const int64_t width = wire.width(k, rank);
      char* block = at[k];
      for (size_t i = 0; i < wire.tensors.size(); ++i) {
        const int64_t heads = wire.count(k, rank, i), bytes = wire.tensors[i].row_bytes;
        parts.push_back({block, i, first[i], heads, {wire.batch * width, width, bytes}});
        first[i] += heads;
        block += heads * bytes;
      }
      at[k] += wire.tokens * wire.batch * width;
    }
  }
  return parts;
}

// Makes longer rows of what lies side by side at both ends. Strides that nothing is found by become
// 0, so that they do not stand in the way of wide loads.
inline Rows merged(Rows rows) {
  if (rows.replicas == 1) {  // the first head is a matter of the address alone
    rows.from += rows.first * rows.from_strides.head;
    rows.first = 0;
  }
  const auto side_by_side = [&](int64_t from, int64_t to) {
    return from == rows.bytes && to == rows.bytes;
  };
  if (rows.replicas == 1 && side_by_side(rows.from_strides.head, rows.to_strides.head)) {
    rows.bytes *= rows.heads;
    rows.heads = 1;
  }
  if (rows.heads == 1 && rows.replicas == 1 &&
      side_by_side(rows.from_strides.batch, rows.to_strides.batch)) {
    rows.bytes *= rows.batch;
    rows.batch = 1;
  }
  for (RowStrides* strides : {&rows.from_strides, &rows.to_strides}) {
    if (rows.tokens == 1) strides->token = 0;
    if (rows.batch == 1) strides->batch = 0;
    if (rows.heads == 1 && rows.replicas == 1) strides->head = 0;
  }
  return rows;
}

inline bool is_empty(const Rows& rows) {
  return rows.tokens == 0 || rows.batch == 0 || rows.heads == 0 || rows.bytes == 0;
}

// Out of the tensors, into the messages.
inline std::vector<Rows> pack_rows(const Wire& wire) {
  std::vector<Rows> all;
  for (const WirePart& part : wire_parts(wire)) {
    const HeadTensor& tensor = wire.tensors[part.tensor];
    const Rows rows{tensor.data,      part.data,      wire.tokens,  wire.batch, part.heads,
                    tensor.row_bytes, tensor.strides, part.strides, part.first, tensor.replicas};
    if (!is_empty(rows)) all.push_back(merged(rows));
  }
  return all;
}

// Out of the messages, into the tensors that have one copy of each head.
inline std::vector<Rows> unpack_rows(const Wire& wire) {
  std::vector<Rows> all;
  for (const WirePart& part : wire_parts(wire)) {
    const HeadTensor& tensor = wire.tensors[part.tensor];
    const Rows rows{part.data,
                    tensor.data + part.first * tensor.strides.head,
                    wire.tokens,
                    wire.batch,
                    part.heads,
                    tensor.row_bytes,
                    part.strides,
                    tensor.strides,
                    0,
                    1};
    if (tensor.replicas == 1 && !is_empty(rows)) all.push_back(merged(rows));
  }
  return all;
}

// The copies of the heads of one tensor.
inline std::vector<HeadCopies> wire_copies(const Wire& wire, size_t tensor) {
  std::vector<HeadCopies> all;
  for (const WirePart& part : wire_parts(wire)) {
    if (part.tensor == tensor && part.heads > 0) {
      all.push_back({part.data, part.first, part.heads, part.strides});
    }
  }
  return all;
}

}  // namespace lb
