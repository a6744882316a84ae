// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What the host needs to know and do about a CUDA device. Streams are passed as void*, so that
// only .cu files see CUDA's headers.
#pragma once

#include <cstdint>
#include <string>

namespace lb::cuda {

struct Status {
  bool available;
  std::string reason;  // why not, and the way out; empty when available
  int driver_version;  // 13020 for 13.2; 0 without a driver
  int runtime_version;
  int device_count;
};
Status status();

// Makes `device` the current one, and the one before again at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

// Whether work given to the stream is being recorded into a graph.
bool capturing(void* stream);

// Brings bytes of the host to the device as arguments of a kernel. The launch takes a copy of
// them, so `from` may change at once, nothing is pinned, and a graph replays the same bytes;
// an asynchronous memcpy promises none of the three. 8-byte aligned, both ends.
void upload(void* to, const void* from, int64_t bytes, void* stream);

}  // namespace lb::cuda
