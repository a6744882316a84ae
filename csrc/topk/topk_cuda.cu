// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Selection and error feedback on CUDA, for all records of a call.
//
//   launch            does                                        reads and writes, of n
//   topk_first        error feedback; then histogram, or list     the state, keys written
//   topk_blocks       blocks and small tensors, start to end      keys, once from memory
//   topk_draw         elements drawn at random                    slots
//   topk_bins         histogram of the next digit                 candidates
//   topk_decide       the next digit of the threshold             histogram
//   topk_list         candidates                                  keys
//   topk_tally        above and at the threshold, by tile         candidates
//   topk_place        where each tile writes                      tiles
//   topk_write        the selection, in order                     candidates, slots
//
// Blocks list candidates wherever there is room next, and note where: what they read is a list in
// no order, what they write last is ordered by the scan over tiles. Where the candidates do not
// fit, all keys take their place.
#include "core/draw.h"
#include "core/launch.cuh"
#include "core/visit.h"
#include "topk/feedback.cuh"
#include "topk/topk_block.cuh"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kPlaceThreads = 1024;  // a record of 1e9 elements has 61 000 tiles: 60 a thread

__global__ void __launch_bounds__(kTileThreads) topk_begin_kernel(TopkCall call) {
  const int64_t r = int64_t(blockIdx.x) * kTileThreads + threadIdx.x;
  if (r < call.num_records) call.scratch.controls[r] = {};
}

// Adds the bins of the block's items to the record's.
template <class T>
__device__ __forceinline__ void add_bins(const TopkCall& call, int32_t record,
                                         const TopkItems& items) {
  unsigned* histogram = dynamic_shared<unsigned>();
  const TopkControl& control = call.scratch.controls[record];
  for (int bin = int(threadIdx.x); bin < kBins; bin += kTileThreads) histogram[bin] = 0;
  __syncthreads();
  count_bins(static_cast<const T*>(items.values), items.count, control.digits, control.threshold,
             histogram);
  __syncthreads();
  auto* all = reinterpret_cast<unsigned long long*>(histogram_of(call, record));
  for (int bin = int(threadIdx.x); bin < kBins; bin += kTileThreads) {
    if (histogram[bin] != 0) atomicAdd(all + bin, (unsigned long long)histogram[bin]);
  }
}

// All elements of a tile.
template <class T>
__device__ __forceinline__ TopkItems all_of(const TopkCall& call, const Tile& tile) {
  const Row& row = call.table.rows[tile.row];
  return {row.role<const T>(kKey) + tile.start, nullptr,
          position_of(call.records[row.group], row, tile.start), tile.numel};
}

