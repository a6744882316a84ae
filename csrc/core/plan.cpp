// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "core/plan.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "core/error.h"

namespace lb {

namespace {

bool same_kernel(const Entry& a, const Entry& b) {
  return a.variant == b.variant && a.grad_dtype == b.grad_dtype &&
         std::memcmp(a.dtypes, b.dtypes, sizeof a.dtypes) == 0;
}

bool same_but_for_gradient(const Entry& a, const Entry& b) {
  return std::memcmp(a.data, b.data, sizeof a.data) == 0 && same_kernel(a, b) && a.step == b.step &&
         a.numel == b.numel && a.group == b.group && a.id == b.id && a.columns == b.columns &&
         a.width == b.width && a.stride == b.stride;
}

int64_t bytes_per_element(const Row& row) {
  int64_t bytes = size_of(row.grad_dtype);
  for (DType dtype : row.dtypes) bytes += size_of(dtype);
  return bytes;
}

int64_t wave_bytes() {
  // Half of the last-level cache: the other half is for what else runs on the machine.
#if defined(_SC_LEVEL3_CACHE_SIZE)
  const int64_t cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (cache > 0) return cache / 2;
#endif
  return int64_t(4) << 20;
}

}  // namespace

Plan::Change Plan::compare(const std::vector<Entry>& entries) const {
  if (entries.size() != entries_.size()) return Change::everything;
  Change change = Change::none;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!same_but_for_gradient(entries[i], entries_[i])) return Change::everything;
    if (entries[i].grad != entries_[i].grad) change = Change::gradients;
  }
  return change;
}

void Plan::update(std::vector<Entry> entries, Change change) {
  if (change == Change::none) return;
  entries_ = std::move(entries);
  if (change == Change::everything) {
    build();
  } else {
    for (size_t r = 0; r < rows_.size(); ++r) grads_[r] = entries_[size_t(rows_[r].index)].grad;
  }
}

void Plan::build() {
  std::vector<int32_t> order(entries_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const Entry &x = entries_[size_t(a)], &y = entries_[size_t(b)];
    if (x.variant != y.variant) return x.variant < y.variant;
    if (x.grad_dtype != y.grad_dtype) return x.grad_dtype < y.grad_dtype;
    return std::memcmp(x.dtypes, y.dtypes, sizeof x.dtypes) < 0;
  });

  rows_.clear();
  grads_.clear();
  tile_row_.clear();
  segments_.clear();
  waves_.clear();
  numel_ = groups_ = parts_ = 0;
  const int64_t wave_limit = wave_bytes();
  int64_t wave = 0;  // bytes of the tensors in the last wave
  const Entry* before = nullptr;
  for (int32_t index : order) {
    const Entry& entry = entries_[size_t(index)];
    const Cut cut = entry.width == 0 ? make_cut(entry.numel, entry.numel, entry.numel)
                                     : make_cut(entry.numel, entry.columns, entry.width);
    const int64_t tiles = cut.num_tiles();
    const int64_t first_tile = int64_t(tile_row_.size());
    if (first_tile + tiles > std::numeric_limits<int32_t>::max()) {
      throw ValueError("plan: the tensors have more than 2^31 tiles of 16384 elements together");
    }
    Row row{};
    std::memcpy(row.data, entry.data, sizeof row.data);
    std::memcpy(row.dtypes, entry.dtypes, sizeof row.dtypes);
    row.grad_dtype = entry.grad_dtype;
    row.step = entry.step;
    row.numel = entry.numel;
    row.first_element = numel_;
    row.first_tile = int32_t(first_tile);
    row.num_tiles = int32_t(tiles);
    row.index = index;
    row.group = entry.group;
    row.variant = entry.variant;
    row.id = entry.id;
    row.cut = cut;
    row.first_group = groups_;
    row.first_part = parts_;
    row.stride = entry.stride;

    if (before == nullptr || !same_kernel(*before, entry)) {
      segments_.push_back({int32_t(rows_.size()), 0, row.first_tile, 0});
    }
    segments_.back().num_rows += 1;
    segments_.back().num_tiles += row.num_tiles;
    before = &entry;

    const int64_t bytes = entry.numel * bytes_per_element(row);
    if (waves_.empty() || wave + bytes > wave_limit) {
      waves_.push_back({first_tile, first_tile});
      wave = 0;
    }
    wave += bytes;
    waves_.back().end = first_tile + tiles;

    tile_row_.insert(tile_row_.end(), size_t(tiles), int32_t(rows_.size()));
    rows_.push_back(row);
    grads_.push_back(entry.grad);
    numel_ += entry.numel;
    groups_ += cut.groups;
    parts_ += cut.groups * cut.parts;
  }
}

}  // namespace lb
