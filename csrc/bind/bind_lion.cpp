// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <tuple>

#include "bind/group_reader.h"
#include "bind/step_plan.h"
#include "lion/lion.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

using LionPlan = StepPlan<LionGroup, LionNothing>;

constexpr LionKappa kNoKernel = LionKappa(-1);  // no tensor of such a group comes here

LionGroup read_group(const char* op, int index, const py::dict& dict) {
  const GroupReader reader(op, index, dict);
  LionGroup group{};
  std::tie(group.lr, group.lr_tensor) = reader.rate("lr");
  reader.numbers("betas", 0, 1, {&group.beta1, &group.beta2});
  group.weight_decay = reader.number("weight_decay", 0);
  group.seed = reader.whole("seed");
  group.stochastic = reader.flag("stochastic_rounding");
  group.maximize = reader.flag("maximize");
  return group;
}

// What the extension knows of a kappa: (name, parameter, relative, axis, size, rms, cautious), or
// None where torch ops do the step.
struct Kappa {
  bool relative;
  int64_t axis;  // of its groups; -1: the whole tensor
  int64_t size;  // so many slices along it are a group
};

Kappa read_kappa(const char* op, size_t index, const py::object& given, LionGroup& group) {
  constexpr const char* kNames[] = {
      "l1",    "truncated_l1", "huber",       "soft_sign",      "log_cosh",
      "power", "quadratic",    "entropy",     "signed_entropy", "l2",
      "lp",    "l_inf",        "group_lasso", "l2_inf",         "squared_l1"};
  group.kappa = kNoKernel;
  if (given.is_none()) return {};
  const auto [name, parameter, relative, axis, size, rms, cautious] =
      given.cast<std::tuple<std::string, double, bool, int64_t, int64_t, bool, bool>>();
  group.parameter = parameter;
  group.relative = relative;
  group.rms = rms;
  int32_t position = 0;
  for (const char* known : kNames) {
    if (name == known) group.kappa = LionKappa(position);
    ++position;
  }
  if (group.kappa == kNoKernel) {
    throw ValueError(std::string(op) + ": kappas[" + std::to_string(index) + "]: got '" + name +
                     "', which has no kernel. Use fused=False.");
  }
  group.base = group.kappa;
  if (cautious) {
    if (lion_reduction(group.kappa, relative) != LionReduction::none) {
      throw ValueError(std::string(op) + ": kappas[" + std::to_string(index) + "]: got '" + name +
                       "' with cautious, expected a kappa of each element with it.");
    }
    group.kappa = LionKappa::cautious;
  }
  return {relative, axis, size};
}

// How the groups of a tensor lie in its memory. A tensor that lacks the axis, or has less than two
// dimensions, is one group.
void cut_groups(const ArrayList& params, size_t i, const Kappa& kappa, Entry& entry) {
  const TensorView& view = params[i];
  entry.columns = entry.width = entry.numel;
  if (kappa.axis < 0 || view.ndim < 2 || kappa.axis >= view.ndim || entry.numel == 0) return;
  const int64_t length = view.shape[kappa.axis];
  if (kappa.size < 1 || length % kappa.size != 0) {
    throw ValueError(params.where(i) + " has shape " + describe_shape(view) +
                     ", expected a multiple of the kappa's size " + std::to_string(kappa.size) +
                     " along dimension " + std::to_string(kappa.axis) + ".");
  }
  if (length == kappa.size) return;
  int64_t inner = 1;  // elements that neighbours along the axis are apart
  for (int32_t d = 0; d < view.ndim; ++d) {
    const bool inside = view.strides == nullptr
                            ? d > kappa.axis
                            : view.shape[d] > 1 && view.strides[d] < view.strides[kappa.axis];
    if (inside) inner *= view.shape[d];
  }
  entry.columns = length * inner;
  entry.width = kappa.size * inner;
}

