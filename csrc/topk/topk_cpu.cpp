// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Selection on the CPU. Tile by tile: error feedback, then, while the keys are in the cache, their
// histogram or the candidates from them on; blocks and small tensors are done with at once.
#include <atomic>
#include <limits>
#include <memory>

#include "core/draw.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/visit.h"
#include "topk/topk.h"

namespace lb {

LB_DECLARE_FOR_ISAS(int64_t feedback_accumulate(const FeedbackHyper& hyper, bool dense,
                                                const Row& row, const void* g, int64_t start,
                                                int64_t n);
                    void feedback_fix_up(DType real, const FeedbackHyper& hyper, const Row& row,
                                         const void* sent, int64_t start, int64_t n);
                    void topk_count_bins(DType dtype, const TopkItems& items, int digits,
                                         uint64_t threshold, uint32_t* counts);
                    int64_t topk_count_from(DType dtype, const TopkItems& items, uint64_t low);
                    void topk_write(DType dtype, const TopkItems& items, uint64_t threshold,
                                    int64_t ties, int64_t room, void* values, int64_t* positions);
                    void topk_block(DType dtype, const void* block_values, const RecordBlock& block,
                                    uint64_t& guess, BlockScratch& scratch, void* values,
                                    int64_t* positions))

namespace cpu {

namespace {

constexpr int64_t kAll = std::numeric_limits<int64_t>::max();

template <class Number>
void add(Number& total, int64_t number) {
#pragma omp atomic
  total += Number(number);
}

void* at(void* array, DType dtype, int64_t element) {
  return static_cast<char*>(array) + element * size_of(dtype);
}

// The histogram of one thread, brought to the record's when another one follows.
class Bins {
 public:
  explicit Bins(const TopkCall& call) : call_(call) {}
  ~Bins() { flush(); }
  Bins(const Bins&) = delete;
  Bins& operator=(const Bins&) = delete;

  void add(int32_t record, const TopkItems& items) {
    if (record != record_ || items_ > kMost) flush();
    record_ = record;
    items_ += items.count;
    const TopkControl& control = call_.scratch.controls[record];
    LB_FOR_ISA(topk_count_bins)(call_.key, items, control.digits, control.threshold, counts_);
  }

 private:
  static constexpr int64_t kMost = int64_t(1) << 30;  // 32 bits count them

  void flush() {
    if (items_ == 0) return;
    uint64_t* histogram = histogram_of(call_, record_);
    for (int bin = 0; bin < kBins; ++bin) {
      int64_t count = 0;
      for (int k = 0; k < 4; ++k) count += counts_[k * kBins + bin];
      if (count != 0) cpu::add(histogram[bin], count);
    }
    std::fill(std::begin(counts_), std::end(counts_), 0u);
    items_ = 0;
  }

  const TopkCall& call_;
  int32_t record_ = -1;
  int64_t items_ = 0;
  uint32_t counts_[4 * kBins] = {};
};

// Selects block after block.
class Blocks {
 public:
  explicit Blocks(const TopkCall& call) : call_(call) {}

  void select(const Record& record, int64_t b) {
    if (scratch_ == nullptr) scratch_.reset(new BlockScratch);
    const RecordBlock block = block_of(record, b);
    const Row& row = call_.table.rows[record.first_row];
    const int64_t slot = record.first_slot + block.first_slot;
    LB_FOR_ISA(topk_block)(call_.key, at(row.data[kKey], call_.key, block.start), block, guess_,
                           *scratch_, at(call_.values, call_.key, slot), call_.indices + slot);
  }

