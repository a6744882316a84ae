// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/step_plan.h"
#include "core/sq_sum.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

struct None {};  // no hyper-parameters, no scalars: only table and sums

void sq_sum(py::handle tensors_, py::handle sums_) {
  constexpr const char* op = "multi_tensor_sq_sum";
  const ArrayList tensors(op, "tensors", tensors_);
  const ArrayList sums = ArrayList::single(op, "sums", sums_, &tensors);
  check_dtype(tensors, {DType::float32, DType::float16, DType::bfloat16, DType::float64});
  check_same_device(tensors, tensors);
  check_dense(tensors);
  check_dtype(sums, {DType::float64});
  check_same_device(sums, tensors);
  if (sums[0].numel != int64_t(tensors.size())) {
    throw ValueError(sums.where(0) + " has shape " + describe_shape(sums[0]) + ", expected [" +
                     std::to_string(tensors.size()) + "], one for each of tensors.");
  }
  check_writes({&sums}, {&tensors});
  if (tensors.empty()) return;

  std::vector<Entry> entries(tensors.size(), Entry{});
  for (size_t i = 0; i < tensors.size(); ++i) {
    entries[i].grad = tensors[i].data;
    entries[i].grad_dtype = tensors[i].dtype;
    entries[i].numel = tensors[i].numel;
  }
  const Device device = tensors[0].device;
  void* stream = tensors.stream();
  StepPlan<None, None> plan;
  plan.prepare(op, device, stream, std::move(entries), {});
  const auto& ws = plan.workspace();
  double* out = static_cast<double*>(sums[0].data);
  run(
      op, device, stream, [&] { cpu::sq_sum(plan.plan(), ws.table(), ws.partials, out); },
      [&]([[maybe_unused]] void* s) {
        LB_CUDA_CALL(cuda::sq_sum(plan.plan(), ws.table(), ws.partials, out, s));
      });
}

}  // namespace

void register_norm(py::module_& module) {
  module.def("sq_sum", &sq_sum, py::arg("tensors"), py::arg("sums"),
             "sums[i] = sum of squares of tensors[i], in fp64. See largebatch.ops.");
}

}  // namespace lb::bind
