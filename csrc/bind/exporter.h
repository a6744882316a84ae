// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What we know of a Python type of arrays, and the way of viewing its objects that follows. The
// GIL must be held for everything here.
//
// The fastest way that a type offers is taken (ladder):
//   exchange   the DLPack C exchange table of the type, borrowing        torch >= 2.10
//   managed    the same table, owning                                    if it cannot borrow
//   capsule    torch.utils.dlpack.to_dlpack                              older torch
//   protocol   object.__dlpack__()                                       NumPy, CuPy, others
// None of them copies, and all but the last accept tensors that require grad.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "bind/dlpack_abi.h"

namespace lb::bind {

enum class Rung { exchange, managed, capsule, protocol };
enum class Library { torch, cupy, other };

struct Exporter {
  const dlpack::ExchangeApi* api;  // null when the type has no table that we can read
  Library library;
  bool takes_max_version;     // __dlpack__(max_version=...): assumed until it is refused
  bool layout_known = false;  // an object was seen to be as fetch_ahead.h guesses

  Rung rung() const;
  // The stream that the library works on. Null, the default stream, for libraries unknown to us.
  void* current_stream(int32_t device_index) const;
};

// What is known of the object's type, found out once per type; null when it is no type of arrays.
Exporter* exporter_of(pybind11::handle object);

// The calls of the two lower rungs. False or null with a Python error set on failure. `stream` is
// None for memory of the host.
PyObject* torch_capsule(PyObject* tensor);
bool protocol_device(PyObject* object, dlpack::Device& device);
PyObject* protocol_capsule(PyObject* object, PyObject* stream, Exporter& exporter);

// "a list", "an int", "None": how messages call an object that is no array.
std::string kind_of(pybind11::handle object);

// For tests: the first rung of the ladder to try, "exchange" unless set. Returns the one before.
std::string set_dlpack_rung(const std::string& rung);
// The rung that arrays of the object's type take now.
std::string dlpack_rung(pybind11::handle object);

}  // namespace lb::bind
