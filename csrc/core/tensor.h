// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What the library knows of an array: where it lies, what it holds, how it is laid out.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace lb {

enum class DeviceType : int32_t { cpu = 1, cuda = 2 };  // the codes of DLPack

struct Device {
  DeviceType type;
  int32_t index;
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
};

struct TensorView {
  void* data;  // first element, byte offset included; may be null when numel is 0
  DType dtype;
  uint8_t dlpack_code;  // DLPack type code and bits, to name a dtype that is `other`
  uint8_t dlpack_bits;
  Device device;
  int32_t ndim;
  const int64_t* shape;    // [ndim], borrowed from the array
  const int64_t* strides;  // [ndim] in elements, borrowed; null means C-contiguous
  int64_t numel;
  bool contiguous;  // C-contiguous; strides of dimensions of size 1 do not matter
};

}  // namespace lb
