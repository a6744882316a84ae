// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <array>
#include <cstring>

#include "agvm/agvm.h"
#include "bind/group_reader.h"
#include "bind/step_plan.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

struct None {};  // no hyper-parameters, no scalars: only table and sums

std::vector<Entry> make_entries(const ArrayList& x, const ArrayList& y, const ArrayList& squares) {
  check_dtype(x, {DType::float32, DType::float16, DType::bfloat16, DType::float64});
  check_same_device(x, x);
  check_dense(x);
  check_same_dtype(y, x);
  check_same_device(y, x);
  check_same_layout(y, x);
  std::vector<Entry> entries(x.size(), Entry{});
  for (size_t i = 0; i < x.size(); ++i) {
    entries[i].grad = x[i].data;
    entries[i].grad_dtype = x[i].dtype;
    entries[i].numel = x[i].numel;
    entries[i].data[kHalfSum] = y[i].data;
    entries[i].dtypes[kHalfSum] = y[i].dtype;
  }
  if (squares.empty()) return entries;
  add_role(entries, kHalfSquare, squares, x);
  for (size_t i = 0; i < x.size(); ++i) {
    if (is_weights_and_grad(squares[i].dtype, x[i].dtype)) continue;
    throw TypeError(squares.where(i) + " has dtype " + dtype_name(squares[i]) +
                    ", which does not go with " + x.label(i) + " of " + dtype_name(x[i]) +
                    ". Cast it to float32, or to the dtype of its gradient.");
  }
  return entries;
}

void half_dots(py::handle x_, py::handle y_, const std::array<double, 4>& combine,
               py::handle exp_avg_sq, const py::dict& hyper, py::handle grad_scale_,
               py::handle sums_) {
  constexpr const char* op = "half_dots";
  // Views.
  const auto [x, y, squares] =
      ArrayList::rows(op, {{"x", x_}, {"y", y_}, {"exp_avg_sq", exp_avg_sq}});
  const ArrayList grad_scale = ArrayList::optional(op, "grad_scale", grad_scale_, &x);
  const ArrayList sums = ArrayList::single(op, "sums", sums_, &x);
  const GroupReader reader(op, -1, hyper);

  // Checks.
  std::vector<Entry> entries = make_entries(x, y, squares);
  check_scalar(grad_scale, x);
  check_dtype(sums, {DType::float64});
  check_same_device(sums, x);
  if (sums[0].numel != kHalfSums * int64_t(x.size())) {
    throw ValueError(sums.where(0) + " has shape " + describe_shape(sums[0]) + ", expected [" +
                     std::to_string(x.size()) + ", 3]: three sums for each of x.");
  }
  check_dense(sums);
  check_writes({&sums}, {&x, &y, &squares, &grad_scale});
  const HalfDots dots{combine[0],
                      combine[1],
                      combine[2],
                      combine[3],
                      reader.number("beta2", 0, 1),
                      reader.number("eps", 0),
                      grad_scale.empty() ? nullptr : static_cast<const float*>(grad_scale[0].data)};
  if (x.empty()) return;

  // Device, stream, memory, call.
  const Device device = x[0].device;
  void* stream = x.stream();
  StepPlan<None, None> plan;
  plan.prepare(op, device, stream, std::move(entries), {});
  const Table table = plan.workspace().table();
  const int64_t bytes = kHalfSums * int64_t(sizeof(double)) * table.num_tiles;
  const py::object block = allocate(bytes, device);
  Watch watch;
  watch.add(data_of(block), size_t(bytes), [] { return "partials"; });
  // NaN, to who reads before writing, as in the workspace.
  if (LB_SIMT) std::memset(data_of(block), 0xff, size_t(bytes));
  double* partials = static_cast<double*>(data_of(block));
  double* out = static_cast<double*>(sums[0].data);
  run(
      op, device, stream, [&] { cpu::half_dots(plan.plan(), table, dots, partials, out); },
      [&]([[maybe_unused]] void* s) {
        LB_CUDA_CALL(cuda::half_dots(plan.plan(), table, dots, partials, out, s));
      });
}

}  // namespace

void register_agvm(py::module_& module) {
  module.def("half_dots", &half_dots, py::arg("x"), py::arg("y"), py::arg("combine"),
             py::arg("exp_avg_sq"), py::arg("hyper"), py::arg("grad_scale"), py::arg("sums"),
             "sums[i] = dot products of two combinations of x[i] and y[i], in fp64.\n"
             "See largebatch.ops.half_dots.");
}

}  // namespace lb::bind
