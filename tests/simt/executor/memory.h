// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Which memory a kernel may touch, and the check of every access against it.
//
// Global memory is what has been registered: arrays for the time of a call, blocks of cudaMalloc
// until they are freed. Shared memory is the module's thread-local segment: the executor's
// __shared__ is `static thread_local`, which puts every shared variable of every kernel, templates
// included, into one range that can be poisoned, and exchanged where several blocks are alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "executor/report.h"

namespace lb::simt {

struct Thread;
struct Launch;

struct Access {
  uintptr_t at;
  size_t size;
  bool read, write;
  bool atomic;  // or volatile: meant to be seen by others while they run
  Code code;
};

// Stops the running thread, with a report, at an access that is wrong.
void check(Thread& thread, const Access& access);

using RangeId = uint64_t;
RangeId add_range(const void* data, size_t bytes, std::string label);
void remove_range(RangeId id);
// Whether bytes [data, data + bytes) that begin in a registered range stay in it.
bool range_holds(const void* data, size_t bytes);

// Before a grid: takes the ranges as they are now.
void begin_memory(const Launch& launch);
// The thread-local segment is not the kernels' alone: what others keep there has to survive a grid.
std::vector<char> save_thread_local();
void restore_thread_local(const std::vector<char>& saved);

class SharedMemory {
 public:
  void begin(size_t dynamic_bytes);  // all bytes unwritten, and NaN to who reads them unseen
  // A cooperative grid has all its blocks alive, with one thread-local segment between them.
  void swap_in() { restore_thread_local(saved_); }
  void swap_out() { saved_ = save_thread_local(); }

  char* dynamic() { return dynamic_.data() + kGap; }
  // The bytes written so far, from the one at `address` on; null when that is no shared memory.
  uint8_t* written(uintptr_t address, size_t size);
  bool near_dynamic(uintptr_t address, size_t size) const;

 private:
  static constexpr size_t kGap = 64;
  std::vector<char> dynamic_;  // with a gap on both sides
  size_t dynamic_bytes_ = 0;
  std::vector<char> saved_;
  std::vector<uint8_t> static_written_, dynamic_written_;
};

}  // namespace lb::simt
