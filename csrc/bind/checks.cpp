// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/checks.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/error.h"

namespace lb::bind {

namespace {

template <class Error>
[[noreturn]] void fail(const ArrayList& a, size_t i, const std::string& problem,
                       const char* hint = nullptr) {
  throw Error(a.where(i) + " " + problem + (hint == nullptr ? "" : std::string(" ") + hint));
}

std::string like_label(const ArrayList& like, size_t i) { return " like " + like.label(i) + "."; }

std::string list_of(const int64_t* values, int32_t count) {
  std::string text = "[";
  for (int32_t d = 0; d < count; ++d) text += (d > 0 ? ", " : "") + std::to_string(values[d]);
  return text + "]";
}

std::vector<int64_t> strides_of(const TensorView& view) {
  if (view.strides != nullptr) return {view.strides, view.strides + view.ndim};
  std::vector<int64_t> strides(size_t(view.ndim));
  int64_t stride = 1;
  for (int32_t d = view.ndim; d-- > 0; stride *= view.shape[d]) strides[size_t(d)] = stride;
  return strides;
}

// (stride, size) of the dimensions that have more than one element, the innermost first.
std::vector<std::pair<int64_t, int64_t>> dims_by_stride(const TensorView& view) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  const std::vector<int64_t> strides = strides_of(view);
  for (int32_t d = 0; d < view.ndim; ++d) {
    if (view.shape[d] != 1) dims.emplace_back(strides[size_t(d)], view.shape[d]);
  }
  std::sort(dims.begin(), dims.end());
  return dims;
}

bool is_dense(const TensorView& view) {
  if (view.contiguous) return true;
  int64_t expected = 1;
  for (const auto& [stride, size] : dims_by_stride(view)) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool is_expanded(const TensorView& view) {
  for (int32_t d = 0; d < view.ndim; ++d) {
    if (view.strides != nullptr && view.shape[d] > 1 && view.strides[d] == 0) return true;
  }
  return false;
}

bool same_shape(const TensorView& a, const TensorView& b) {
  if (a.ndim != b.ndim || a.numel != b.numel) return false;
  return a.ndim <= 1 || std::equal(a.shape, a.shape + a.ndim, b.shape);
}

bool same_strides(const TensorView& a, const TensorView& b) {  // of equal shapes
  if (a.contiguous && b.contiguous) return true;
  const std::vector<int64_t> strides_a = strides_of(a), strides_b = strides_of(b);
  for (size_t d = 0; d < strides_a.size(); ++d) {
    if (a.shape[d] != 1 && strides_a[d] != strides_b[d]) return false;
  }
  return true;
}

std::string names_of(std::initializer_list<DType> dtypes) {  // "float32, float16 or bfloat16"
  std::string text;
  for (const DType* dtype = dtypes.begin(); dtype != dtypes.end(); ++dtype) {
    if (dtype != dtypes.begin()) text += dtype + 1 == dtypes.end() ? " or " : ", ";
    text += name(*dtype);
  }
  return text;
}

}  // namespace

std::string describe(Device device) {
  return device.type == DeviceType::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

std::string describe_shape(const TensorView& view) { return list_of(view.shape, view.ndim); }

std::string describe_strides(const TensorView& view) {
  return list_of(strides_of(view).data(), view.ndim);
}

std::string dtype_name(const TensorView& view) {
  if (view.dtype != DType::other) return name(view.dtype);
  const std::string bits = std::to_string(view.dlpack_bits);
  switch (view.dlpack_code) {
    case dlpack::kInt:
      return "int" + bits;
    case dlpack::kUInt:
      return "uint" + bits;
    case dlpack::kComplex:
      return "complex" + bits;
    case dlpack::kBool:
      return "bool";
    default:  // a small float, or a vector of them
      return "a " + bits + "-bit type (DLPack code " + std::to_string(view.dlpack_code) + ")";
  }
}

std::string describe(const TensorView& view) {
  const std::string strides = view.contiguous ? "" : " with strides " + describe_strides(view);
  return dtype_name(view) + " " + describe_shape(view) + strides + " on " + describe(view.device);
}

void check_same_length(const ArrayList& a, const ArrayList& like) {
  if (a.size() == like.size()) return;
  throw ValueError(std::string(a.op()) + ": " + a.argument() + " has " + std::to_string(a.size()) +
                   " arrays, expected " + std::to_string(like.size()) + " like " + like.argument() +
                   ".");
}

void check_dtype(const ArrayList& a, std::initializer_list<DType> allowed, const char* hint) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::find(allowed.begin(), allowed.end(), a[i].dtype) != allowed.end()) continue;
    fail<TypeError>(a, i, "has dtype " + dtype_name(a[i]) + ", expected " + names_of(allowed) + ".",
                    hint);
  }
}

void check_same_dtype(const ArrayList& a, const ArrayList& like, const char* hint) {
  check_same_length(a, like);
  for (size_t i = 0; i < a.size(); ++i) {
    const bool same = a[i].dtype == like[i].dtype && a[i].dlpack_code == like[i].dlpack_code &&
                      a[i].dlpack_bits == like[i].dlpack_bits;
    if (same) continue;
    fail<TypeError>(
        a, i,
        "has dtype " + dtype_name(a[i]) + ", expected " + dtype_name(like[i]) + like_label(like, i),
        hint);
  }
}

void check_same_shape(const ArrayList& a, const ArrayList& like, const char* hint) {
  check_same_length(a, like);
  for (size_t i = 0; i < a.size(); ++i) {
    if (same_shape(a[i], like[i])) continue;
    fail<ValueError>(a, i,
                     "has shape " + describe_shape(a[i]) + ", expected " + describe_shape(like[i]) +
                         like_label(like, i),
                     hint);
  }
}

