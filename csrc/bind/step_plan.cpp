// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/step_plan.h"

#include <cstring>

#include "core/visit.h"

namespace py = pybind11;

namespace lb::bind {

void require_backend(const char* op, Device device) {
  if (is_host(device)) return;
#if LB_CUDA
  const cuda::Status status = cuda::status();
  if (!status.available) throw BackendUnavailable(std::string(op) + ": " + status.reason + ".");
#else
  throw BackendUnavailable(std::string(op) + ": tensors are on " + describe(device) +
                           ", and this build has no CUDA kernels: " LB_CUDA_OFF_REASON
                           ". Build again with LARGEBATCH_CUDA=auto.");
#endif
}

py::object allocate(int64_t bytes, Device device) {
  const py::module_ torch = py::module_::import("torch");
  const std::string where =
      device.type == DeviceType::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
  return torch.attr("empty")(bytes, py::arg("dtype") = torch.attr("uint8"),
                             py::arg("device") = where);
}

void* data_of(const py::object& block) {
  return reinterpret_cast<void*>(block.attr("data_ptr")().cast<uintptr_t>());
}

py::object read_block(const py::object& block, size_t at, size_t size, const char* dtype) {
  if (!block) return py::none();
  const py::module_ torch = py::module_::import("torch");
  return block.attr("narrow")(0, at, size)
      .attr("view")(torch.attr(dtype))
      .attr("clone")()
      .attr("reshape")(py::tuple());
}

void upload(Device device, void* stream, void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  if (is_host(device)) {
    std::memcpy(to, from, size_t(bytes));
    return;
  }
#if LB_CUDA
  const cuda::DeviceGuard guard(device.index);
  cuda::upload(to, from, bytes, stream);
#else
  (void)stream;
#endif
}

bool recording(Device device, void* stream) {
#if LB_CUDA
  return !is_host(device) && cuda::capturing(stream);
#else
  (void)device;
  (void)stream;
  return false;
#endif
}

StepScalars::StepScalars(const char* op, const ArrayList& like, py::handle grad_sq_sum,
                         py::handle grad_scale, py::handle found_inf)
    : grad_sq_sum_(ArrayList::optional(op, "grad_sq_sum", grad_sq_sum, &like)),
      grad_scale_(ArrayList::optional(op, "grad_scale", grad_scale, &like)),
      found_inf_(ArrayList::optional(op, "found_inf", found_inf, &like)) {
  check_scalar(grad_sq_sum_, like, DType::float64);
  check_scalar(grad_scale_, like);
  check_scalar(found_inf_, like);
}

StepInputs StepScalars::inputs() const {
  const auto pointer = [](const ArrayList& list) { return list.empty() ? nullptr : list[0].data; };
  return {static_cast<const double*>(pointer(grad_sq_sum_)),
          static_cast<const float*>(pointer(grad_scale_)),
          static_cast<const float*>(pointer(found_inf_))};
}

Phases parse_phases(const char* op, py::handle phases) {
  if (phases.is_none()) return {true, true};
  const std::string text = py::str(phases);
  if (text == "first") return {true, false};
  if (text == "second") return {false, true};
  throw ValueError(std::string(op) + ": phases: got '" + text +
                   "', expected None, 'first' or 'second'.");
}

double* sums_of(const ArrayList& sums, const ArrayList& params, Phases phases, double* own) {
  if (sums.empty()) {
    if (phases.first && phases.second) return own;
    throw ValueError(std::string(params.op()) +
                     ": sums is missing: the phases of a step pass it on. Give a float64 [T, 2].");
  }
  check_dtype(sums, {DType::float64});
  check_dense(sums);
  const TensorView& view = sums[0];
  if (params.size() > 0 && view.device != params[0].device) {
    throw ValueError(sums.where(0) + " is on " + describe(view.device) + ", expected " +
                     describe(params[0].device) + " like params[0].");
  }
  if (view.ndim != 2 || view.shape[0] != int64_t(params.size()) || view.shape[1] != 2) {
    throw ValueError(sums.where(0) + " has shape " + describe_shape(view) + ", expected [" +
                     std::to_string(params.size()) + ", 2]: two sums for each of params.");
  }
  return static_cast<double*>(view.data);
}

std::vector<Entry> make_entries(const StepTensors& tensors) {
  const ArrayList &params = tensors.params, &grads = tensors.grads, &steps = tensors.steps;
  const std::string op = params.op();
  check_dtype(params, {DType::float32, DType::float16, DType::bfloat16, DType::float64});
  check_dense(params);
  std::vector<Entry> entries(params.size(), Entry{});
  add_role(entries, 0, params, params);
  if (tensors.group_of.size() != params.size()) {
    throw ValueError(op + ": group_of has " + std::to_string(tensors.group_of.size()) +
                     " entries, expected " + std::to_string(params.size()) + " like params.");
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    const int64_t group = tensors.group_of[i];
    if (group < 0 || group >= int64_t(tensors.num_groups)) {
      throw ValueError(op + ": group_of[" + std::to_string(i) + "]: got " + std::to_string(group) +
                       ", expected the index of one of " + std::to_string(tensors.num_groups) +
                       " groups.");
    }
    entries[i].group = int32_t(group);
    entries[i].numel = params[i].numel;
  }
  if (!grads.empty()) {
    check_same_length(grads, params);
    check_same_device(grads, params);
    check_same_layout(grads, params);
    for (size_t i = 0; i < entries.size(); ++i) {
      if (!is_weights_and_grad(params[i].dtype, grads[i].dtype)) {
        throw TypeError(grads.where(i) + " has dtype " + dtype_name(grads[i]) +
                        ", which does not go with " + params.label(i) + " of " +
                        dtype_name(params[i]) +
                        ". Cast the gradient to float32 or to the dtype of its parameter.");
      }
      entries[i].grad = grads[i].data;
      entries[i].grad_dtype = grads[i].dtype;
    }
  }
  if (!steps.empty()) {
    check_same_length(steps, params);
    check_scalar(steps, params);
    for (size_t i = 0; i < entries.size(); ++i) {
      entries[i].step = static_cast<float*>(steps[i].data);
    }
  }
  return entries;
}

void add_role(std::vector<Entry>& entries, int role, const ArrayList& arrays,
              const ArrayList& params) {
  check_same_device(arrays, params);
  check_same_layout(arrays, params);
  for (size_t i = 0; i < entries.size(); ++i) {
    entries[i].data[role] = arrays[i].data;
    entries[i].dtypes[role] = arrays[i].dtype;
  }
}

void add_role(std::vector<Entry>& entries, int role, const ArrayList& arrays,
              const ArrayList& params, const char* rows_argument,
              const std::vector<int64_t>& rows) {
  const std::string op = params.op();
  if (arrays.size() != rows.size()) {
    throw ValueError(op + ": " + arrays.argument() + " has " + std::to_string(arrays.size()) +
                     " arrays, expected " + std::to_string(rows.size()) + " like " + rows_argument +
                     ".");
  }
  check_same_device(arrays, params);
  for (size_t k = 0; k < rows.size(); ++k) {
    if (rows[k] < 0 || rows[k] >= int64_t(entries.size())) {
      throw ValueError(op + ": " + rows_argument + "[" + std::to_string(k) + "]: got " +
                       std::to_string(rows[k]) + ", expected the index of one of " +
                       std::to_string(entries.size()) + " params.");
    }
    const size_t row = size_t(rows[k]);
    check_layout(arrays, k, params, row);
    entries[row].data[role] = arrays[k].data;
    entries[row].dtypes[role] = arrays[k].dtype;
  }
}

void check_state_dtypes(const ArrayList& state, const ArrayList& params,
                        const std::vector<int64_t>* rows) {
  for (size_t k = 0; k < state.size(); ++k) {
    const size_t row = rows == nullptr ? k : size_t((*rows)[k]);
    const DType expected = params[row].dtype == DType::float64 ? DType::float64 : DType::float32;
    if (state[k].dtype == expected) continue;
    throw TypeError(state.where(k) + " has dtype " + dtype_name(state[k]) + ", expected " +
                    name(expected) + " with " + params.label(row) + " of " +
                    dtype_name(params[row]) + ". Cast the state, or let the optimizer make it.");
  }
}

void check_copy_dtypes(const ArrayList& copies, const ArrayList& params,
                       const std::vector<int64_t>& rows) {
  check_dtype(copies, {DType::float16, DType::bfloat16},
              "A copy is the 16-bit form of fp32 master weights.");
  for (size_t k = 0; k < copies.size(); ++k) {
    const size_t row = size_t(rows[k]);
    if (params[row].dtype == DType::float32) continue;
    throw TypeError(params.where(row) + " has dtype " + dtype_name(params[row]) +
                    ", expected float32: it is the master of " + copies.label(k) + ".");
  }
}

}  // namespace lb::bind
