// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// From our errors to Python's, and from Python's to our one-line messages.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace lb::bind {

// Defines BackendUnavailable in the module, and turns each class of core/error.h into its Python
// class wherever the module throws it.
void register_errors(pybind11::module_& module);

// The pending Python error in one line, "BufferError: ...", which is then no longer pending. What
// no array causes (KeyboardInterrupt, MemoryError) is thrown on. Empty when nothing is pending.
std::string take_python_error();

// Why an array shows no memory, in our words: "is a DTensor, ... Pass x.to_local()."
// `reason` is what its library said, for arrays that we know nothing about.
std::string explain_no_memory(pybind11::handle array, const std::string& reason);

}  // namespace lb::bind
