// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The binary interface of DLPack 1.x (https://dmlc.github.io/dlpack), as far as a consumer needs
// it: how array libraries show each other their memory. Declared here rather than included,
// because the build must need neither a framework nor a download.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lb::dlpack {

constexpr uint32_t kMajor = 1;  // structures of another major version must not be read
constexpr const char* kCapsule = "dltensor";
constexpr const char* kVersionedCapsule = "dltensor_versioned";
constexpr const char* kExchangeAttribute = "__dlpack_c_exchange_api__";  // looked up on the type
constexpr const char* kExchangeCapsule = "dlpack_exchange_api";

struct Version {
  uint32_t major;
  uint32_t minor;
};

// Only the codes that the library treats in their own way; messages name the others.
enum DeviceCode : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;  // the first element is at data + byte_offset
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;    // [ndim]; may be null when ndim is 0
  int64_t* strides;  // [ndim] in elements; null means C-contiguous (before DLPack 1.2)
  uint64_t byte_offset;
};

// What a capsule named "dltensor" holds.
struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

constexpr uint64_t kReadOnly = 1;

// What a capsule named "dltensor_versioned" holds. Up to `flags` the layout is that of every
// major version, so that a tensor which cannot be read can still be released.
struct VersionedTensor {
  Version version;
  void* context;
  void (*deleter)(VersionedTensor*);
  uint64_t flags;
  Tensor tensor;
};

struct ExchangeHeader {
  Version version;
  const ExchangeHeader* prev_api;  // a table of an older version, or null
};

// The functions a type offers C++ callers (DLPack 1.2). The GIL must be held. They return 0, or -1
// with a Python exception set, and wait for no stream.
struct ExchangeApi {
  ExchangeHeader header;
  // Make a new array of a library; make a Python object of an owned tensor. Not used here, and
  // therefore not spelt out.
  int (*managed_tensor_allocator)();
  int (*managed_tensor_from_py_object_no_sync)(void* object, VersionedTensor** out);
  int (*managed_tensor_to_py_object_no_sync)();
  // Borrows: shape and strides stay with the object. May be null.
  int (*dltensor_from_py_object_no_sync)(void* object, Tensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_index, void** out);
};

static_assert(sizeof(void*) == 8, "the offsets below are those of 64-bit systems");
static_assert(sizeof(Tensor) == 48 && offsetof(Tensor, dtype) == 20);
static_assert(offsetof(Tensor, shape) == 24 && offsetof(Tensor, byte_offset) == 40);
static_assert(sizeof(ManagedTensor) == 64 && sizeof(VersionedTensor) == 80);
static_assert(offsetof(VersionedTensor, flags) == 24 && offsetof(VersionedTensor, tensor) == 32);
static_assert(sizeof(ExchangeApi) == 56 && offsetof(ExchangeApi, current_work_stream) == 48);

}  // namespace lb::dlpack
