// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Exact selection of the largest elements, for all tensors of a call at once, with the error
// feedback that comes before and after it: what compressors do, and the operations behind
// largebatch.ops.topk_select and its neighbours.
//
// Before: the state takes the gradient in, and what is selected from goes to kKey, which may be the
// gradient's own memory. The selection is that of topk_rule.h, ascending by index; the same set and
// order on every run, for any number of threads, instruction set and device.
//
// Bytes moved per element of fp32, beside those per selected one: accumulation reads g and the
// state, writes the state and the key (EC 16, EF21 12, EControl 20). Selecting reads keys once
// more, or not at all where they are still in the cache: blocks, small tensors, and where the last
// threshold has listed the candidates in the first pass. Data whose elements share their first
// twelve bits is read up to 2 + kDigits times. Allocates nothing.
#pragma once

#include "core/plan.h"
#include "core/record.h"
#include "topk/feedback_rule.h"
#include "topk/topk_rule.h"

namespace lb {

// What is selected from in a tile: a part of the candidates, or all its elements.
struct TopkTile {
  int64_t at;         // of the candidates
  int64_t count;      // of them
  int64_t above;      // elements with a key above the threshold
  int64_t equal;      // and at it
  int64_t first_out;  // slots taken by the tiles before
  int64_t ties;       // elements at the threshold that are selected
};

// [numel] positions in the record and values, of what may be selected.
struct TopkItems {
  const void* values;
  const int64_t* positions;  // null: first, first + 1, ...
  int64_t first, count;
};

struct TopkScratch {
  TopkControl* controls;  // [num_records]
  uint64_t* histograms;   // [Record::histogram, kBins]; zeros between calls
  TopkTile* tiles;        // [num_tiles]
  int64_t* positions;     // [candidates]
  void* values;           // [candidates] of the type of the keys
};

struct TopkCall {
  const Record* records;  // [num_records]
  int32_t num_records;
  int64_t num_blocks, num_chunks;  // of all records
  int32_t num_drawn, num_at_once;  // records that are selected from in this way
  Table table;                     // Row::group is the record of a tensor
  TopkScratch scratch;
  FeedbackHyper feedback;
  bool accumulates;  // else keys are there already, and are not to be changed
  DType key;
  int64_t step;
  void* values;      // [slots] of the type of the keys
  int64_t* indices;  // [slots]
  int64_t* counts;   // [num_records, 2] found, guarded in accumulation
  TopkWarm* warm;    // [num_records]; may be null
};

// After the exchange: the state loses what was sent. Sparse records: values and indices; dense
// ones: decoded values in kKey.
struct FixUpCall {
  const Record* records;
  int32_t num_records;
  int64_t num_chunks;
  Table table;
  FeedbackHyper feedback;
  DType real;
  const void* values;      // [slots] decoded
  const int64_t* indices;  // [slots]
  const int32_t* stop;     // [1] 1: nothing was sent
};

// What a thread of the CPU selects from a block in: as long as the largest block and a vector.
struct BlockScratch {
  static constexpr int64_t kLength = 65536 + 64;
  uint32_t offsets[kLength];
  uint32_t picks[kLength];
  uint64_t keys[kLength];
};

namespace cpu {
void topk_select(const Plan& plan, const TopkCall& call);
void topk_fix_up(const Plan& plan, const FixUpCall& call);
}  // namespace cpu
namespace cuda {
void topk_select(const TopkCall& call, void* stream);
void topk_fix_up(const FixUpCall& call, void* stream);
}  // namespace cuda

// ---- What both backends ask --------------------------------------------------------------------

// Where the selection is made from all of the record.
LB_HD bool at_once(const Record& r) {
  if (r.select == Select::threshold) return true;
  return r.select == Select::topk && r.num_blocks == 0 && r.slots > 0;
}

LB_HD uint64_t* histogram_of(const TopkCall& call, int32_t record) {
  return call.scratch.histograms + int64_t(call.records[record].histogram) * kBins;
}

// The threshold from which the first pass lists elements, or 0 where it makes a histogram.
template <class T>
LB_HD uint64_t first_threshold(const TopkCall& call, int32_t record) {
  const Record& r = call.records[record];
  if (r.select == Select::threshold) {
    const key_t<T> low = key_of(from_real<T>(real_t<T>(r.tau)));
    return low > 0 ? low : 1;  // rounded to 0, it still leaves zeros out
  }
  if (call.warm == nullptr || !is_warm(call.warm[record])) return 0;
  return key_of(from_real<T>(real_t<T>(call.warm[record].low)));
}

// What is known after the first pass.
template <class T>
LB_HD void begin_selection(const TopkCall& call, int32_t record) {
  const Record& r = call.records[record];
  TopkControl& control = call.scratch.controls[record];
  const int64_t candidates = int64_t(control.claimed);
  const bool fits = candidates <= r.capacity;
  control.warm_candidates = candidates;
  control.claimed = 0;
  control.need = r.slots;
  if (r.select == Select::threshold) {
    control.threshold = first_threshold<T>(call, record);
    control.digits = kDigits<T>;
    control.need = r.numel;  // all that are at the threshold
    if (fits) control.listed = Listed::yes;
  } else if (first_threshold<T>(call, record) != 0 && fits && candidates >= r.slots) {
    control.listed = Listed::yes;
  }
}

// After the last one.
template <class T>
LB_HD void end_selection(const TopkCall& call, int32_t record) {
  const Record& r = call.records[record];
  if (call.warm == nullptr || r.select != Select::topk) return;
  const TopkControl& control = call.scratch.controls[record];
  const bool hit = control.warm_candidates >= r.slots && control.warm_candidates <= r.capacity;
  call.warm[record] = next_warm(call.warm[record], magnitude_of<T>(control.threshold),
                                control.warm_candidates, r.slots, hit);
}

// What a tile's selection is made from.
template <class T>
LB_HD TopkItems items_of(const TopkCall& call, int32_t t) {
  const Tile tile = tile_at(call.table, t);
  const Row& row = call.table.rows[tile.row];
  if (call.scratch.controls[row.group].listed != Listed::no) {
    const TopkTile& mine = call.scratch.tiles[t];
    return {static_cast<const T*>(call.scratch.values) + mine.at, call.scratch.positions + mine.at,
            0, mine.count};
  }
  return {row.role<const T>(kKey) + tile.start, nullptr,
          position_of(call.records[row.group], row, tile.start), tile.numel};
}

// The state of an element that was sent: `sent` is its decoded value.
template <class R>
LB_HD void fix_up_slot(const FixUpCall& call, const Record& record, int64_t position, R sent) {
  if (position >= record.numel) return;  // a slot that a threshold has not filled
  const Place place = place_of(record, call.table.rows, position);
  const Row& row = call.table.rows[place.row];
  const FeedbackHyper& hyper = call.feedback;
  R* e = has_error(hyper.method) ? row.role<R>(kError) + place.element : nullptr;
  R* h = has_shift(hyper.method) ? row.role<R>(kShift) + place.element : nullptr;
  FeedbackState<R> x{e == nullptr ? R(0) : *e, h == nullptr ? R(0) : *h, R(0)};
  fix_up(hyper.method, sent, x);
  if (e != nullptr) *e = x.e;
  if (h != nullptr) *h = x.h;
  if (hyper.method == Feedback::dgc && hyper.masking) row.role<R>(kMomentum)[place.element] = 0;
}

// The part of an array of state that begins at an element; null where there is none.
template <class R>
LB_HD R* role_at(const Row& row, int role, int64_t element) {
  R* array = row.role<R>(role);
  return array == nullptr ? nullptr : array + element;
}

}  // namespace lb
