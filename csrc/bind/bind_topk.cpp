// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bind/compression_plan.h"

namespace py = pybind11;

namespace lb::bind {

void CompressionPlan::select(py::handle tensors_, py::handle values_, py::handle indices_,
                             py::handle counts_, py::handle warm_, int64_t step) {
  constexpr const char* op = "select";
  // Views.
  const ArrayList tensors(op, "tensors", tensors_);
  const ArrayList values = ArrayList::single(op, "values", values_, &tensors);
  const ArrayList indices = ArrayList::single(op, "indices", indices_, &tensors);
  const ArrayList counts = ArrayList::single(op, "counts", counts_, &tensors);
  const ArrayList warm = ArrayList::optional(op, "warm", warm_, &tensors);
  const ArrayList none(op, "", py::list());

  // Checks.
  check_tensors(tensors, false);
  if (tensors.empty()) return;
  check_dtype(tensors, {DType::float32, DType::float16, DType::bfloat16, DType::float64});
  const DType key = tensors[0].dtype;
  check_same_dtype(tensors, key);
  check_selection(values, indices, counts, warm, key);
  for (const ArrayList* list : {&tensors, &values, &indices, &counts, &warm}) {
    check_same_device(*list, tensors);
  }
  check_writes({&values, &indices, &counts, &warm}, {&tensors});

  // Device, stream, memory, call.
  const Device device = tensors[0].device;
  void* stream = tensors.stream();
  make_room(op, device, stream);
  const RecordPlan& plan =
      prepare(kSelect, op, device, stream, {none, tensors, none, none, none, none, none});
  TopkCall call = topk_call(plan, key, values, indices, counts, warm);
  call.step = step;
  run(
      op, device, stream, [&] { cpu::topk_select(plan.plan(), call); },
      [&]([[maybe_unused]] void* s) { LB_CUDA_CALL(cuda::topk_select(call, s)); });
}

void CompressionPlan::encode(py::handle grads_, py::handle keys_, py::handle errors_,
                             py::handle shifts_, py::handle momenta_, const py::dict& method,
                             int64_t step, int64_t rank, py::handle values_, py::handle indices_,
                             py::handle counts_, py::handle payload_, py::handle warm_) {
  constexpr const char* op = "encode";
  // Views.
  const ArrayList grads(op, "grads", grads_);
  const ArrayList keys(op, "keys", keys_, &grads);
  const ArrayList errors(op, "errors", errors_, &grads);
  const ArrayList shifts(op, "shifts", shifts_, &grads);
  const ArrayList momenta(op, "momenta", momenta_, &grads);
  const ArrayList values = ArrayList::single(op, "values", values_, &grads);
  const ArrayList indices = ArrayList::single(op, "indices", indices_, &grads);
  const ArrayList counts = ArrayList::single(op, "counts", counts_, &grads);
  const ArrayList payload = ArrayList::single(op, "payload", payload_, &grads);
  const ArrayList warm = ArrayList::optional(op, "warm", warm_, &grads);
  const ArrayList none(op, "", py::list());
  const FeedbackReader feedback(op, method, grads);
  const RecordArrays arrays{grads, keys, errors, shifts, momenta, none, none};

  // Checks.
  check_tensors(grads, false);
  if (grads.empty()) return;
  check_dtype(grads, {DType::float32, DType::float16, DType::bfloat16, DType::float64});
  const DType real = real_of(grads[0].dtype);
  check_same_dtype(grads, grads[0].dtype);
  check_tensors(keys, false);
  check_dtype(keys, {real});
  check_state(feedback.hyper(), real, arrays);
  check_selection(values, indices, counts, warm, real);
  check_payloads(payload, 1);
  for (const ArrayList* list : {&grads, &keys, &errors, &shifts, &momenta, &values, &indices,
                                &counts, &payload, &warm, &feedback.inv_scale()}) {
    check_same_device(*list, grads);
  }
  for (const ArrayList* list : {&keys, &errors, &shifts, &momenta}) {
    check_same_order(*list, grads);
  }
  const ArrayList& read = same_arrays(keys, grads) ? none : grads;
  check_writes({&keys, &errors, &shifts, &momenta, &values, &indices, &counts, &payload, &warm},
               {&read, &feedback.inv_scale()});

  // Device, stream, memory, call.
  const Device device = grads[0].device;
  void* stream = grads.stream();
  make_room(op, device, stream);
  const RecordPlan& plan = prepare(kEncode, op, device, stream, arrays);
  TopkCall call = topk_call(plan, real, values, indices, counts, warm);
  call.step = step;
  call.feedback = feedback.hyper();
  call.accumulates = true;
  const WireWork work = wire_work(plan, real);
  const WirePack pack{call.values,
                      call.indices,
                      call.counts,
                      step,
                      rank,
                      plan.workspace().partials,
                      static_cast<uint8_t*>(payload[0].data)};
  run(
      op, device, stream,
      [&] {
        cpu::topk_select(plan.plan(), call);
        cpu::wire_pack(plan.plan(), work, pack);
      },
      [&]([[maybe_unused]] void* s) {
        LB_CUDA_CALL(cuda::topk_select(call, s));
        LB_CUDA_CALL(cuda::wire_pack(work, pack, s));
      });
}

void register_topk(py::module_& module) {
  py::class_<CompressionPlan>(module, "CompressionPlan", py::module_local(),
                              "What is kept of tensors of given sizes, and its payload.")
      .def(py::init<std::vector<int64_t>, const py::list&>(), py::arg("numels"), py::arg("records"))
      .def_property_readonly("payload_bytes", &CompressionPlan::payload_bytes)
      .def_property_readonly("slots", &CompressionPlan::slots)
      .def_property_readonly("layout", &CompressionPlan::layout)
      .def("select", &CompressionPlan::select, py::arg("tensors"), py::arg("values"),
           py::arg("indices"), py::arg("counts"), py::arg("warm") = py::none(), py::arg("step") = 0,
           "Write what is selected from tensors.")
      .def("encode", &CompressionPlan::encode, py::arg("grads"), py::arg("keys"), py::arg("errors"),
           py::arg("shifts"), py::arg("momenta"), py::arg("method"), py::arg("step"),
           py::arg("rank"), py::arg("values"), py::arg("indices"), py::arg("counts"),
           py::arg("payload"), py::arg("warm") = py::none(),
           "Take gradients into the state, select, and pack.");
}

}  // namespace lb::bind
