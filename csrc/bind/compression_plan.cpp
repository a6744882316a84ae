// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/compression_plan.h"

#include <pybind11/stl.h>

#include <utility>

#include "bind/record_reader.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

constexpr const char* kIndexNames[] = {"none", "abs32", "blk16", "blk12"};

}  // namespace

CompressionPlan::CompressionPlan(std::vector<int64_t> numels, const py::list& records)
    : numels_(std::move(numels)) {
  for (const int64_t numel : numels_) {
    if (numel < 0) throw ValueError("CompressionPlan: numels: got a negative number.");
  }
  size_t first = 0;
  int64_t elements = 0;
  for (size_t index = 0; index < records.size(); ++index) {
    size_t tensors;
    Record r = read_record(index, records[index].cast<py::dict>(), numels_, first, tensors);
    r.first_row = int32_t(first);
    r.num_rows = int32_t(tensors);
    r.first_tile = int32_t(tiles_);
    for (size_t t = first; t < first + tensors; ++t) {
      record_of_.push_back(int32_t(index));
      tiles_ += (numels_[t] + kTile - 1) / kTile;
    }
    r.num_tiles = int32_t(tiles_) - r.first_tile;
    r.first_element = elements;
    r.first_slot = slots_;
    r.first_chunk = chunks_;
    r.first_block = blocks_;
    r.offset = bytes_;
    if (at_once(r)) {
      r.first_candidate = candidates_;
      r.capacity = topk_capacity(r.numel, r.slots);
      r.histogram = histograms_++;
      candidates_ += r.capacity;
    }
    drawn_ += r.drawn();
    signs_ += r.value == WireValue::sign;
    first += tensors;
    elements += r.numel;
    slots_ += r.slots;
    chunks_ += num_chunks(r);
    blocks_ += r.num_blocks;
    bytes_ += r.bytes;
    records_.push_back(r);
  }
  if (first != numels_.size()) {
    throw ValueError("CompressionPlan: records: got " + std::to_string(first) +
                     " tensors in all, expected " + std::to_string(numels_.size()) +
                     " like numels.");
  }
}

py::list CompressionPlan::layout() const {
  using namespace py::literals;
  py::list records;
  for (const Record& r : records_) {
    records.append(py::dict("offset"_a = r.offset, "bytes"_a = r.bytes, "scales_at"_a = r.scales_at,
                            "values_at"_a = r.values_at, "indices_at"_a = r.indices_at,
                            "numel"_a = r.numel, "slots"_a = r.slots, "first_slot"_a = r.first_slot,
                            "indices"_a = kIndexNames[int(r.index)]));
  }
  return records;
}

void CompressionPlan::check_tensors(const ArrayList& list, bool optional) const {
  if (optional && list.empty()) return;
  if (list.size() != numels_.size()) {
    throw ValueError(std::string(list.op()) + ": " + list.argument() + " has " +
                     std::to_string(list.size()) + " tensors, expected " +
                     std::to_string(numels_.size()) + ", those of the plan.");
  }
  for (size_t t = 0; t < list.size(); ++t) {
    if (list[t].numel == numels_[t]) continue;
    throw ValueError(list.where(t) + " has shape " + describe_shape(list[t]) + ", expected " +
                     std::to_string(numels_[t]) + " elements, as the plan was made for.");
  }
  check_dense(list);
}

void CompressionPlan::check_state(const FeedbackHyper& hyper, DType real,
                                  const RecordArrays& arrays) const {
  const std::pair<const ArrayList*, bool> state[] = {{&arrays.errors, has_error(hyper.method)},
                                                     {&arrays.shifts, has_shift(hyper.method)},
                                                     {&arrays.momenta, has_momentum(hyper)}};
  for (const auto& [list, needed] : state) {
    if (list->empty() && needed && !numels_.empty()) {
      throw ValueError(std::string(list->op()) + ": " + list->argument() +
                       " is empty, expected one tensor for each of the plan's with this method.");
    }
    check_tensors(*list, true);
    check_dtype(*list, {real});
  }
}

void CompressionPlan::check_selection(const ArrayList& values, const ArrayList& indices,
                                      const ArrayList& counts, const ArrayList& warm,
                                      DType key) const {
  const int64_t pairs = 2 * int64_t(records_.size());
  check_buffer(values, key, slots_);
  check_buffer(indices, DType::int64, slots_);
  check_buffer(counts, DType::int64, pairs);
  check_buffer(warm, DType::float64, pairs);
}

void CompressionPlan::check_payloads(const ArrayList& payloads, int64_t world) const {
  const TensorView& view = payloads[0];
  if (view.dlpack_code != 1 || view.dlpack_bits != 8) {
    throw TypeError(payloads.where(0) + " has dtype " + dtype_name(view) + ", expected uint8.");
  }
  check_dense(payloads);
  if (view.numel != world * bytes_) {
    throw ValueError(payloads.where(0) + " has shape " + describe_shape(view) + ", expected " +
                     std::to_string(world * bytes_) + " bytes, " + std::to_string(world) +
                     " times those of the plan.");
  }
  if (reinterpret_cast<uintptr_t>(view.data) % kWireAlign != 0) {
    throw ValueError(payloads.where(0) + " is not aligned at 16 bytes. Pass a tensor of its own.");
  }
}

