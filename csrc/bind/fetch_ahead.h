// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstring>

#include "core/fetch.h"

namespace lb::bind {

// Of some thousand tensors none is in a cache when its turn comes, and waiting for each takes
// longer than what is done with it. An object of torch is a header and a pointer to what it is
// about; if it should not be, we ask for memory that is not needed, which harms nothing. Call it
// for each of `items` in turn, when items[i] is a tensor. Inline, because GCC takes a function that
// only asks for memory for one that does nothing.
LB_HD void fetch_ahead(PyObject* const* items, size_t i, size_t count) {
  constexpr size_t kNear = 4, kFar = 8;
  if (i + kFar < count) __builtin_prefetch(items[i + kFar]);
  if (i + kNear >= count || Py_TYPE(items[i + kNear]) != Py_TYPE(items[i])) return;
  const char* about;
  std::memcpy(&about, reinterpret_cast<char*>(items[i + kNear]) + sizeof(PyObject), sizeof about);
  fetch(about, 3 * kLine);
}

}  // namespace lb::bind