 private:
  const TopkCall& call_;
  uint64_t guess_ = 0;
  std::unique_ptr<BlockScratch> scratch_;
};

template <class Body>
void for_tiles(const TopkCall& call, Body body) {
  const Span mine = share(call.table, {0, call.table.num_tiles}, thread_index(), team_size());
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    const int32_t record = call.table.rows[call.table.tile_row[t]].group;
    body(int32_t(t), record);
  }
}

// Lists the candidates of a tile, if there is room.
void list(const TopkCall& call, int32_t t, int32_t record, const TopkItems& items, uint64_t low) {
  TopkControl& control = call.scratch.controls[record];
  TopkTile& tile = call.scratch.tiles[t];
  tile.count = LB_FOR_ISA(topk_count_from)(call.key, items, low);
  const auto count = static_cast<unsigned long long>(tile.count);
  unsigned long long claimed;
#pragma omp atomic capture
  {
    claimed = control.claimed;
    control.claimed += count;
  }
  if (int64_t(claimed) + tile.count > call.records[record].capacity) return;
  tile.at = call.records[record].first_candidate + int64_t(claimed);
  LB_FOR_ISA(topk_write)(call.key, items, low, kAll, tile.count,
                         at(call.scratch.values, call.key, tile.at),
                         call.scratch.positions + tile.at);
}

template <class T>
void first_pass(const TopkCall& call) {
  const auto accumulate = LB_FOR_ISA(feedback_accumulate);
  Bins bins(call);
  Blocks blocks(call);
  for_tiles(call, [&](int32_t t, int32_t index) {
    const Record& record = call.records[index];
    const Tile tile = tile_at(call.table, t);
    const Row& row = call.table.rows[tile.row];
    const TopkItems items = items_of<T>(call, t);
    if (call.accumulates) {
      const int64_t guarded = accumulate(call.feedback, record.dense(), row,
                                         call.table.grads[tile.row], tile.start, tile.numel);
      if (guarded != 0) add(call.scratch.controls[index].nonfinite, guarded);
    }
    if (at_once(record)) {
      const uint64_t low = first_threshold<T>(call, index);
      if (low != 0) {
        list(call, t, index, items, low);
      } else {
        bins.add(index, items);
      }
    } else if (record.num_blocks != 0 && record.block <= kTile) {
      const int64_t first = tile.start / record.block;
      for (int64_t b = first; b * record.block < tile.start + tile.numel; ++b) {
        blocks.select(record, b);
      }
    }
  });
}

// Blocks that are larger than a tile.
void large_blocks(const TopkCall& call) {
  Blocks blocks(call);
#pragma omp for schedule(static)
  for (int64_t i = 0; i < call.num_blocks; ++i) {
    const int32_t index =
        record_of(call.records, call.num_records, i, [](const Record& r) { return r.first_block; });
    const Record& record = call.records[index];
    if (record.block > kTile) blocks.select(record, i - record.first_block);
  }
}

// The next digit of the threshold, from the top of the histogram down.
template <class T>
void decide(const TopkCall& call, int32_t record) {
  TopkControl& control = call.scratch.controls[record];
  uint64_t* histogram = histogram_of(call, record);
  int64_t bin = kBins - 1, larger = 0;
  while (larger + int64_t(histogram[bin]) < control.need) larger += int64_t(histogram[bin--]);
  take_digit<T>(control, call.records[record], bin, int64_t(histogram[bin]), larger);
  std::fill(histogram, histogram + kBins, uint64_t(0));
}

// The threshold of every record that is selected from at once.
template <class T>
void find_thresholds(const TopkCall& call) {
  TopkControl* controls = call.scratch.controls;
  const auto open = [&](int32_t record, int digits) {
    return at_once(call.records[record]) && controls[record].digits == digits;
  };
#pragma omp for schedule(static)
  for (int32_t r = 0; r < call.num_records; ++r) {
    if (at_once(call.records[r])) begin_selection<T>(call, r);
  }
  for (int digits = 0; digits < kDigits<T>; ++digits) {
    {
      Bins bins(call);
      for_tiles(call, [&](int32_t t, int32_t record) {
        const bool counted = digits == 0 && first_threshold<T>(call, record) == 0;
        if (open(record, digits) && !counted) bins.add(record, items_of<T>(call, t));
      });
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (int32_t r = 0; r < call.num_records; ++r) {
      if (open(r, digits)) decide<T>(call, r);
    }
    if (digits != 0) continue;
    for_tiles(call, [&](int32_t t, int32_t record) {
      if (controls[record].listed != Listed::to_be) return;
      const Tile tile = tile_at(call.table, t);
      const Row& row = call.table.rows[tile.row];
      const TopkItems all{row.role<const T>(kKey) + tile.start, nullptr,
                          position_of(call.records[record], row, tile.start), tile.numel};
      list(call, t, record, all, controls[record].threshold);
    });
#pragma omp barrier
  }
}

// Where each tile writes, in the order of the tiles.
void place_tiles(const TopkCall& call, int32_t r) {
  const Record& record = call.records[r];
  int64_t out = 0, left = call.scratch.controls[r].need;
  for (int32_t t = record.first_tile; t < record.first_tile + record.num_tiles; ++t) {
    TopkTile& tile = call.scratch.tiles[t];
    tile.first_out = out;
    tile.ties = std::min(left, tile.equal);
    left -= tile.ties;
    out += tile.above + tile.ties;
  }
  call.counts[2 * r] = out;
}

template <class T>
void write_selection(const TopkCall& call) {
  const auto count_from = LB_FOR_ISA(topk_count_from);
  for_tiles(call, [&](int32_t t, int32_t record) {
    if (!at_once(call.records[record])) return;
    const TopkItems items = items_of<T>(call, t);
    const uint64_t threshold = call.scratch.controls[record].threshold;
    TopkTile& tile = call.scratch.tiles[t];
    tile.above = count_from(call.key, items, threshold + 1);
    tile.equal = count_from(call.key, items, threshold) - tile.above;
  });
#pragma omp barrier
#pragma omp for schedule(static)
  for (int32_t r = 0; r < call.num_records; ++r) {
    call.counts[2 * r] = call.records[r].slots;
    call.counts[2 * r + 1] = int64_t(call.scratch.controls[r].nonfinite);
    if (!at_once(call.records[r])) continue;
    place_tiles(call, r);
    end_selection<T>(call, r);
  }
  for_tiles(call, [&](int32_t t, int32_t r) {
    const Record& record = call.records[r];
    if (!at_once(record)) return;
    const TopkTile& tile = call.scratch.tiles[t];
    const int64_t slot = record.first_slot + tile.first_out;
    const int64_t room = std::min(record.slots - tile.first_out, tile.above + tile.ties);
    if (room <= 0) return;
    LB_FOR_ISA(topk_write)(call.key, items_of<T>(call, t), call.scratch.controls[r].threshold,
                           tile.ties, room, at(call.values, call.key, slot), call.indices + slot);
  });
#pragma omp for schedule(static)
  for (int32_t r = 0; r < call.num_records; ++r) {
    const Record& record = call.records[r];
    if (record.select != Select::threshold) continue;
    for (int64_t slot = call.counts[2 * r]; slot < record.slots; ++slot) {
      static_cast<T*>(call.values)[record.first_slot + slot] = from_real<T>(real_t<T>(0));
      call.indices[record.first_slot + slot] = record.numel;
    }
  }
}

template <class T>
void draw_slots(const TopkCall& call, const Record& record) {
  const Draw draw(record, call.step);
#pragma omp for schedule(static) nowait
  for (int64_t slot = 0; slot < record.slots; ++slot) {
    const int64_t position = draw(slot);
    const Place place = place_of(record, call.table.rows, position);
    static_cast<T*>(call.values)[record.first_slot + slot] =
        call.table.rows[place.row].role<const T>(kKey)[place.element];
    call.indices[record.first_slot + slot] = position;
  }
}

}  // namespace

void topk_select(const Plan& plan, const TopkCall& call) {
  for (int32_t r = 0; r < call.num_records; ++r) call.scratch.controls[r] = {};
  visit(call.key, [&](auto type) {
    using T = typename decltype(type)::type;
#pragma omp parallel num_threads(threads_for(plan.numel()))
    {
      first_pass<T>(call);
#pragma omp barrier
      large_blocks(call);
      for (int32_t r = 0; r < call.num_records; ++r) {
        if (call.records[r].drawn()) draw_slots<T>(call, call.records[r]);
      }
      if (call.num_at_once > 0) find_thresholds<T>(call);
      write_selection<T>(call);
    }
  });
}

void topk_fix_up(const Plan& plan, const FixUpCall& call) {
  if (*call.stop != 0 || call.feedback.method == Feedback::none) return;
  const Table& table = call.table;
  const FeedbackHyper& hyper = call.feedback;
  visit(call.real, [&](auto type) {
    using R = real_t<typename decltype(type)::type>;
#pragma omp parallel num_threads(threads_for(plan.numel()))
    {
      const Span mine = share(table, {0, table.num_tiles}, thread_index(), team_size());
      for (int64_t t = mine.begin; t < mine.end; ++t) {
        const Tile tile = tile_at(table, int32_t(t));
        const Row& row = table.rows[tile.row];
        if (!call.records[row.group].dense() || hyper.method == Feedback::dgc) continue;
        LB_FOR_ISA(feedback_fix_up)(call.real, hyper, row, role_at<R>(row, kKey, tile.start),
                                    tile.start, tile.numel);
      }
      for (int32_t r = 0; r < call.num_records; ++r) {
        const Record& record = call.records[r];
        if (record.dense()) continue;
#pragma omp for schedule(static) nowait
        for (int64_t slot = 0; slot < record.slots; ++slot) {
          const int64_t at = record.first_slot + slot;
          fix_up_slot<R>(call, record, call.indices[at], static_cast<const R*>(call.values)[at]);
        }
      }
    }
  });
}

}  // namespace cpu
}  // namespace lb
