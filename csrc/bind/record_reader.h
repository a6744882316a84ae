// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What the Python layer says of a compressor and of error feedback, in dicts.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "bind/arrays.h"
#include "core/record.h"
#include "topk/feedback_rule.h"

namespace lb::bind {

// Record `index` of a plan, laid out by itself: of how many `tensors` it is, from the `first` on.
Record read_record(size_t index, const pybind11::dict& given, const std::vector<int64_t>& numels,
                   size_t first, size_t& tensors);

// How error feedback is to be done, from the dict of the Python layer. Holds the array of it.
class FeedbackReader {
 public:
  FeedbackReader(const char* op, const pybind11::dict& method, const ArrayList& like);
  const FeedbackHyper& hyper() const { return hyper_; }
  const ArrayList& inv_scale() const { return inv_scale_; }

 private:
  ArrayList inv_scale_;
  FeedbackHyper hyper_{};
};

template <class T>
T* data_or_null(const ArrayList& list) {
  return list.empty() ? nullptr : static_cast<T*>(list[0].data);
}

}  // namespace lb::bind