void check_same_device(const ArrayList& a, const ArrayList& like, const char* hint) {
  if (like.empty()) return;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].device == like[0].device) continue;
    fail<ValueError>(a, i,
                     "is on " + describe(a[i].device) + ", expected " + describe(like[0].device) +
                         like_label(like, 0),
                     hint);
  }
}

void check_dense(const ArrayList& a, const char* hint) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (is_dense(a[i])) continue;
    const std::string got = is_expanded(a[i]) ? "is expanded: got" : "is not dense: got";
    fail<ValueError>(a, i,
                     got + " shape " + describe_shape(a[i]) + " with strides " +
                         describe_strides(a[i]) + ", expected one block without gaps or overlaps.",
                     hint == nullptr ? "Pass x.contiguous()." : hint);
  }
}

void check_no_overlap(const ArrayList& a) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].numel == 0 || a[i].contiguous) continue;
    int64_t reach = 0;  // of the dimensions inside
    for (const auto& [stride, size] : dims_by_stride(a[i])) {
      if (stride <= reach) {
        fail<ValueError>(a, i,
                         "overlaps itself: got shape " + describe_shape(a[i]) + " with strides " +
                             describe_strides(a[i]) + ", expected a place for each element.");
      }
      reach += (size - 1) * stride;
    }
  }
}

void check_layout(const ArrayList& a, size_t i, const ArrayList& like, size_t j, const char* hint) {
  if (!same_shape(a[i], like[j])) {
    fail<ValueError>(a, i,
                     "has shape " + describe_shape(a[i]) + ", expected " + describe_shape(like[j]) +
                         like_label(like, j),
                     hint);
  }
  if (a[i].numel == 0 || same_strides(a[i], like[j])) return;
  fail<ValueError>(a, i,
                   "has strides " + describe_strides(a[i]) + ", expected " +
                       describe_strides(like[j]) + like_label(like, j),
                   hint);
}

void check_same_layout(const ArrayList& a, const ArrayList& like, const char* hint) {
  check_same_length(a, like);
  for (size_t i = 0; i < a.size(); ++i) check_layout(a, i, like, i, hint);
}

void check_scalar(const ArrayList& a, const ArrayList& like, DType dtype) {
  check_dtype(a, {dtype});
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].numel == 1) continue;
    fail<ValueError>(a, i, "has shape " + describe_shape(a[i]) + ", expected one element.");
  }
  check_same_device(a, like);
}

// ---- Overlaps -----------------------------------------------------------------------------------

namespace {

struct Range {
  uintptr_t begin, end;  // bytes [begin, end)
  const ArrayList* list;
  uint32_t index;  // in the list
  uint32_t order;  // among all arrays of the call; those that are written come first
};

Range range_of(const ArrayList& list, size_t i, size_t order) {
  const TensorView& view = list[i];
  const int64_t itemsize = (view.dlpack_bits + 7) / 8;
  int64_t first = 0, last = view.numel - 1;  // elements, relative to data
  if (!view.contiguous) {
    last = 0;
    for (int32_t d = 0; d < view.ndim; ++d) {
      const int64_t reach = (view.shape[d] - 1) * view.strides[d];
      (reach < 0 ? first : last) += reach;
    }
  }
  const auto data = reinterpret_cast<uintptr_t>(view.data);
  return {data + uintptr_t(first * itemsize), data + uintptr_t((last + 1) * itemsize), &list,
          uint32_t(i), uint32_t(order)};
}

[[noreturn]] void fail_overlap(const Range& a, const Range& b) {
  const auto [one, other] = std::minmax(a, b, [](auto& x, auto& y) { return x.order < y.order; });
  fail<ValueError>(*one.list, one.index,
                   "and " + other.list->label(other.index) +
                       " share memory: " + one.list->label(one.index) +
                       " is written, expected memory of its own. Pass a clone of one of them.");
}

// The ranges of all arrays that have elements, by address.
std::vector<Range> sorted_ranges(std::initializer_list<const ArrayList*> written,
                                 std::initializer_list<const ArrayList*> read) {
  std::vector<Range> ranges;
  size_t order = 0;
  for (const auto& lists : {written, read}) {
    for (const ArrayList* list : lists) {
      ranges.reserve(ranges.size() + list->size());
      for (size_t i = 0; i < list->size(); ++i, ++order) {
        if ((*list)[i].numel > 0) ranges.push_back(range_of(*list, i, order));
      }
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.order < b.order;
  });
  return ranges;
}

}  // namespace

void check_writes(std::initializer_list<const ArrayList*> written,
                  std::initializer_list<const ArrayList*> read) {
  size_t num_written = 0;
  for (const ArrayList* list : written) {
    num_written += list->size();
    for (size_t i = 0; i < list->size(); ++i) {
      if (!list->read_only(i)) continue;
      fail<ValueError>(*list, i, "is read-only, expected an array that may be written.");
    }
  }
  const std::vector<Range> ranges = sorted_ranges(written, read);
  // Of the ranges before, the ones that reach furthest: among all, and among the written.
  const Range *furthest = nullptr, *furthest_written = nullptr;
  for (const Range& range : ranges) {
    const bool is_written = range.order < num_written;
    const Range* before = is_written ? furthest : furthest_written;
    if (before != nullptr && range.begin < before->end) fail_overlap(*before, range);
    if (furthest == nullptr || range.end > furthest->end) furthest = &range;
    if (is_written && (furthest_written == nullptr || range.end > furthest_written->end)) {
      furthest_written = &range;
    }
  }
}

}  // namespace lb::bind
