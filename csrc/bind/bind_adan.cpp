// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "adan/adan.h"
#include "bind/group_reader.h"
#include "bind/step_plan.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

using AdanPlan = StepPlan<AdanGroup, AdanScalars>;

AdanGroup read_group(const char* op, int index, const py::dict& dict) {
  const GroupReader reader(op, index, dict);
  AdanGroup group{};
  std::tie(group.lr, group.lr_tensor) = reader.rate("lr");
  reader.numbers("betas", 0, 1, {&group.beta1, &group.beta2, &group.beta3});
  group.eps = reader.number("eps", 0);
  group.weight_decay = reader.number("weight_decay", 0);
  group.max_grad_norm = reader.limit("max_grad_norm");
  group.no_prox = reader.flag("no_prox");
  group.maximize = reader.flag("maximize");
  return group;
}

void adan_step(AdanPlan& plan, py::handle params_, py::handle grads_, py::handle exp_avgs_,
               py::handle exp_avg_diffs_, py::handle exp_avg_sqs_, py::handle neg_pre_grads_,
               py::handle steps_, py::handle copies_, const std::vector<int64_t>& copy_rows,
               const std::vector<int64_t>& group_of, const std::vector<py::dict>& groups_,
               py::handle grad_sq_sum, py::handle grad_scale, py::handle found_inf) {
  constexpr const char* op = "adan_step";
  // Views.
  const auto [params, grads, exp_avgs, exp_avg_diffs, exp_avg_sqs, neg_pre_grads, steps, copies] =
      ArrayList::rows(op, {{"params", params_},
                           {"grads", grads_},
                           {"exp_avgs", exp_avgs_},
                           {"exp_avg_diffs", exp_avg_diffs_},
                           {"exp_avg_sqs", exp_avg_sqs_},
                           {"neg_pre_grads", neg_pre_grads_},
                           {"steps", steps_},
                           {"copies", copies_}});
  const StepScalars scalars(op, params, grad_sq_sum, grad_scale, found_inf);
  std::vector<AdanGroup> groups;
  for (const py::dict& dict : groups_) groups.push_back(read_group(op, int(groups.size()), dict));
  if (params.empty()) return;

  // Checks.
  check_same_length(grads, params);
  check_same_length(steps, params);
  std::vector<Entry> entries = make_entries({params, grads, steps, group_of, groups.size()});
  int role = kAdanExpAvg;
  for (const ArrayList* state : {&exp_avgs, &exp_avg_diffs, &exp_avg_sqs, &neg_pre_grads}) {
    add_role(entries, role++, *state, params);
    check_state_dtypes(*state, params);
  }
  add_role(entries, kAdanCopy, copies, params, "copy_rows", copy_rows);
  check_copy_dtypes(copies, params, copy_rows);
  bool clip = false;
  for (const Entry& entry : entries) {
    clip |= groups[size_t(entry.group)].max_grad_norm != GroupReader::kInfinity;
  }
  const Plan::Change change = plan.compare(entries);
  if (change != Plan::Change::none) {
    check_writes(
        {&params, &exp_avgs, &exp_avg_diffs, &exp_avg_sqs, &neg_pre_grads, &steps, &copies},
        {&grads});
  }

  // Device, stream, call.
  const Device device = params[0].device;
  void* stream = params.stream();
  plan.prepare(op, device, stream, std::move(entries), change, groups);
  const AdanCall call{plan.plan(), plan.workspace(), scalars.inputs(), clip};
  run(
      op, device, stream, [&] { cpu::adan_step(call); },
      [&]([[maybe_unused]] void* s) { LB_CUDA_CALL(cuda::adan_step(call, s)); });
}

}  // namespace

void register_adan(py::module_& module) {
  py::class_<AdanPlan>(module, "AdanPlan", py::module_local(),
                       "Plan and workspace of Adan on one device.")
      .def(py::init<>())
      .def_property_readonly("grad_norm", &AdanPlan::grad_norm)
      .def_property_readonly("nonfinite", &AdanPlan::nonfinite)
      .def_static(
          "check_group",
          [](const std::string& op, const py::dict& group) { read_group(op.c_str(), -1, group); },
          py::arg("op"), py::arg("group"), "Raise unless the hyper-parameters are in range.");
  module.def("adan_step", &adan_step, py::arg("plan"), py::arg("params"), py::arg("grads"),
             py::arg("exp_avgs"), py::arg("exp_avg_diffs"), py::arg("exp_avg_sqs"),
             py::arg("neg_pre_grads"), py::arg("steps"), py::arg("copies"), py::arg("copy_rows"),
             py::arg("group_of"), py::arg("groups"), py::arg("grad_sq_sum") = py::none(),
             py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none(),
             "One Adan step on the tensors of a device.\n"
             "Reads gradients, writes the rest. See largebatch.optim.Adan and largebatch.ops.");
}

}  // namespace lb::bind
