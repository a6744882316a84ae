// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bind/group_reader.h"
#include "bind/step_plan.h"
#include "lamb/lamb.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

using LambPlan = StepPlan<LambGroup, LambScalars>;

LambGroup read_group(const char* op, int index, const py::dict& dict) {
  const GroupReader reader(op, index, dict);
  LambGroup group{};
  std::tie(group.lr, group.lr_tensor) = reader.rate("lr");
  reader.numbers("betas", 0, 1, {&group.beta1, &group.beta2});
  group.eps = reader.number("eps", 0);
  group.weight_decay = reader.number("weight_decay", 0);
  group.max_grad_norm = reader.limit("max_grad_norm");
  std::tie(group.phi_min, group.phi_max) = reader.bounds("weight_norm_clip", false);
  std::tie(group.ratio_min, group.ratio_max) = reader.bounds("trust_clip", true);
  group.decay = LambDecay(reader.choice("decay", {"in_update", "l2", "outside"}));
  group.adapt = LambAdapt(reader.choice("adapt", {"decay_only", "always", "never"}, 1, 2));
  group.correction =
      LambCorrection(reader.choice("bias_correction", {"off", "on", "outside"}, 1, 0));
  group.grad_averaging = reader.flag("grad_averaging");
  group.maximize = reader.flag("maximize");
  return group;
}

void lamb_step(LambPlan& plan, py::handle params_, py::handle grads_, py::handle exp_avgs_,
               py::handle exp_avg_sqs_, py::handle steps_, py::handle copies_,
               const std::vector<int64_t>& copy_rows, const std::vector<int64_t>& group_of,
               const std::vector<py::dict>& groups_, py::handle phases_, py::handle sums_,
               py::handle grad_sq_sum, py::handle grad_scale, py::handle found_inf) {
  constexpr const char* op = "lamb_step";
  // Views.
  const auto [params, grads, exp_avgs, exp_avg_sqs, steps, copies] =
      ArrayList::rows(op, {{"params", params_},
                           {"grads", grads_},
                           {"exp_avgs", exp_avgs_},
                           {"exp_avg_sqs", exp_avg_sqs_},
                           {"steps", steps_},
                           {"copies", copies_}});
  const ArrayList sums = ArrayList::optional(op, "sums", sums_, &params);
  const StepScalars scalars(op, params, grad_sq_sum, grad_scale, found_inf);
  const Phases phases = parse_phases(op, phases_);
  std::vector<LambGroup> groups;
  for (const py::dict& dict : groups_) groups.push_back(read_group(op, int(groups.size()), dict));
  if (params.empty()) return;

  // Checks.
  if (phases.first) check_same_length(grads, params);
  check_same_length(steps, params);
  std::vector<Entry> entries = make_entries({params, grads, steps, group_of, groups.size()});
  add_role(entries, kLambExpAvg, exp_avgs, params);
  add_role(entries, kLambExpAvgSq, exp_avg_sqs, params);
  add_role(entries, kLambCopy, copies, params, "copy_rows", copy_rows);
  check_state_dtypes(exp_avgs, params);
  check_state_dtypes(exp_avg_sqs, params);
  check_copy_dtypes(copies, params, copy_rows);
  bool clip = false;
  for (const Entry& entry : entries) {
    clip |= groups[size_t(entry.group)].max_grad_norm != GroupReader::kInfinity;
  }
  const StepInputs inputs = scalars.inputs();
  if (!phases.first && clip && inputs.grad_sq_sum == nullptr &&
      (inputs.grad_scale != nullptr || inputs.found_inf != nullptr)) {
    throw ValueError(
        std::string(op) +
        ": grad_sq_sum is missing: under a loss scaler the second phase must skip when "
        "the first did. Give the value that the first phase was given.");
  }
  const Plan::Change change = plan.compare(entries);
  if (change != Plan::Change::none || !sums.empty()) {
    check_writes({&params, &exp_avgs, &exp_avg_sqs, &steps, &copies, &sums}, {&grads});
  }

  // Device, stream, call.
  const Device device = params[0].device;
  void* stream = params.stream();
  plan.prepare(op, device, stream, std::move(entries), change, groups);
  const LambCall call{plan.plan(),
                      plan.workspace(),
                      inputs,
                      clip,
                      sums_of(sums, params, phases, plan.workspace().sums),
                      phases};
  run(
      op, device, stream, [&] { cpu::lamb_step(call); },
      [&]([[maybe_unused]] void* s) { LB_CUDA_CALL(cuda::lamb_step(call, s)); });
}

}  // namespace

void register_lamb(py::module_& module) {
  py::class_<LambPlan>(module, "LambPlan", py::module_local(),
                       "Plan and workspace of LAMB on one device.")
      .def(py::init<>())
      .def_property_readonly("grad_norm", &LambPlan::grad_norm)
      .def_property_readonly("nonfinite", &LambPlan::nonfinite)
      .def_static(
          "check_group",
          [](const std::string& op, const py::dict& group) { read_group(op.c_str(), -1, group); },
          py::arg("op"), py::arg("group"), "Raise unless the hyper-parameters are in range.");
  module.def("lamb_step", &lamb_step, py::arg("plan"), py::arg("params"), py::arg("grads"),
             py::arg("exp_avgs"), py::arg("exp_avg_sqs"), py::arg("steps"), py::arg("copies"),
             py::arg("copy_rows"), py::arg("group_of"), py::arg("groups"),
             py::arg("phases") = py::none(), py::arg("sums") = py::none(),
             py::arg("grad_sq_sum") = py::none(), py::arg("grad_scale") = py::none(),
             py::arg("found_inf") = py::none(),
             "One LAMB step, or one phase of it ('first', 'second'), on the tensors of a device.\n"
             "Reads gradients, writes the rest. See largebatch.optim.LAMB and largebatch.ops.");
}

}  // namespace lb::bind
