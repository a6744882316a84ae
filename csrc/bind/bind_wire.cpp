// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/compression_plan.h"

namespace py = pybind11;

namespace lb::bind {

void CompressionPlan::pack(py::handle keys_, py::handle values_, py::handle indices_,
                           py::handle counts_, int64_t step, int64_t rank, py::handle payload_) {
  constexpr const char* op = "pack";
  // Views.
  const ArrayList keys(op, "keys", keys_);
  const ArrayList values = ArrayList::single(op, "values", values_);
  const ArrayList indices = ArrayList::single(op, "indices", indices_, &values);
  const ArrayList counts = ArrayList::single(op, "counts", counts_, &values);
  const ArrayList payload = ArrayList::single(op, "payload", payload_, &values);
  const ArrayList none(op, "", py::list());

  // Checks.
  check_dtype(values, {DType::float32, DType::float64});
  const DType real = values[0].dtype;
  check_tensors(keys, !has_dense());
  check_dtype(keys, {real});
  check_selection(values, indices, counts, none, real);
  check_payloads(payload, 1);
  for (const ArrayList* list : {&keys, &indices, &counts, &payload}) {
    check_same_device(*list, values);
  }
  check_writes({&payload}, {&keys, &values, &indices, &counts});
  if (numels_.empty()) return;

  // Device, stream, memory, call.
  const Device device = values[0].device;
  void* stream = values.stream();
  const RecordPlan& plan =
      prepare(kPack, op, device, stream, {none, keys, none, none, none, none, none});
  const WireWork work = wire_work(plan, real);
  const WirePack pack{values[0].data,
                      static_cast<const int64_t*>(indices[0].data),
                      static_cast<const int64_t*>(counts[0].data),
                      step,
                      rank,
                      plan.workspace().partials,
                      static_cast<uint8_t*>(payload[0].data)};
  run(
      op, device, stream, [&] { cpu::wire_pack(plan.plan(), work, pack); },
      [&]([[maybe_unused]] void* s) { LB_CUDA_CALL(cuda::wire_pack(work, pack, s)); });
}

void CompressionPlan::unpack(py::handle payload_, py::handle values_, py::handle indices_) {
  constexpr const char* op = "unpack";
  // Views.
  const ArrayList payload = ArrayList::single(op, "payload", payload_);
  const ArrayList values = ArrayList::single(op, "values", values_, &payload);
  const ArrayList indices = ArrayList::single(op, "indices", indices_, &payload);
  const ArrayList none(op, "", py::list());

  // Checks.
  check_payloads(payload, 1);
  check_dtype(values, {DType::float32, DType::float64});
  const DType real = values[0].dtype;
  check_selection(values, indices, none, none, real);
  for (const ArrayList* list : {&values, &indices}) check_same_device(*list, payload);
  check_writes({&values, &indices}, {&payload});
  if (numels_.empty()) return;

  // Device, stream, memory, call.
  const Device device = payload[0].device;
  void* stream = payload.stream();
  const RecordPlan& plan =
      prepare(kUnpack, op, device, stream, {none, none, none, none, none, none, none});
  const WireWork work = wire_work(plan, real);
  const WireUnpack unpack{static_cast<const uint8_t*>(payload[0].data), values[0].data,
                          static_cast<int64_t*>(indices[0].data), false};
  run(
      op, device, stream, [&] { cpu::wire_unpack(plan.plan(), work, unpack); },
      [&]([[maybe_unused]] void* s) { LB_CUDA_CALL(cuda::wire_unpack(work, unpack, s)); });
}

void CompressionPlan::decode(py::handle payloads_, int64_t rank, py::handle keys_,
                             py::handle errors_, py::handle shifts_, py::handle momenta_,
                             py::handle sums_, py::handle outs_, py::handle indices_,
                             const py::dict& method, py::handle nonfinite_, py::handle scale_,
                             bool skip, bool zero) {
  constexpr const char* op = "decode";
  // Views.
  const ArrayList sums(op, "sums", sums_);
  const ArrayList payloads = ArrayList::single(op, "payloads", payloads_, &sums);
  const ArrayList keys(op, "keys", keys_, &sums);
  const ArrayList errors(op, "errors", errors_, &sums);
  const ArrayList shifts(op, "shifts", shifts_, &sums);
  const ArrayList momenta(op, "momenta", momenta_, &sums);
  const ArrayList outs(op, "outs", outs_, &sums);
  const ArrayList indices = ArrayList::optional(op, "indices", indices_, &sums);
  const ArrayList nonfinite = ArrayList::single(op, "nonfinite", nonfinite_, &sums);
  const ArrayList scale = ArrayList::optional(op, "scale", scale_, &sums);
  const ArrayList none(op, "", py::list());
  const FeedbackReader feedback(op, method, sums);
  const RecordArrays arrays{none, keys, errors, shifts, momenta, sums, outs};

  // Checks.
  check_tensors(sums, false);
  if (sums.empty()) return;
  check_dtype(sums, {DType::float32, DType::float64});
  const DType real = sums[0].dtype;
  check_same_dtype(sums, real);
  const int64_t world = nonfinite[0].numel;
  check_payloads(payloads, world);
  check_buffer(nonfinite, DType::int64, world);
  if (rank < -1 || rank >= world) {
    throw ValueError(std::string(op) + ": rank: got " + std::to_string(rank) +
                     ", expected -1 or one of " + std::to_string(world) + " payloads.");
  }
  if (rank >= 0) {
    check_tensors(keys, !has_dense());
    check_state(feedback.hyper(), real, arrays);
    check_buffer(indices, DType::int64, slots_);
    if (indices.empty()) {
      throw ValueError(std::string(op) + ": indices: got None, expected those of encode.");
    }
  }
  check_dtype(keys, {real});
  check_tensors(outs, true);
  check_dtype(outs, {DType::float32, DType::float16, DType::bfloat16, DType::float64});
  if (!outs.empty()) check_same_dtype(outs, outs[0].dtype);
  check_scalar(scale, sums);
  for (const ArrayList* list :
       {&payloads, &keys, &errors, &shifts, &momenta, &sums, &outs, &indices, &nonfinite}) {
    check_same_device(*list, sums);
  }
  for (const ArrayList* list : {&keys, &errors, &shifts, &momenta, &outs}) {
    check_same_order(*list, sums);
  }
  const bool keys_apart = !same_arrays(keys, sums) && !same_arrays(keys, outs);
  check_writes({keys_apart ? &keys : &none, &errors, &shifts, &momenta, &sums,
                same_arrays(outs, sums) ? &none : &outs, &nonfinite},
               {&payloads, &indices, &scale});

  // Device, stream, memory, call.
  const Device device = sums[0].device;
  void* stream = sums.stream();
  make_room(op, device, stream);
  const RecordPlan& plan = prepare(kDecode, op, device, stream, arrays);
  const WireWork work = wire_work(plan, real);
  const auto* first = static_cast<const uint8_t*>(payloads[0].data);
  const WireReduce reduce{first, world, bytes_,        data_or_null<const float>(scale),
                          skip,  zero,  !outs.empty(), static_cast<int64_t*>(nonfinite[0].data),
                          stop_};
  const WireUnpack own{first + std::max<int64_t>(rank, 0) * bytes_, decoded_, nullptr, true};
  const FixUpCall fix_up{work.records,
                         work.num_records,
                         work.num_chunks,
                         work.table,
                         feedback.hyper(),
                         real,
                         decoded_,
                         data_or_null<const int64_t>(indices),
                         stop_};
  const bool fixes = rank >= 0 && feedback.hyper().method != Feedback::none;
  run(
      op, device, stream,
      [&] {
        cpu::wire_inspect(work, reduce);
        if (fixes) cpu::wire_unpack(plan.plan(), work, own);
        if (fixes) cpu::topk_fix_up(plan.plan(), fix_up);
        cpu::wire_reduce(plan.plan(), work, reduce);
      },
      [&]([[maybe_unused]] void* s) {
        LB_CUDA_CALL(cuda::wire_inspect(work, reduce, s));
        if (fixes) LB_CUDA_CALL(cuda::wire_unpack(work, own, s));
        if (fixes) LB_CUDA_CALL(cuda::topk_fix_up(fix_up, s));
        LB_CUDA_CALL(cuda::wire_reduce(work, reduce, s));
      });
}

void register_wire(py::module_& module) {
  py::class_<CompressionPlan>(module.attr("CompressionPlan"))
      .def("pack", &CompressionPlan::pack, py::arg("keys"), py::arg("values"), py::arg("indices"),
           py::arg("counts"), py::arg("step"), py::arg("rank"), py::arg("payload"),
           "Pack what is selected.")
      .def("unpack", &CompressionPlan::unpack, py::arg("payload"), py::arg("values"),
           py::arg("indices"), "The decoded values of a payload, and where they belong.")
      .def("decode", &CompressionPlan::decode, py::arg("payloads"), py::arg("rank"),
           py::arg("keys"), py::arg("errors"), py::arg("shifts"), py::arg("momenta"),
           py::arg("sums"), py::arg("outs"), py::arg("indices"), py::arg("method"),
           py::arg("nonfinite"), py::arg("scale") = py::none(), py::arg("skip") = false,
           py::arg("zero") = false,
           "Take what was sent out of the state, and add the payloads of all ranks.");
}

}  // namespace lb::bind
