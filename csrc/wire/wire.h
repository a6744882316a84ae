// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The wire format of what compressors keep: packing, unpacking, and the sum of the payloads of all
// ranks. The format, to the bit, is in docs/compression.md and reference/wire.py.
//
// Of a record that keeps `slots` of `numel` elements: packing reads its values and indices and
// writes the payload; unpacking the reverse; the sum of W payloads reads all of them, and reads and
// writes the tensors once. Ranks are added in their order, without atomics: the same bits on every
// run and on every rank. The scale of signs comes of a sum in fp64, in a fixed order as well.
// Payloads begin at a multiple of 16 bytes, tensors anywhere. Allocates nothing.
#pragma once

#include "core/plan.h"
#include "core/record.h"

namespace lb {

struct WireWork {
  const Record* records;  // [num_records]
  int32_t num_records;
  int64_t num_chunks;  // of all records
  Table table;         // Row::group is the record of a tensor
  DType real;          // R: float32 or float64
  int32_t num_signs;   // records whose values are signs
  int32_t num_drawn;   // records whose indices are drawn
};

struct WirePack {
  const void* values;      // [slots] R, of the records that are not dense; those are in kKey
  const int64_t* indices;  // [slots] positions in the record; unused where index is none
  const int64_t* counts;   // [num_records, 2] found, not finite
  int64_t step, rank;
  double* partials;  // [num_tiles, 2] scratch
  uint8_t* payload;  // [payload bytes] every byte is written
};

struct WireUnpack {
  const uint8_t* payload;  // drawn indices go by the step in it
  void* values;            // [slots] R
  int64_t* indices;        // [slots]; may be null
  bool dense_in_keys;      // dense records go to kKey, and not to values and indices
};

struct WireReduce {
  const uint8_t* payloads;  // [world, payload_bytes]
  int64_t world, payload_bytes;
  const float* scale;  // outs are sums times this; may be null
  bool skip;           // a number that is not finite, on any rank, stops it
  bool zero;           // sums begin at 0
  bool outs;           // there is a kOut, which may be kSum
  int64_t* nonfinite;  // [world] from the headers
  int32_t* stop;       // [1] 1: nothing is added, and the first element of kOut becomes NaN
};

namespace cpu {
void wire_pack(const Plan& plan, const WireWork& work, const WirePack& pack);
void wire_unpack(const Plan& plan, const WireWork& work, const WireUnpack& unpack);
// nonfinite and stop, before anything else is done with the payloads.
void wire_inspect(const WireWork& work, const WireReduce& reduce);
void wire_reduce(const Plan& plan, const WireWork& work, const WireReduce& reduce);
}  // namespace cpu
namespace cuda {
void wire_pack(const WireWork& work, const WirePack& pack, void* stream);
void wire_unpack(const WireWork& work, const WireUnpack& unpack, void* stream);
void wire_inspect(const WireWork& work, const WireReduce& reduce, void* stream);
void wire_reduce(const WireWork& work, const WireReduce& reduce, void* stream);
}  // namespace cuda

// ---- What both backends ask --------------------------------------------------------------------

template <class T>
struct Real {
  using type = T;
};

// From R known at run time to a type known at compile time: f(Real<R>{}).
template <class F>
LB_HD void visit_real(DType real, F f) {
  if (real == DType::float64) return f(Real<double>{});
  f(Real<float>{});
}

// The record of a rank's payload.
LB_HD const uint8_t* record_from(const WireReduce& reduce, const Record& record, int64_t rank) {
  return reduce.payloads + rank * reduce.payload_bytes + record.offset;
}

// What a record's values are packed from, and unpacked to.
template <class R>
LB_HD const R* packed_from(const WireWork& work, const WirePack& pack, const Record& record) {
  if (record.dense()) return work.table.rows[record.first_row].role<const R>(kKey);
  return static_cast<const R*>(pack.values) + record.first_slot;
}
template <class R>
LB_HD R* unpacked_to(const WireWork& work, const WireUnpack& unpack, const Record& record) {
  if (record.dense() && unpack.dense_in_keys) {
    return work.table.rows[record.first_row].role<R>(kKey);
  }
  return static_cast<R*>(unpack.values) + record.first_slot;
}

// The sum of an element of a record.
template <class R>
LB_HD R* sum_at(const WireWork& work, const Record& record, int64_t position) {
  const Place place = place_of(record, work.table.rows, position);
  return work.table.rows[place.row].role<R>(kSum) + place.element;
}

}  // namespace lb
