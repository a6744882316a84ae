// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Which memory the kernels of a call may touch: what the tests' executor of CUDA kernels
// (tests/simt) checks every access against. In every other build it is nothing.
#pragma once

#include <cstddef>

#if LB_SIMT
#include <vector>

#include "executor/memory.h"
#endif

namespace lb {

class Watch {
 public:
#if LB_SIMT
  Watch() = default;
  Watch(Watch&&) = default;
  Watch& operator=(Watch&& other) {
    ids_.swap(other.ids_);
    return *this;
  }
  ~Watch() {
    for (const simt::RangeId id : ids_) simt::remove_range(id);
  }
  template <class Label>
  void add(const void* data, size_t bytes, Label label) {
    ids_.push_back(simt::add_range(data, bytes, label()));
  }

 private:
  std::vector<simt::RangeId> ids_;
#else
  template <class Label>
  void add(const void*, size_t, Label) {}
#endif
};

}  // namespace lb
