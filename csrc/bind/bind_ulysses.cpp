// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bind/step_plan.h"
#include "core/huge_pages.h"
#include "ulysses/ulysses_wire.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

int64_t itemsize(const TensorView& view) { return view.dlpack_bits / 8; }

RowStrides strides_of(const TensorView& view) {
  const int64_t size = itemsize(view);
  if (view.strides == nullptr) {
    const int64_t head = view.shape[3] * size, batch = view.shape[2] * head;
    return {view.shape[1] * batch, batch, head};
  }
  return {view.strides[0] * size, view.strides[1] * size, view.strides[2] * size};
}

// Tensors of [tokens, batch, heads, dim] with rows in one piece, all of the same tokens and batch.
void check_heads(const ArrayList& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorView& x = tensors[i];
    if (x.ndim != 4) {
      throw ValueError(tensors.where(i) + " has shape " + describe_shape(x) +
                       ", expected 4 dimensions: [tokens, batch, heads, dim].");
    }
    if (x.shape[0] != tensors[0].shape[0] || x.shape[1] != tensors[0].shape[1]) {
      throw ValueError(tensors.where(i) + " has shape " + describe_shape(x) +
                       ", expected the tokens and batch of " + tensors.label(0) + ", " +
                       describe_shape(tensors[0]) + ".");
    }
    if (x.strides != nullptr && x.numel > 0 && x.shape[3] > 1 && x.strides[3] != 1) {
      throw ValueError(tensors.where(i) + " has strides " + describe_strides(x) +
                       ", expected 1 in the last dimension. Pass x.contiguous().");
    }
  }
}

// All of one dtype, on one device.
void check_alike(const ArrayList& a, const ArrayList& tensors) {
  check_same_device(a, tensors);
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].dlpack_code == tensors[0].dlpack_code && a[i].dlpack_bits == tensors[0].dlpack_bits) {
      continue;
    }
    throw TypeError(a.where(i) + " has dtype " + dtype_name(a[i]) + ", expected " +
                    dtype_name(tensors[0]) + " like " + tensors.label(0) + ".");
  }
}

// The counts give every head of every tensor away, `replicas` times each.
void check_counts(const char* op, const Wire& wire, const ArrayList& tensors, size_t messages) {
  const auto fail = [&](const std::string& what) {
    throw ValueError(std::string(op) + ": " + what);
  };
  const size_t blocks = messages * tensors.size();
  if (wire.counts.empty() || wire.counts.size() % blocks != 0) {
    fail("counts has " + std::to_string(wire.counts.size()) + " numbers, expected a multiple of " +
         std::to_string(blocks) + ": [messages, ranks, tensors].");
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (wire.tensors[i].replicas < 1) {
      fail("replicas[" + std::to_string(i) + "]: got " + std::to_string(wire.tensors[i].replicas) +
           ", expected 1 or more.");
    }
    int64_t given = 0;
    for (size_t at = i; at < wire.counts.size(); at += tensors.size()) {
      if (wire.counts[at] < 0)
        fail("counts: got " + std::to_string(wire.counts[at]) + ", expected 0 or more.");
      given += wire.counts[at];
    }
    const HeadTensor& tensor = wire.tensors[i];
    if (given % tensor.replicas != 0 || given / tensor.replicas != tensor.heads) {
      fail("counts of " + tensors.label(i) + " add up to " + std::to_string(given) +
           ", expected its " + std::to_string(wire.tensors[i].heads) + " heads times replicas[" +
           std::to_string(i) + "] = " + std::to_string(wire.tensors[i].replicas) + ".");
    }
  }
}

Wire make_wire(const char* op, const ArrayList& tensors, const ArrayList& messages,
               std::vector<int64_t> counts, const std::vector<int64_t>& replicas) {
  if (tensors.empty() || messages.empty()) {
    throw ValueError(std::string(op) + ": " + (tensors.empty() ? "tensors" : "messages") +
                     " is empty, expected one or more.");
  }
  if (replicas.size() != tensors.size()) {
    throw ValueError(std::string(op) + ": replicas has " + std::to_string(replicas.size()) +
                     " numbers, expected " + std::to_string(tensors.size()) +
                     ", one for each of tensors.");
  }
  check_heads(tensors);
  check_alike(tensors, tensors);
  check_alike(messages, tensors);
  Wire wire{};
  wire.tokens = tensors[0].shape[0];
  wire.batch = tensors[0].shape[1];
  wire.counts = std::move(counts);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorView& x = tensors[i];
    wire.tensors.push_back({static_cast<char*>(x.data), x.shape[2], x.shape[3] * itemsize(x),
                            replicas[i], strides_of(x)});
  }
  check_counts(op, wire, tensors, messages.size());
  wire.ranks = int64_t(wire.counts.size() / (messages.size() * tensors.size()));
  for (size_t k = 0; k < messages.size(); ++k) {
    const TensorView& message = messages[k];
    const int64_t expected = wire.message_bytes(k) / itemsize(message);
    if (message.ndim != 1 || message.numel != expected) {
      throw ValueError(messages.where(k) + " has shape " + describe_shape(message) +
                       ", expected [" + std::to_string(expected) + "].");
    }
    wire.messages.push_back(static_cast<char*>(message.data));
  }
  check_dense(messages);
  return wire;
}

