// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The Python object that compresses the gradients of a list of tensors: what is kept of each, the
// layout of the payload, and the memory that the kernels work in.
#pragma once

#include <vector>

#include "bind/record_reader.h"
#include "bind/step_plan.h"
#include "topk/topk.h"
#include "wire/wire.h"

namespace lb::bind {

struct NoScalars {};
using RecordPlan = StepPlan<Record, NoScalars>;

// The arrays of a call, one list a role; absent roles are empty lists.
struct RecordArrays {
  const ArrayList &grads, &keys, &errors, &shifts, &momenta, &sums, &outs;
};

class CompressionPlan {
 public:
  CompressionPlan(std::vector<int64_t> numels, const pybind11::list& records);

  int64_t payload_bytes() const { return bytes_; }
  int64_t slots() const { return slots_; }
  pybind11::list layout() const;

  void select(pybind11::handle tensors, pybind11::handle values, pybind11::handle indices,
              pybind11::handle counts, pybind11::handle warm, int64_t step);
  void encode(pybind11::handle grads, pybind11::handle keys, pybind11::handle errors,
              pybind11::handle shifts, pybind11::handle momenta, const pybind11::dict& method,
              int64_t step, int64_t rank, pybind11::handle values, pybind11::handle indices,
              pybind11::handle counts, pybind11::handle payload, pybind11::handle warm);
  void pack(pybind11::handle keys, pybind11::handle values, pybind11::handle indices,
            pybind11::handle counts, int64_t step, int64_t rank, pybind11::handle payload);
  void unpack(pybind11::handle payload, pybind11::handle values, pybind11::handle indices);
  void decode(pybind11::handle payloads, int64_t rank, pybind11::handle keys,
              pybind11::handle errors, pybind11::handle shifts, pybind11::handle momenta,
              pybind11::handle sums, pybind11::handle outs, pybind11::handle indices,
              const pybind11::dict& method, pybind11::handle nonfinite, pybind11::handle scale,
              bool skip, bool zero);

 private:
  // One for each kind of call: their arrays differ, and a plan is made again for other ones.
  enum Kind { kSelect, kEncode, kPack, kUnpack, kDecode, kKinds };

  void check_tensors(const ArrayList& list, bool optional) const;
  void check_state(const FeedbackHyper& hyper, DType real, const RecordArrays& arrays) const;
  void check_selection(const ArrayList& values, const ArrayList& indices, const ArrayList& counts,
                       const ArrayList& warm, DType key) const;
  void check_payloads(const ArrayList& payloads, int64_t world) const;
  bool has_dense() const;
  RecordPlan& prepare(Kind kind, const char* op, Device device, void* stream,
                      const RecordArrays& arrays);
  void make_room(const char* op, Device device, void* stream);
  WireWork wire_work(const RecordPlan& plan, DType real) const;
  TopkCall topk_call(const RecordPlan& plan, DType key, const ArrayList& values,
                     const ArrayList& indices, const ArrayList& counts,
                     const ArrayList& warm) const;

  std::vector<int64_t> numels_;
  std::vector<Record> records_;
  std::vector<int32_t> record_of_;  // [tensors]
  int64_t slots_ = 0, chunks_ = 0, blocks_ = 0, candidates_ = 0, tiles_ = 0, bytes_ = 0;
  int32_t histograms_ = 0, drawn_ = 0, signs_ = 0;

  RecordPlan plans_[kKinds];
  pybind11::object scratch_block_;
  Device scratch_device_{};
  Watch scratch_watch_;
  TopkScratch scratch_{};
  void* decoded_ = nullptr;  // [slots] what this rank has sent
  int32_t* stop_ = nullptr;
};

// An array of so many elements of a type; nothing is asked of an empty list.
void check_buffer(const ArrayList& list, DType dtype, int64_t elements);
void check_same_dtype(const ArrayList& list, DType dtype);
// Elements of both lie in the same order: contiguous, or in one layout.
void check_same_order(const ArrayList& list, const ArrayList& like);
// Whether two arguments are the same memory, array by array.
bool same_arrays(const ArrayList& a, const ArrayList& b);
// The type that arithmetic on the gradients is done in.
constexpr DType real_of(DType dtype) {
  return dtype == DType::float64 ? DType::float64 : DType::float32;
}

}  // namespace lb::bind
