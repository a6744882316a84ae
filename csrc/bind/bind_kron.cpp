// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "bind/group_reader.h"
#include "bind/step_plan.h"
#include "kron/kron.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

KronHyper parse_kron(const GroupReader& reader) {
  KronHyper hyper{};
  hyper.variant = KronVariant(reader.choice("variant", {"leaky", "exact", "paper"}));
  hyper.norm = KronNorm(reader.choice("stabilizer_norm", {"max", "inf"}));
  hyper.gamma = reader.number("gamma", 0, 1);
  hyper.leak = reader.number("leak", 0);
  hyper.rho = reader.number("rho", 0);
  hyper.threshold = reader.number("stabilizer_threshold", 0);
  hyper.blend = reader.number("stabilizer_blend", 0, 1);
  const auto refuse = [&](const char* key, double got, const char* expected) {
    reader.fail(key, py::float_(got), expected);
  };
  if (hyper.gamma == 0) refuse("gamma", hyper.gamma, "a number in (0, 1)");
  if (hyper.leak > 1) refuse("leak", hyper.leak, "a number in [0, 1]");
  if (hyper.rho == 0 || is_nonfinite(hyper.rho)) {
    refuse("rho", hyper.rho, "a finite number above 0");
  }
  if (hyper.threshold == 0) refuse("stabilizer_threshold", hyper.threshold, "a number above 0");
  if (hyper.variant == KronVariant::leaky && !is_nonfinite(hyper.threshold)) {
    refuse("stabilizer_threshold", hyper.threshold,
           "None with variant 'leaky', which blends in every update");
  }
  return hyper;
}

void check_square(const ArrayList& factors) {
  for (size_t f = 0; f < factors.size(); ++f) {
    const TensorView& m = factors[f];
    if (m.ndim != 2 || m.shape[0] != m.shape[1]) {
      throw ValueError(factors.where(f) + " has shape " + describe_shape(m) +
                       ", expected a square matrix [d, d].");
    }
    if (m.strides == nullptr || m.numel <= 1) continue;
    if (m.strides[1] != 1 || m.strides[0] < m.shape[1]) {
      throw ValueError(factors.where(f) + " has strides " + describe_strides(m) +
                       ", expected [d or more, 1]. Pass x.contiguous().");
    }
  }
}

void check_vectors(const ArrayList& vectors, const ArrayList& factors) {
  check_same_length(vectors, factors);
  check_same_device(vectors, factors);
  for (size_t f = 0; f < vectors.size(); ++f) {
    const TensorView& v = vectors[f];
    const DType expected = factors[f].dtype == DType::float64 ? DType::float64 : DType::float32;
    if (v.dtype != expected) {
      throw TypeError(vectors.where(f) + " has dtype " + dtype_name(v) + ", expected " +
                      name(expected) + " with " + factors.label(f) + " of " +
                      dtype_name(factors[f]) + ".");
    }
    if (v.ndim != 1 || v.shape[0] != factors[f].shape[0]) {
      throw ValueError(vectors.where(f) + " has shape " + describe_shape(v) + ", expected [" +
                       std::to_string(factors[f].shape[0]) + "] like a row of " + factors.label(f) +
                       ".");
    }
  }
  check_dense(vectors);
}

// An array with `columns` numbers for each factor.
void check_state(const ArrayList& state, DType dtype, int64_t columns, const ArrayList& factors) {
  if (state.empty()) return;
  check_dtype(state, {dtype});
  check_same_device(state, factors);
  const TensorView& view = state[0];
  const bool fits = columns == 1 ? view.ndim == 1 : view.ndim == 2 && view.shape[1] == columns;
  if (!fits || view.shape[0] != int64_t(factors.size())) {
    throw ValueError(state.where(0) + " has shape " + describe_shape(view) + ", expected [" +
                     std::to_string(factors.size()) +
                     (columns == 1 ? "]" : ", " + std::to_string(columns) + "]") +
                     ", one for each of factors.");
  }
  check_dense(state);
}

std::vector<Entry> make_entries(const ArrayList& factors, const ArrayList& vectors) {
  std::vector<Entry> entries(factors.size(), Entry{});
  for (size_t f = 0; f < factors.size(); ++f) {
    const TensorView& m = factors[f];
    const int64_t order = m.shape[0];
    entries[f].grad = vectors[f].data;
    entries[f].grad_dtype = vectors[f].dtype;
    entries[f].data[kKronFactor] = m.data;
    entries[f].dtypes[kKronFactor] = m.dtype;
    set_kron_order(entries[f], order, m.strides == nullptr || order < 2 ? order : m.strides[0]);
  }
  return entries;
}

void kron_rank1_update(py::handle factors_, py::handle vectors_, py::handle norms_,
                       py::handle counters_, const py::dict& hyper_, py::handle skip_) {
  constexpr const char* op = "kron_rank1_update";
  // Views.
  const auto [factors, vectors] =
      ArrayList::rows(op, {{"factors", factors_}, {"vectors", vectors_}});
  const ArrayList norms = ArrayList::single(op, "norms", norms_, &factors);
  const ArrayList counters = ArrayList::single(op, "counters", counters_, &factors);
  const ArrayList skip = ArrayList::optional(op, "skip", skip_, &factors);
  const KronHyper hyper = parse_kron(GroupReader(op, -1, hyper_));

  // Checks.
  check_dtype(factors, {DType::float32, DType::float16, DType::bfloat16, DType::float64});
  check_same_device(factors, factors);
  check_square(factors);
  check_vectors(vectors, factors);
  check_state(norms, DType::float32, 1, factors);
  check_state(counters, DType::int64, kKronCounts, factors);
  check_state(skip, DType::float32, 1, factors);
  check_writes({&factors, &norms, &counters}, {&vectors, &skip});
  if (factors.empty()) return;

  // Device, stream, memory, call.
  const Device device = factors[0].device;
  void* stream = factors.stream();
  StepPlan<KronNone, KronScalars> plan;
  plan.prepare(op, device, stream, make_entries(factors, vectors), {});
  const KronState state{static_cast<float*>(norms[0].data), static_cast<int64_t*>(counters[0].data),
                        skip.empty() ? nullptr : static_cast<const float*>(skip[0].data)};
  run(
      op, device, stream,
      [&] { cpu::kron_rank1_update(plan.plan(), plan.workspace(), hyper, state); },
      [&]([[maybe_unused]] void* s) {
        LB_CUDA_CALL(cuda::kron_rank1_update(plan.plan(), plan.workspace(), hyper, state, s));
      });
}

}  // namespace

void register_kron(py::module_& module) {
  module.def("kron_rank1_update", &kron_rank1_update, py::arg("factors"), py::arg("vectors"),
             py::arg("norms"), py::arg("counters"), py::arg("hyper"), py::arg("skip"),
             "Updates factors[i], the inverse of a Kronecker factor, with vectors[i].\n"
             "See largebatch.ops.kron_rank1_update.");
}

}  // namespace lb::bind
