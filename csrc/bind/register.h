// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Every part of the extension puts its names into the module through one function.
#pragma once

#include <pybind11/pybind11.h>

// The CUDA backend's function is declared in every build and defined in those with CUDA.
#if LB_CUDA
#define LB_CUDA_CALL(call) call
#else
#define LB_CUDA_CALL(call) (void)0
#endif

namespace lb::bind {

void register_info(pybind11::module_& module);
void register_arrays(pybind11::module_& module);
void register_norm(pybind11::module_& module);
void register_lamb(pybind11::module_& module);
void register_lars(pybind11::module_& module);

}  // namespace lb::bind
