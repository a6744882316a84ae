// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The extension largebatch._C: a list.
#include "bind/errors.h"
#include "bind/register.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "Kernels of largebatch. The public interface is largebatch.ops and .optim.";
  lb::bind::register_errors(module);
  lb::bind::register_info(module);
  lb::bind::register_arrays(module);
  lb::bind::register_norm(module);
  lb::bind::register_lamb(module);
  lb::bind::register_lars(module);
}
