// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The extension largebatch._C: a list of its parts, each of which has its bind_<part>.cpp.
#include <pybind11/pybind11.h>

#include "bind/errors.h"

#define LB_PARTS(X) \
  X(info)           \
  X(arrays)         \
  X(collect) X(norm) X(lamb) X(lars) X(adan) X(lion) X(agvm) X(kron) X(topk) X(wire) X(ulysses)

namespace lb::bind {
#define LB_DECLARE(part) void register_##part(pybind11::module_& module);
LB_PARTS(LB_DECLARE)
}  // namespace lb::bind

PYBIND11_MODULE(_C, module) {
  module.doc() = "Kernels of largebatch. The public interface is largebatch.ops and .optim.";
  lb::bind::register_errors(module);
#define LB_REGISTER(part) lb::bind::register_##part(module);
  LB_PARTS(LB_REGISTER)
}
