// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Of some thousand tensors none is in a cache when its turn comes, and waiting for each takes
// longer than what is done with it: this asks for those that come next.
//
// What is known of torch's objects is a guess, which costs nothing if it should be wrong. An object
// is a header and the address of its tensor; where that has been seen to be true
// (Exporter::layout_known) the tensor is read too: it begins with a table of functions and counts,
// and the addresses of its storage and of what autograd knows of it follow.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/fetch.h"

namespace lb::bind {

// The tensor that a guess finds behind an object.
LB_HD const char* tensor_of(PyObject* object) {
  const char* tensor;
  std::memcpy(&tensor, reinterpret_cast<char*>(object) + sizeof(PyObject), sizeof tensor);
  return tensor;
}

// Whether an object's tensor is where the guess says, from its sizes: they are a part of it.
inline bool is_behind(PyObject* object, const void* sizes) {
  const auto begin = reinterpret_cast<uintptr_t>(tensor_of(object));
  const auto at = reinterpret_cast<uintptr_t>(sizes);
  return begin != 0 && at >= begin + 32 && at < begin + 512;
}

// What follows a tensor's counts, by offset in bytes.
enum class Part : size_t { storage = 16, autograd = 24 };

// Call it for each of `items` in turn, when items[i] is a tensor of which a part will be needed.
// `layout_known` as in its Exporter.
LB_HD void fetch_ahead(PyObject* const* items, size_t i, size_t count, bool layout_known,
                       Part part) {
  constexpr size_t kObject = 8, kTensor = 4, kPart = 2;
  const auto is_like = [&](size_t k) {
    return k < count && Py_TYPE(items[k]) == Py_TYPE(items[i]);
  };
  if (i + kObject < count) __builtin_prefetch(items[i + kObject]);
  if (is_like(i + kTensor)) {
    const char* const tensor = tensor_of(items[i + kTensor]);
    fetch(tensor, part == Part::storage ? 4 * kLine : kLine);
  }
  if (!layout_known || !is_like(i + kPart)) return;
  const char* const tensor = tensor_of(items[i + kPart]);
  if (tensor == nullptr) return;
  const void* at;
  std::memcpy(&at, tensor + size_t(part), sizeof at);
  fetch(at, 2 * kLine);
}

}  // namespace lb::bind