// Lists the elements of a tile from `low` on, if there is room.
template <class T>
__device__ __forceinline__ void list_tile(const TopkCall& call, int32_t t, int32_t record,
                                          const TopkItems& items, uint64_t low) {
  const T* x = static_cast<const T*>(items.values);
  T* values = static_cast<T*>(call.scratch.values);
  const uint64_t marks =
      mark(x, items.count, [&](int64_t, key_t<T> key) { return key >= key_t<T>(low); });
  const auto claim = [&](int count) {
    const Record& r = call.records[record];
    const auto at =
        int64_t(atomicAdd(&call.scratch.controls[record].claimed, 0ull + unsigned(count)));
    TopkTile& tile = call.scratch.tiles[t];
    tile.count = count;
    tile.at = r.first_candidate + at;
    return at + count <= r.capacity ? tile.at : -1;
  };
  compact(marks, items.count, claim, [&](int64_t i, int64_t place) {
    values[place] = x[i];
    call.scratch.positions[place] = items.first + i;
  });
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) topk_first_kernel(TopkCall call) {
  const auto t = int32_t(blockIdx.x);
  const Tile tile = tile_at(call.table, t);
  const int32_t record = call.table.rows[tile.row].group;
  if (call.accumulates) {
    const int guarded = prepare_keys<T>(call, tile);
    if (guarded != 0) {
      atomicAdd(&call.scratch.controls[record].nonfinite, (unsigned long long)guarded);
    }
  }
  // What follows reads the keys that each thread has written itself.
  if (!at_once(call.records[record])) return;
  const TopkItems items = all_of<T>(call, tile);
  const uint64_t low = first_threshold<T>(call, record);
  if (low != 0) {
    list_tile<T>(call, t, record, items, low);
  } else {
    add_bins<T>(call, record, items);
  }
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) topk_blocks_kernel(TopkCall call) {
  const int32_t index = record_of(call.records, call.num_records, int64_t(blockIdx.x),
                                  [](const Record& r) { return r.first_block; });
  const Record& record = call.records[index];
  const RecordBlock block = block_of(record, int64_t(blockIdx.x) - record.first_block);
  const Row& row = call.table.rows[record.first_row];
  const T* x = row.role<const T>(kKey) + block.start;
  unsigned* histogram = dynamic_shared<unsigned>();
  TopkControl control{};
  control.need = block.kept;
  int64_t equal = 0;
  for (int digits = 0; digits < kDigits<T>; ++digits) {
    for (int bin = int(threadIdx.x); bin < kBins; bin += kTileThreads) histogram[bin] = 0;
    __syncthreads();
    for (int64_t start = 0; start < block.numel; start += kTile) {
      const int64_t n = block.numel - start < kTile ? block.numel - start : kTile;
      count_bins(x + start, n, digits, control.threshold, histogram);
    }
    __syncthreads();
    const Bin bin = find_bin(control.need, [&](int b) { return histogram[b]; });
    take_digit<T>(control, record, bin.bin, bin.count, bin.larger);
    equal = bin.count;
  }
  const int64_t slot = record.first_slot + block.first_slot;
  write_items(TopkItems{x, nullptr, block.start, block.numel}, control.threshold, equal,
              control.need, block.kept, static_cast<T*>(call.values) + slot, call.indices + slot);
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) topk_draw_kernel(TopkCall call) {
  const RecordChunk chunk = chunk_at(call.records, call.num_records, int64_t(blockIdx.x));
  const Record& record = call.records[chunk.record];
  if (!record.drawn()) return;
  const Draw draw(record, call.step);
  for (int64_t i = threadIdx.x; i < chunk.count; i += kTileThreads) {
    const int64_t slot = record.first_slot + chunk.first + i, position = draw(chunk.first + i);
    const Place place = place_of(record, call.table.rows, position);
    static_cast<T*>(call.values)[slot] =
        call.table.rows[place.row].role<const T>(kKey)[place.element];
    call.indices[slot] = position;
  }
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) topk_ready_kernel(TopkCall call) {
  const int64_t r = int64_t(blockIdx.x) * kTileThreads + threadIdx.x;
  if (r < call.num_records && at_once(call.records[r])) begin_selection<T>(call, int32_t(r));
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) topk_bins_kernel(TopkCall call, int digits) {
  const auto t = int32_t(blockIdx.x);
  const int32_t record = call.table.rows[call.table.tile_row[t]].group;
  const bool open = at_once(call.records[record]) && call.scratch.controls[record].digits == digits;
  if (!open || (digits == 0 && first_threshold<T>(call, record) == 0)) return;
  add_bins<T>(call, record, items_of<T>(call, t));
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) topk_decide_kernel(TopkCall call, int digits) {
  const auto record = int32_t(blockIdx.x);
  if (!at_once(call.records[record])) return;
  TopkControl& control = call.scratch.controls[record];
  if (control.digits != digits) return;
  uint64_t* histogram = histogram_of(call, record);
  const Bin bin = find_bin(control.need, [&](int b) { return histogram[b]; });
  for (int b = int(threadIdx.x); b < kBins; b += kTileThreads) histogram[b] = 0;
  if (threadIdx.x == 0) {
    take_digit<T>(control, call.records[record], bin.bin, bin.count, bin.larger);
  }
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) topk_list_kernel(TopkCall call) {
  const auto t = int32_t(blockIdx.x);
  const Tile tile = tile_at(call.table, t);
  const int32_t record = call.table.rows[tile.row].group;
  const TopkControl& control = call.scratch.controls[record];
  if (control.listed != Listed::to_be) return;
  list_tile<T>(call, t, record, all_of<T>(call, tile), control.threshold);
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) topk_tally_kernel(TopkCall call) {
  const auto t = int32_t(blockIdx.x);
  const int32_t record = call.table.rows[call.table.tile_row[t]].group;
  if (!at_once(call.records[record])) return;
  const TopkItems items = items_of<T>(call, t);
  const auto threshold = key_t<T>(call.scratch.controls[record].threshold);
  double sums[2] = {0, 0};
  for_rounds(items.count, [&](int, int64_t i, int count) {
    T value[kQuad];
    load_raw(static_cast<const T*>(items.values) + i, count, value);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      sums[0] += k < count && key_of(value[k]) > threshold;
      sums[1] += k < count && key_of(value[k]) == threshold;
    }
  });
  block_sum<kTileThreads>(sums);
  if (threadIdx.x == 0) {
    call.scratch.tiles[t].above = int64_t(sums[0]);
    call.scratch.tiles[t].equal = int64_t(sums[1]);
  }
}