void check_momentum(const ArrayList& exp_avgs, const ArrayList& params) {
  for (size_t i = 0; i < exp_avgs.size(); ++i) {
    const DType dtype = exp_avgs[i].dtype;
    if (dtype == DType::int8 || dtype == DType::bfloat16) continue;
    const DType expected = params[i].dtype == DType::float64 ? DType::float64 : DType::float32;
    if (dtype == expected) continue;
    throw TypeError(exp_avgs.where(i) + " has dtype " + dtype_name(exp_avgs[i]) + ", expected " +
                    name(expected) + ", bfloat16 or int8 with " + params.label(i) + " of " +
                    dtype_name(params[i]) + ". Cast the state, or let the optimizer make it.");
  }
}

void add_scales(std::vector<Entry>& entries, const ArrayList& scales, const ArrayList& params,
                const std::vector<int64_t>& rows) {
  const std::string op = params.op();
  check_dtype(scales, {DType::float32});
  check_same_device(scales, params);
  check_dense(scales);
  if (scales.size() != rows.size()) {
    throw ValueError(op + ": scales has " + std::to_string(scales.size()) + " arrays, expected " +
                     std::to_string(rows.size()) + " like scale_rows.");
  }
  for (size_t k = 0; k < rows.size(); ++k) {
    if (rows[k] < 0 || rows[k] >= int64_t(entries.size())) {
      throw ValueError(op + ": scale_rows[" + std::to_string(k) + "]: got " +
                       std::to_string(rows[k]) + ", expected the index of one of " +
                       std::to_string(entries.size()) + " params.");
    }
    Entry& entry = entries[size_t(rows[k])];
    const int64_t blocks = (entry.numel + kInt8Block - 1) / kInt8Block;
    if (scales[k].ndim != 1 || scales[k].numel != blocks) {
      throw ValueError(scales.where(k) + " has shape " + describe_shape(scales[k]) +
                       ", expected [" + std::to_string(blocks) + "]: one for 128 elements.");
    }
    entry.data[kLionScale] = scales[k].data;
    entry.dtypes[kLionScale] = DType::float32;
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    const bool coded = entries[i].dtypes[kLionExpAvg] == DType::int8;
    if (coded == (entries[i].dtypes[kLionScale] != DType::none)) continue;
    throw ValueError(
        params.where(i) +
        (coded ? " has an int8 momentum and no scales" : " has scales and no int8 momentum") +
        ". Give scales with int8 momenta, and only with those.");
  }
}

int32_t variant_of(const Entry& entry, const LionGroup& group) {
  if (lion_reduction(group.kappa, group.relative) != LionReduction::none) {
    const Cut cut = make_cut(entry.numel, entry.columns, entry.width);
    return lion_in_parts(group.kappa, cut) ? kLionParted : kLionGrouped;
  }
  const DType weights = entry.dtypes[kLionWeights];
  const DType own = weights == DType::float64 ? DType::float64 : DType::float32;
  const bool rounds = group.stochastic && weights == DType::bfloat16;
  return group.kappa == LionKappa::l1 && entry.dtypes[kLionExpAvg] == own && !rounds ? kLionPlain
                                                                                     : kLionGeneral;
}