// What is about to be written, in most cases for the first time.
void prepare(const ArrayList& written) {
  constexpr int64_t kLarge = 16 * kHugePage;
  for (const TensorView& x : written) {
    const int64_t bytes = x.numel * itemsize(x);
    if (is_host(x.device) && bytes >= kLarge && x.contiguous) prefer_huge_pages(x.data, bytes);
  }
}

void ulysses_pack(py::handle tensors_, py::handle messages_, std::vector<int64_t> counts,
                  const std::vector<int64_t>& replicas) {
  constexpr const char* op = "ulysses_pack";
  // Views.
  const ArrayList tensors(op, "tensors", tensors_);
  const ArrayList messages(op, "messages", messages_, &tensors);

  // Checks.
  const Wire wire = make_wire(op, tensors, messages, std::move(counts), replicas);
  check_writes({&messages}, {&tensors});

  // Device, stream, memory, call.
  prepare(messages);
  const std::vector<Rows> rows = pack_rows(wire);
  const auto count = int64_t(rows.size());
  run(
      op, tensors[0].device, tensors.stream(), [&] { cpu::ulysses_rows(rows.data(), count); },
      [&]([[maybe_unused]] void* s) { LB_CUDA_CALL(cuda::ulysses_rows(rows.data(), count, s)); });
}

// The sums of the tensors that have copies of their heads.
std::vector<HeadSums> head_sums(const ArrayList& tensors, const Wire& wire,
                                const std::vector<std::vector<HeadCopies>>& copies) {
  std::vector<HeadSums> all;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const HeadTensor& tensor = wire.tensors[i];
    if (tensor.replicas == 1 || tensors[i].numel == 0) continue;
    if (tensors[i].dtype == DType::other || size_of(tensors[i].dtype) < 2 ||
        tensors[i].dtype == DType::int64) {
      throw TypeError(tensors.where(i) + " has dtype " + dtype_name(tensors[i]) +
                      ", expected float32, float16, bfloat16 or float64, to add up " +
                      std::to_string(tensor.replicas) + " copies of each head.");
    }
    if (copies[i].size() > size_t(kUlyssesCopies)) {
      throw ValueError(tensors.where(i) + " has copies of its heads in " +
                       std::to_string(copies[i].size()) + " blocks, expected at most " +
                       std::to_string(kUlyssesCopies) + ".");
    }
    all.push_back({copies[i].data(), int64_t(copies[i].size()), tensor.data, tensors[i].dtype,
                   wire.tokens, wire.batch, tensor.heads, tensors[i].shape[3], tensor.strides,
                   tensor.replicas});
  }
  return all;
}

void ulysses_unpack(py::handle messages_, py::handle tensors_, std::vector<int64_t> counts,
                    const std::vector<int64_t>& replicas) {
  constexpr const char* op = "ulysses_unpack";
  // Views.
  const ArrayList messages(op, "messages", messages_);
  const ArrayList tensors(op, "tensors", tensors_, &messages);

  // Checks.
  const Wire wire = make_wire(op, tensors, messages, std::move(counts), replicas);
  std::vector<std::vector<HeadCopies>> copies;
  for (size_t i = 0; i < tensors.size(); ++i) copies.push_back(wire_copies(wire, i));
  const std::vector<HeadSums> sums = head_sums(tensors, wire, copies);
  check_no_overlap(tensors);
  check_writes({&tensors}, {&messages});

  // Device, stream, memory, call.
  prepare(tensors);
  const std::vector<Rows> rows = unpack_rows(wire);
  const auto count = int64_t(rows.size());
  run(
      op, messages[0].device, messages.stream(),
      [&] {
        cpu::ulysses_rows(rows.data(), count);
        for (const HeadSums& sum : sums) cpu::ulysses_sum(sum);
      },
      [&]([[maybe_unused]] void* s) {
        LB_CUDA_CALL(cuda::ulysses_rows(rows.data(), count, s));
        for ([[maybe_unused]] const HeadSums& sum : sums) LB_CUDA_CALL(cuda::ulysses_sum(sum, s));
      });
}

}  // namespace

void register_ulysses(py::module_& module) {
  module.def("ulysses_pack", &ulysses_pack, py::arg("tensors"), py::arg("messages"),
             py::arg("counts"), py::arg("replicas"),
             "Writes the messages out of tensors [tokens, batch, heads, dim]. counts is\n"
             "[messages, ranks, tensors]. See largebatch.ops.");
  module.def("ulysses_unpack", &ulysses_unpack, py::arg("messages"), py::arg("tensors"),
             py::arg("counts"), py::arg("replicas"),
             "Writes the tensors out of the messages, adding up copies. See largebatch.ops.");
}

}  // namespace lb::bind
