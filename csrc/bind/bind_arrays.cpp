// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What the binding makes of its arguments, made visible: to debug a call that is refused, and to
// test views and checks without an op around them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <deque>

#include "bind/checks.h"
#include "bind/exporter.h"
#include "core/error.h"

namespace py = pybind11;

namespace lb::bind {
namespace {

py::tuple ints(const int64_t* values, int32_t count) {
  py::tuple result(count);
  for (int32_t d = 0; d < count; ++d) result[size_t(d)] = values[d];
  return result;
}

py::list describe_arrays(const std::string& op, const std::string& argument, py::handle sequence) {
  const ArrayList arrays(op.c_str(), argument.c_str(), sequence);
  py::list result;
  for (const TensorView& view : arrays) {
    py::object strides = py::none();
    if (view.strides != nullptr || view.ndim == 0) strides = ints(view.strides, view.ndim);
    result.append(py::make_tuple(reinterpret_cast<uintptr_t>(view.data), dtype_name(view),
                                 ints(view.shape, view.ndim), strides, int(view.device.type),
                                 view.device.index));
  }
  return result;
}

using Lists = std::vector<std::pair<std::string, py::object>>;

// Runs the check called `check` on the first list, against the last one where it is of two lists.
void check_arrays(const std::string& check, const std::string& op, const Lists& lists,
                  const Lists& read) {
  std::deque<ArrayList> arrays;  // never moves its elements
  const auto view = [&](const auto& named) -> const ArrayList* {
    const auto& [argument, value] = named;
    const bool many = PyList_Check(value.ptr()) || PyTuple_Check(value.ptr());
    arrays.push_back(many ? ArrayList(op.c_str(), argument.c_str(), value)
                          : ArrayList::optional(op.c_str(), argument.c_str(), value));
    return &arrays.back();
  };
  const ArrayList &a = *view(lists.front()), &like = *view(lists.back());
  if (check == "same_length") return check_same_length(a, like);
  if (check == "dtype") return check_dtype(a, {DType::float32, DType::float16, DType::bfloat16});
  if (check == "same_dtype") return check_same_dtype(a, like);
  if (check == "same_shape") return check_same_shape(a, like);
  if (check == "same_device") return check_same_device(a, like);
  if (check == "dense") return check_dense(a);
  if (check == "same_layout") return check_same_layout(a, like);
  if (check == "scalar") return check_scalar(a, like);
  if (check != "writes") throw ValueError("_check_arrays: there is no check '" + check + "'.");
  const ArrayList empty("", "", py::tuple());
  return check_writes({&a, lists.size() > 1 ? &like : &empty},
                      {read.empty() ? &empty : view(read.front())});
}

}  // namespace

void register_arrays(py::module_& module) {
  module.def(
      "describe_arrays", &describe_arrays, py::arg("op"), py::arg("argument"), py::arg("sequence"),
      "What the kernels would see of each array: a list of (data_ptr, dtype, shape, strides, "
      "device_type, device_index). Strides are in elements, None if C-contiguous by "
      "declaration; device types are those of DLPack (1 cpu, 2 cuda). Raises what an op "
      "called `op` would raise for its argument `argument`.");
  module.def("_check_arrays", &check_arrays, py::arg("check"), py::arg("op"), py::arg("lists"),
             py::arg("read") = Lists());
  module.def("_current_stream", [](py::handle sequence) {
    return reinterpret_cast<uintptr_t>(ArrayList("current_stream", "arrays", sequence).stream());
  });
  module.def("_set_dlpack_rung", &set_dlpack_rung, py::arg("rung"),
             "For tests: skip the faster ways of viewing arrays before `rung`. Returns the rung "
             "set before; \"exchange\" is the first.");
  module.def("_dlpack_rung", &dlpack_rung, py::arg("array"));
  module.def("_layout_known", [](py::handle array) { return exporter_of(array)->layout_known; });
}

}  // namespace lb::bind
