// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Packing and unpacking on the CPU, shared by chunks of slots; the sum, by tiles of the tensors.
#include <cmath>
#include <cstring>

#include "core/draw.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/visit.h"
#include "wire/wire.h"
#include "wire/wire_index.h"
#include "wire/wire_rule.h"

namespace lb {

LB_DECLARE_FOR_ISAS(double wire_size(DType real, const void* values, int64_t n);
                    void wire_encode(DType real, const Record& r, const void* values,
                                     const RecordChunk& chunk, const RandomStream& stream,
                                     uint8_t* bytes);
                    void wire_encode_indices(const Record& r, const int64_t* from,
                                             const RecordChunk& chunk, uint8_t* bytes);
                    void wire_decode(DType real, const Record& r, const uint8_t* bytes,
                                     int64_t first, int64_t n, void* values);
                    void wire_decode_indices(const Record& r, const uint8_t* bytes, int64_t first,
                                             int64_t n, int64_t* indices);
                    void wire_add(DType real, const Record& r, const WireReduce& reduce,
                                  int64_t position, int64_t n, void* sums_of_tile);
                    void wire_finish(DType real, const Row& row, int64_t start, int64_t n,
                                     const float* scale))

namespace cpu {

namespace {

// Calls body(tile, row, record) for the tiles of this thread.
template <class Body>
void for_tiles(const WireWork& work, Body body) {
  const Span mine = share(work.table, {0, work.table.num_tiles}, thread_index(), team_size());
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    const Tile tile = tile_at(work.table, int32_t(t));
    const Row& row = work.table.rows[tile.row];
    body(int32_t(t), tile, row, work.records[row.group]);
  }
}

void* at(const WireWork& work, void* array, int64_t element) {
  return static_cast<char*>(array) + element * size_of(work.real);
}

// ---- Packing -----------------------------------------------------------------------------------

// The part of the counts of blk16 that goes with a chunk.
void pack_ends(const Record& record, const int64_t* indices, const RecordChunk& chunk,
               uint8_t* bytes) {
  const int64_t blocks = num_index_blocks(record), chunks = num_chunks(record);
  const int64_t first = blocks * chunk.number / chunks, last = blocks * (chunk.number + 1) / chunks;
  uint32_t* ends = section<uint32_t>(bytes, record.indices_at);
  for (int64_t b = first; b < last; ++b) ends[b] = count_below_end(record, indices, b);
}

void pack_chunk(const WireWork& work, const WirePack& pack, const RecordChunk& chunk) {
  const Record& record = work.records[chunk.record];
  uint8_t* bytes = pack.payload + record.offset;
  visit_real(work.real, [&](auto type) {
    using R = typename decltype(type)::type;
    LB_FOR_ISA(wire_encode)(work.real, record, packed_from<R>(work, pack, record) + chunk.first,
                            chunk, rounding_stream(record, pack.step, pack.rank), bytes);
  });
  if (record.index == WireIndex::none) return;
  const int64_t* indices = pack.indices + record.first_slot;
  LB_FOR_ISA(wire_encode_indices)(record, indices + chunk.first, chunk, bytes);
  if (record.index == WireIndex::blk16) pack_ends(record, indices, chunk, bytes);
}

// What of a record is not in its chunks.
void pack_rest(const WireWork& work, const WirePack& pack, int32_t r) {
  const Record& record = work.records[r];
  uint8_t* bytes = pack.payload + record.offset;
  for (int word = 0; word < kHeaderWords; ++word) {
    section<uint32_t>(bytes, 0)[word] =
        header_word(record, pack.step, pack.counts[2 * r + 1], word);
  }
  if (record.value == WireValue::sign) {
    double size = 0;
    for (int32_t t = 0; t < record.num_tiles; ++t) {
      size += pack.partials[2 * int64_t(record.first_tile + t)];
    }
    *section<float>(bytes, record.scales_at) =
        record.numel == 0 ? 0.0f : float(size / double(record.numel));
  }
  for (int part = 0; part < 3; ++part) {
    const int64_t end = padding_at(record, part);
    std::memset(bytes + end, 0, size_t(aligned(end) - end));
  }
  if (record.index == WireIndex::blk16 && record.slots == 0) {
    std::memset(bytes + record.indices_at, 0, size_t(4 * num_index_blocks(record)));
  }
}

// ---- The sum -----------------------------------------------------------------------------------

// A chunk of drawn slots, whose indices all ranks share, a piece after the other.
template <class R>
void add_drawn(const WireWork& work, const WireReduce& reduce, const Record& record,
               const Draw& draw, int64_t chunk) {
  constexpr int64_t kPiece = 512;
  const auto decode = LB_FOR_ISA(wire_decode);
  const R share = R(1 / double(reduce.world));
  const int64_t begin = chunk * record.scale_block;
  const int64_t end = std::min(begin + record.scale_block, record.slots);
  for (int64_t first = begin; first < end; first += kPiece) {
    const int64_t count = std::min(kPiece, end - first);
    R* places[kPiece];
    R sums[kPiece], values[kPiece];
    for (int64_t i = 0; i < count; ++i) {
      places[i] = sum_at<R>(work, record, draw(first + i));
      __builtin_prefetch(places[i], 1);  // they are all over the memory
    }
    for (int64_t i = 0; i < count; ++i) sums[i] = *places[i];
    for (int64_t rank = 0; rank < reduce.world; ++rank) {
      decode(work.real, record, record_from(reduce, record, rank), first, count, values);
      for (int64_t i = 0; i < count; ++i) sums[i] += values[i] * share;
    }
    for (int64_t i = 0; i < count; ++i) *places[i] = sums[i];
  }
}

void add_all_drawn(const WireWork& work, const WireReduce& reduce) {
  for (int32_t r = 0; r < work.num_records; ++r) {
    const Record& record = work.records[r];
    if (!record.drawn() || record.slots == 0) continue;
    const Draw draw(record, header_step(record_from(reduce, record, 0)));
    visit_real(work.real, [&](auto type) {
      using R = typename decltype(type)::type;
#pragma omp for schedule(static) nowait
      for (int64_t chunk = 0; chunk < num_chunks(record); ++chunk) {
        add_drawn<R>(work, reduce, record, draw, chunk);
      }
    });
  }
}

// Says that nothing was added, to a loss scaler that looks for what is not finite.
void spoil(const WireWork& work) {
  if (work.table.num_tiles == 0) return;
  const Row& row = work.table.rows[work.table.tile_row[0]];
  visit(row.dtypes[kOut], [&](auto type) {
    using T = typename decltype(type)::type;
    *row.role<T>(kOut) = from_real<T>(real_t<T>(NAN));
  });
}

}  // namespace

void wire_pack(const Plan& plan, const WireWork& work, const WirePack& pack) {
  const auto size = LB_FOR_ISA(wire_size);
#pragma omp parallel num_threads(threads_for(plan.numel()))
  {
    if (work.num_signs > 0) {
      for_tiles(work, [&](int32_t t, const Tile& tile, const Row& row, const Record& record) {
        if (record.value != WireValue::sign) return;
        pack.partials[2 * int64_t(t)] =
            size(work.real, at(work, row.data[kKey], tile.start), tile.numel);
      });
#pragma omp barrier
    }
#pragma omp for schedule(static) nowait
    for (int64_t c = 0; c < work.num_chunks; ++c)
      pack_chunk(work, pack, chunk_at(work.records, work.num_records, c));
#pragma omp for schedule(static)
    for (int32_t r = 0; r < work.num_records; ++r) pack_rest(work, pack, r);
  }
}

void wire_unpack(const Plan& plan, const WireWork& work, const WireUnpack& unpack) {
  const auto decode = LB_FOR_ISA(wire_decode);
  const auto decode_indices = LB_FOR_ISA(wire_decode_indices);
#pragma omp parallel for schedule(static) num_threads(threads_for(plan.numel()))
  for (int64_t c = 0; c < work.num_chunks; ++c) {
    const RecordChunk chunk = chunk_at(work.records, work.num_records, c);
    const Record& record = work.records[chunk.record];
    const uint8_t* bytes = unpack.payload + record.offset;
    visit_real(work.real, [&](auto type) {
      using R = typename decltype(type)::type;
      decode(work.real, record, bytes, chunk.first, chunk.count,
             unpacked_to<R>(work, unpack, record) + chunk.first);
    });
    if (unpack.indices == nullptr || (record.dense() && unpack.dense_in_keys)) continue;
    int64_t* indices = unpack.indices + record.first_slot;
    const int64_t last = chunk.first + chunk.count;
    if (record.drawn()) {
      const Draw draw(record, header_step(bytes));
      for (int64_t slot = chunk.first; slot < last; ++slot) indices[slot] = draw(slot);
    } else if (record.dense()) {
      for (int64_t slot = chunk.first; slot < last; ++slot) indices[slot] = slot;
    } else {
      decode_indices(record, bytes, chunk.first, chunk.count, indices + chunk.first);
    }
  }
}

void wire_inspect(const WireWork& work, const WireReduce& reduce) {
  *reduce.stop = 0;
  for (int64_t rank = 0; rank < reduce.world; ++rank) {
    int64_t nonfinite = 0;
    for (int32_t r = 0; r < work.num_records; ++r) {
      nonfinite += header_nonfinite(record_from(reduce, work.records[r], rank));
    }
    reduce.nonfinite[rank] = nonfinite;
    if (reduce.skip && nonfinite > 0) *reduce.stop = 1;
  }
}

void wire_reduce(const Plan& plan, const WireWork& work, const WireReduce& reduce) {
  const auto add = LB_FOR_ISA(wire_add);
  const auto finish = LB_FOR_ISA(wire_finish);
  const bool stop = *reduce.stop != 0;
#pragma omp parallel num_threads(threads_for(plan.numel()))
  {
    for_tiles(work, [&](int32_t, const Tile& tile, const Row& row, const Record& record) {
      void* sums = at(work, row.data[kSum], tile.start);
      if (reduce.zero) std::memset(sums, 0, size_t(tile.numel * size_of(work.real)));
      if (record.drawn()) return;
      const int64_t position = position_of(record, row, tile.start);
      if (!stop) add(work.real, record, reduce, position, tile.numel, sums);
      if (reduce.outs) finish(work.real, row, tile.start, tile.numel, reduce.scale);
    });
    if (work.num_drawn > 0) {
#pragma omp barrier
      if (!stop) add_all_drawn(work, reduce);
#pragma omp barrier
      for_tiles(work, [&](int32_t, const Tile& tile, const Row& row, const Record& record) {
        if (!record.drawn() || !reduce.outs) return;
        finish(work.real, row, tile.start, tile.numel, reduce.scale);
      });
    }
  }
  if (stop && reduce.outs) spoil(work);
}

}  // namespace cpu
}  // namespace lb