template <class T>
__global__ void __launch_bounds__(kPlaceThreads) topk_place_kernel(TopkCall call) {
  const auto r = int32_t(blockIdx.x);
  const Record& record = call.records[r];
  const TopkControl& control = call.scratch.controls[r];
  // Every thread takes neighbouring tiles.
  const int32_t tiles = at_once(record) ? record.num_tiles : 0;
  const int32_t each = (tiles + kPlaceThreads - 1) / kPlaceThreads;
  const int32_t first = int32_t(threadIdx.x) * each;
  const int32_t mine = tiles - first < each ? tiles - first : each;
  TopkTile* own = call.scratch.tiles + record.first_tile + first;
  long long before[2] = {0, 0}, total[2];  // above and at the threshold
  for (int32_t t = 0; t < mine; ++t) {
    before[0] += own[t].above;
    before[1] += own[t].equal;
  }
  block_scan<kPlaceThreads>(before, total);
  for (int32_t t = 0; t < mine; ++t) {
    const int64_t left = control.need > before[1] ? control.need - before[1] : 0;
    own[t].first_out = before[0] + (control.need < before[1] ? control.need : before[1]);
    own[t].ties = left < own[t].equal ? left : own[t].equal;
    before[0] += own[t].above;
    before[1] += own[t].equal;
  }
  const int64_t found = total[0] + (control.need < total[1] ? control.need : total[1]);
  if (record.select == Select::threshold) {
    for (int64_t slot = found + threadIdx.x; slot < record.slots; slot += kPlaceThreads) {
      static_cast<T*>(call.values)[record.first_slot + slot] = from_real<T>(real_t<T>(0));
      call.indices[record.first_slot + slot] = record.numel;
    }
  }
  if (threadIdx.x != 0) return;
  call.counts[2 * r] = tiles > 0 ? found : record.slots;
  call.counts[2 * r + 1] = int64_t(control.nonfinite);
  if (tiles > 0) end_selection<T>(call, r);
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) topk_write_kernel(TopkCall call) {
  const auto t = int32_t(blockIdx.x);
  const int32_t r = call.table.rows[call.table.tile_row[t]].group;
  const Record& record = call.records[r];
  if (!at_once(record)) return;
  const TopkTile tile = call.scratch.tiles[t];
  if (tile.above + tile.ties == 0 || tile.first_out >= record.slots) return;
  const int64_t slot = record.first_slot + tile.first_out;
  write_items(items_of<T>(call, t), call.scratch.controls[r].threshold, tile.equal, tile.ties,
              record.slots - tile.first_out, static_cast<T*>(call.values) + slot,
              call.indices + slot);
}

}  // namespace

// -------------------------------------------------------------- launchers

// A block a tile, a block of elements, or a record: no result depends on which block takes it.
void topk_select(const TopkCall& call, void* stream) {
  constexpr size_t kShared = kBins * sizeof(unsigned);
  const int64_t tiles = call.table.num_tiles, records = call.num_records;
  const int64_t thousands = (records + kTileThreads - 1) / kTileThreads;
  launch("topk_begin_kernel", topk_begin_kernel, {thousands, kTileThreads}, stream, call);
  visit(call.key, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("topk_first_kernel", topk_first_kernel<T>, {tiles, kTileThreads, kShared}, stream, call);
    launch("topk_blocks_kernel", topk_blocks_kernel<T>, {call.num_blocks, kTileThreads, kShared},
           stream, call);
    if (call.num_drawn > 0) {
      launch("topk_draw_kernel", topk_draw_kernel<T>, {call.num_chunks, kTileThreads}, stream,
             call);
    }
    if (call.num_at_once > 0) {
      launch("topk_ready_kernel", topk_ready_kernel<T>, {thousands, kTileThreads}, stream, call);
      for (int digits = 0; digits < kDigits<T>; ++digits) {
        launch("topk_bins_kernel", topk_bins_kernel<T>, {tiles, kTileThreads, kShared}, stream,
               call, digits);
        launch("topk_decide_kernel", topk_decide_kernel<T>, {records, kTileThreads}, stream, call,
               digits);
        if (digits > 0) continue;
        launch("topk_list_kernel", topk_list_kernel<T>, {tiles, kTileThreads}, stream, call);
      }
      launch("topk_tally_kernel", topk_tally_kernel<T>, {tiles, kTileThreads}, stream, call);
    }
    launch("topk_place_kernel", topk_place_kernel<T>, {records, kPlaceThreads}, stream, call);
    if (call.num_at_once > 0) {
      launch("topk_write_kernel", topk_write_kernel<T>, {tiles, kTileThreads}, stream, call);
    }
  });
}

}  // namespace lb::cuda
