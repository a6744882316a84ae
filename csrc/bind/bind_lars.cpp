// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bind/group_reader.h"
#include "bind/step_plan.h"
#include "lars/lars.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

using LarsPlan = StepPlan<LarsGroup, LarsScalars>;

LarsGroup read_group(const char* op, int index, const py::dict& dict) {
  const GroupReader reader(op, index, dict);
  LarsGroup group{};
  std::tie(group.lr, group.lr_tensor) = reader.rate("lr");
  group.momentum = reader.number("momentum", 0);
  group.dampening = reader.number("dampening", 0);
  group.weight_decay = reader.number("weight_decay", 0);
  group.trust_coefficient = reader.number("trust_coefficient", 0);
  group.eps = reader.number("eps", 0);
  group.nesterov = reader.flag("nesterov");
  group.clip = reader.flag("clip");
  group.lr_in_momentum = reader.flag("lr_in_momentum");
  group.adapt = reader.flag("adapt");
  group.maximize = reader.flag("maximize");
  if (group.nesterov && (group.momentum == 0 || group.dampening != 0)) {
    reader.fail("nesterov", py::bool_(true), "a momentum above 0 and a dampening of 0 with it");
  }
  if (group.lr_in_momentum && group.dampening != 0) {
    reader.fail("dampening", py::float_(group.dampening), "0 with lr_in_momentum");
  }
  return group;
}

void check_momentum(const std::vector<Entry>& entries, const std::vector<LarsGroup>& groups,
                    const ArrayList& params) {
  for (size_t i = 0; i < entries.size(); ++i) {
    if (groups[size_t(entries[i].group)].momentum != 0 &&
        entries[i].dtypes[kLarsMomentum] == DType::none) {
      throw ValueError(params.where(i) +
                       " has no momentum buffer, expected one with a momentum above 0. Give it in "
                       "momentum_buffers.");
    }
  }
}

void lars_step(LarsPlan& plan, py::handle params_, py::handle grads_, py::handle buffers_,
               const std::vector<int64_t>& buffer_rows, py::handle steps_, py::handle copies_,
               const std::vector<int64_t>& copy_rows, const std::vector<int64_t>& group_of,
               const std::vector<py::dict>& groups_, py::handle phases_, py::handle sums_,
               py::handle grad_scale, py::handle found_inf) {
  constexpr const char* op = "lars_step";
  // Views.
  const auto [params, grads, buffers, steps, copies] =
      ArrayList::rows(op, {{"params", params_},
                           {"grads", grads_},
                           {"momentum_buffers", buffers_},
                           {"steps", steps_},
                           {"copies", copies_}});
  const ArrayList sums = ArrayList::optional(op, "sums", sums_, &params);
  const StepScalars scalars(op, params, py::none(), grad_scale, found_inf);
  const Phases phases = parse_phases(op, phases_);
  std::vector<LarsGroup> groups;
  for (const py::dict& dict : groups_) groups.push_back(read_group(op, int(groups.size()), dict));
  if (params.empty()) return;

  // Checks.
  check_same_length(grads, params);
  if (phases.second) check_same_length(steps, params);
  std::vector<Entry> entries = make_entries({params, grads, steps, group_of, groups.size()});
  add_role(entries, kLarsMomentum, buffers, params, "buffer_rows", buffer_rows);
  add_role(entries, kLarsCopy, copies, params, "copy_rows", copy_rows);
  check_state_dtypes(buffers, params, &buffer_rows);
  check_copy_dtypes(copies, params, copy_rows);
  if (phases.second) check_momentum(entries, groups, params);
  const Plan::Change change = plan.compare(entries);
  if (change != Plan::Change::none || !sums.empty()) {
    check_writes({&params, &buffers, &steps, &copies, &sums}, {&grads});
  }

  // Device, stream, call.
  const Device device = params[0].device;
  void* stream = params.stream();
  plan.prepare(op, device, stream, std::move(entries), change, groups);
  const LarsCall call{plan.plan(), plan.workspace(), scalars.inputs(),
                      sums_of(sums, params, phases, plan.workspace().sums), phases};
  run(
      op, device, stream, [&] { cpu::lars_step(call); },
      [&]([[maybe_unused]] void* s) { LB_CUDA_CALL(cuda::lars_step(call, s)); });
}

}  // namespace

void register_lars(py::module_& module) {
  py::class_<LarsPlan>(module, "LarsPlan", py::module_local(),
                       "Plan and workspace of LARS on one device.")
      .def(py::init<>())
      .def_property_readonly("nonfinite", &LarsPlan::nonfinite)
      .def_static(
          "check_group",
          [](const std::string& op, const py::dict& group) { read_group(op.c_str(), -1, group); },
          py::arg("op"), py::arg("group"), "Raise unless the hyper-parameters are in range.");
  module.def("lars_step", &lars_step, py::arg("plan"), py::arg("params"), py::arg("grads"),
             py::arg("momentum_buffers"), py::arg("buffer_rows"), py::arg("steps"),
             py::arg("copies"), py::arg("copy_rows"), py::arg("group_of"), py::arg("groups"),
             py::arg("phases") = py::none(), py::arg("sums") = py::none(),
             py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none(),
             "One LARS step, or one phase of it ('first', 'second'), on the tensors of a device.\n"
             "Reads gradients, writes the rest. See largebatch.optim.LARS and largebatch.ops.");
}

}  // namespace lb::bind