bool CompressionPlan::has_dense() const {
  for (const Record& r : records_) {
    if (r.dense()) return true;
  }
  return false;
}

void check_buffer(const ArrayList& list, DType dtype, int64_t elements) {
  if (list.empty()) return;
  check_dtype(list, {dtype});
  check_dense(list);
  if (list[0].numel != elements) {
    throw ValueError(list.where(0) + " has shape " + describe_shape(list[0]) + ", expected " +
                     std::to_string(elements) + " elements.");
  }
}

void check_same_dtype(const ArrayList& list, DType dtype) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].dtype == dtype) continue;
    throw TypeError(list.where(i) + " has dtype " + dtype_name(list[i]) + ", expected " +
                    name(dtype) + " like " + list.label(0) + ".");
  }
}

void check_same_order(const ArrayList& list, const ArrayList& like) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].contiguous && like[i].contiguous) continue;
    check_layout(list, i, like, i);
  }
}

bool same_arrays(const ArrayList& a, const ArrayList& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].data != b[i].data || a[i].dtype != b[i].dtype) return false;
  }
  return true;
}

RecordPlan& CompressionPlan::prepare(Kind kind, const char* op, Device device, void* stream,
                                     const RecordArrays& arrays) {
  std::vector<Entry> entries(numels_.size(), Entry{});
  for (size_t t = 0; t < numels_.size(); ++t) {
    Entry& entry = entries[t];
    entry.numel = numels_[t];
    entry.group = record_of_[t];
    if (!arrays.grads.empty()) {
      entry.grad = arrays.grads[t].data;
      entry.grad_dtype = arrays.grads[t].dtype;
    }
    const std::pair<RecordRole, const ArrayList*> roles[] = {
        {kKey, &arrays.keys},         {kError, &arrays.errors}, {kShift, &arrays.shifts},
        {kMomentum, &arrays.momenta}, {kSum, &arrays.sums},     {kOut, &arrays.outs}};
    for (const auto& [role, list] : roles) {
      if (list->empty()) continue;
      entry.data[role] = (*list)[t].data;
      entry.dtypes[role] = (*list)[t].dtype;
    }
  }
  plans_[kind].prepare(op, device, stream, std::move(entries), records_);
  return plans_[kind];
}

WireWork CompressionPlan::wire_work(const RecordPlan& plan, DType real) const {
  const auto& workspace = plan.workspace();
  return {
      workspace.groups, int32_t(records_.size()), chunks_, workspace.table(), real, signs_, drawn_};
}

TopkCall CompressionPlan::topk_call(const RecordPlan& plan, DType key, const ArrayList& values,
                                    const ArrayList& indices, const ArrayList& counts,
                                    const ArrayList& warm) const {
  TopkCall call{};
  call.records = plan.workspace().groups;
  call.num_records = int32_t(records_.size());
  call.num_blocks = blocks_;
  call.num_chunks = chunks_;
  call.num_drawn = drawn_;
  call.num_at_once = histograms_;
  call.table = plan.workspace().table();
  call.scratch = scratch_;
  call.key = key;
  call.values = values[0].data;
  call.indices = static_cast<int64_t*>(indices[0].data);
  call.counts = static_cast<int64_t*>(counts[0].data);
  call.warm = data_or_null<TopkWarm>(warm);
  return call;
}

void CompressionPlan::make_room(const char* op, Device device, void* stream) {
  require_backend(op, device);
  if (scratch_block_ && scratch_device_ == device) return;
  if (recording(device, stream)) {
    throw ValueError(std::string(op) + ": a graph capture cannot make room for the first call. " +
                     "Run one step before it.");
  }
  int64_t used = 0;
  char* block = nullptr;
  const auto lay_out = [&] {
    used = 0;
    const auto take = [&](auto*& array, int64_t elements, int64_t size) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(block + used);
      used += (elements * size + 63) / 64 * 64;
    };
    take(scratch_.histograms, histograms_ * int64_t(kBins), sizeof(uint64_t));
    take(scratch_.controls, int64_t(records_.size()), sizeof(TopkControl));
    take(stop_, 1, sizeof(int32_t));
    take(scratch_.tiles, tiles_, sizeof(TopkTile));
    take(scratch_.positions, candidates_, sizeof(int64_t));
    char *values, *decoded;
    take(values, candidates_, sizeof(double));
    take(decoded, slots_, sizeof(double));
    scratch_.values = values;
    decoded_ = decoded;
  };
  lay_out();
  scratch_block_ = allocate(used, device);
  block = static_cast<char*>(data_of(scratch_block_));
  lay_out();
  scratch_device_ = device;
  scratch_watch_ = Watch();
  scratch_watch_.add(block, size_t(used), [] { return "scratch"; });
  // Histograms begin at 0 and are left so; the rest is NaN, to who reads before writing.
  if (LB_SIMT) scratch_block_.attr("fill_")(0xff);
  const int64_t zeroed = histograms_ * int64_t(kBins * sizeof(uint64_t));
  scratch_block_[py::slice(0, zeroed, 1)].attr("zero_")();
}

}  // namespace lb::bind