void lion_step(LionPlan& plan, py::handle params_, py::handle grads_, py::handle exp_avgs_,
               py::handle scales_, const std::vector<int64_t>& scale_rows, py::handle steps_,
               py::handle copies_, const std::vector<int64_t>& copy_rows,
               const std::vector<uint64_t>& ids, const std::vector<int64_t>& group_of,
               const std::vector<py::dict>& groups_, const std::vector<py::object>& kappas,
               py::handle grad_scale, py::handle found_inf) {
  constexpr const char* op = "lion_step";
  // Views.
  const auto [params, grads, exp_avgs, scales, steps, copies] =
      ArrayList::rows(op, {{"params", params_},
                           {"grads", grads_},
                           {"exp_avgs", exp_avgs_},
                           {"scales", scales_},
                           {"steps", steps_},
                           {"copies", copies_}});
  const StepScalars scalars(op, params, py::none(), grad_scale, found_inf);
  std::vector<LionGroup> groups;
  for (const py::dict& dict : groups_) groups.push_back(read_group(op, int(groups.size()), dict));
  if (kappas.size() != groups.size() || ids.size() != params.size()) {
    throw ValueError(std::string(op) + ": got " + std::to_string(kappas.size()) + " kappas and " +
                     std::to_string(ids.size()) + " ids, expected one a group and one a param.");
  }
  std::vector<Kappa> cuts;
  for (size_t g = 0; g < groups.size(); ++g) {
    cuts.push_back(read_kappa(op, g, kappas[g], groups[g]));
  }
  if (params.empty()) return;

  // Checks.
  check_same_length(grads, params);
  check_same_length(steps, params);
  std::vector<Entry> entries = make_entries({params, grads, steps, group_of, groups.size()});
  add_role(entries, kLionExpAvg, exp_avgs, params);
  check_momentum(exp_avgs, params);
  add_scales(entries, scales, params, scale_rows);
  add_role(entries, kLionCopy, copies, params, "copy_rows", copy_rows);
  check_copy_dtypes(copies, params, copy_rows);
  for (size_t i = 0; i < entries.size(); ++i) {
    const LionGroup& group = groups[size_t(entries[i].group)];
    if (group.kappa == kNoKernel) {
      throw ValueError(params.where(i) +
                       " is of a group whose kappa has no kernel. Use "
                       "fused=False.");
    }
    entries[i].id = ids[i];
    if (lion_reduction(group.kappa, group.relative) != LionReduction::none) {
      cut_groups(params, i, cuts[size_t(entries[i].group)], entries[i]);
      if (entries[i].dtypes[kLionExpAvg] == DType::int8 && entries[i].width % kInt8Block != 0 &&
          entries[i].width != entries[i].numel) {
        throw ValueError(exp_avgs.where(i) +
                         " has dtype int8, expected groups of whole blocks of 128 with it. Use "
                         "fused=False, or another momentum.");
      }
    }
    entries[i].variant = variant_of(entries[i], group);
  }
  const Plan::Change change = plan.compare(entries);
  if (change != Plan::Change::none) {
    check_writes({&params, &exp_avgs, &scales, &steps, &copies}, {&grads});
  }

  // Device, stream, call.
  const Device device = params[0].device;
  void* stream = params.stream();
  plan.prepare(op, device, stream, std::move(entries), change, groups);
  const LionCall call{plan.plan(), plan.workspace(), scalars.inputs()};
  run(
      op, device, stream, [&] { cpu::lion_step(call); },
      [&]([[maybe_unused]] void* s) { LB_CUDA_CALL(cuda::lion_step(call, s)); });
}

}  // namespace

void register_lion(py::module_& module) {
  py::class_<LionPlan>(module, "LionPlan", py::module_local(),
                       "Plan and workspace of Lion on one device.")
      .def(py::init<>())
      .def_property_readonly("nonfinite", &LionPlan::nonfinite)
      .def_static(
          "check_group",
          [](const std::string& op, const py::dict& group) { read_group(op.c_str(), -1, group); },
          py::arg("op"), py::arg("group"), "Raise unless the hyper-parameters are in range.");
  module.def("lion_step", &lion_step, py::arg("plan"), py::arg("params"), py::arg("grads"),
             py::arg("exp_avgs"), py::arg("scales"), py::arg("scale_rows"), py::arg("steps"),
             py::arg("copies"), py::arg("copy_rows"), py::arg("ids"), py::arg("group_of"),
             py::arg("groups"), py::arg("kappas"), py::arg("grad_scale") = py::none(),
             py::arg("found_inf") = py::none(),
             "One step of Lion, or of Lion-K by elements, on the tensors of a device.\n"
             "Reads gradients, writes the rest. See largebatch.optim.Lion and largebatch.ops.");
}

}  // namespace lb::bind
