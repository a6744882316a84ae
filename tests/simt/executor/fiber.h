// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// A stack of its own for each CUDA thread, and the switch between it and the scheduler: some
// nanoseconds, so that a block of 1024 threads is as cheap to run as a loop.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lb::simt {

class Fiber {
 public:
  // Bytes; a kernel may take 32 KiB of arguments by value. Memory only where it was touched.
  static constexpr size_t kStack = 128 << 10;

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls entry(argument), which must not return. What ran before is forgotten.
  void start(void (*entry)(void*), void* argument);
  void resume();  // from the scheduler, until the fiber pauses
  void pause();   // from inside, back to the scheduler

  bool owns(uintptr_t address) const { return address - uintptr_t(stack_) < kStack; }
  bool overflowed() const;  // the last bytes of the stack have been written

 private:
  char* stack_;
  void *inside_, *outside_;  // stack pointers of the two sides while they do not run
};

}  // namespace lb::simt
