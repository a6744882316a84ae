// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What ops ask of their arrays before they touch any. Each check throws TypeError (dtypes) or
// ValueError (everything else) with one line:
//   op: argument[index] problem: got A, expected B. Hint.
// `hint` is a sentence of the caller's, or null. A check against `like` compares a[i] to like[i]
// and includes that both have the same length.
#pragma once

#include <initializer_list>
#include <string>

#include "bind/arrays.h"

namespace lb::bind {

// For messages: "float32 [3, 4] on cpu", with strides unless C-contiguous; "[3, 4]"; "cuda:0".
std::string describe(const TensorView& view);
std::string describe_shape(const TensorView& view);
std::string describe_strides(const TensorView& view);
std::string describe(Device device);
std::string dtype_name(const TensorView& view);  // also of types that are `other`: "int64"

void check_same_length(const ArrayList& a, const ArrayList& like);
void check_dtype(const ArrayList& a, std::initializer_list<DType> allowed,
                 const char* hint = nullptr);
void check_same_dtype(const ArrayList& a, const ArrayList& like, const char* hint = nullptr);
void check_same_shape(const ArrayList& a, const ArrayList& like, const char* hint = nullptr);

// Every array is where the first one of `like` is (`like` may be `a` itself).
void check_same_device(const ArrayList& a, const ArrayList& like, const char* hint = nullptr);

// The elements fill one block of memory without gap or overlap: a permutation of a C-contiguous
// array. Strides of dimensions of size 1 do not matter.
void check_dense(const ArrayList& a, const char* hint = nullptr);

// No two elements are in the same place, for arrays that are written (a little more is refused:
// dimensions have to lie inside each other).
void check_no_overlap(const ArrayList& a);

// Same shape and same strides, so that element k of the memory of one belongs to element k of the
// other. Strides of dimensions of size 1, and of empty arrays, do not matter.
void check_same_layout(const ArrayList& a, const ArrayList& like, const char* hint = nullptr);
// The same for a[i] and like[j].
void check_layout(const ArrayList& a, size_t i, const ArrayList& like, size_t j,
                  const char* hint = nullptr);

// Each array holds one number of a type, where `like` is.
void check_scalar(const ArrayList& a, const ArrayList& like, DType dtype = DType::float32);

// Each array of `written` may be written, and shares no byte with another of `written` or `read`.
// (Arrays that are read may overlap each other.) One sorted pass over all of them.
void check_writes(std::initializer_list<const ArrayList*> written,
                  std::initializer_list<const ArrayList*> read);

}  // namespace lb::bind
