// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What becomes of a bug: one line that names the kernel, the block, the thread and the source line.
// The kernel ends there. Its fibers are left where they stand (nothing is unwound through a
// kernel), and the launch throws the line as std::runtime_error.
#pragma once

#include <cstdint>
#include <string>

#include "calls.h"

namespace lb::simt {

struct Thread;
class Block;

// The place of an access: a return address into instrumented code.
struct Code {
  uintptr_t address;
};
std::string describe(Site site);           // "tile.cuh:88"
std::string describe(Code code);           // "tile.cuh:40, inlined at lamb_cuda.cu:101"
std::string describe(const void* kernel);  // "lamb_moments_kernel<float, float>"
std::string hex(uint64_t value);

// Of the running thread.
[[noreturn]] void fail(const std::string& problem, Site site);
[[noreturn]] void fail(const std::string& problem, Code code);
// Of another thread, and of a whole block.
void fail_in(const Thread& thread, const std::string& problem, Site site);
void fail_block(const Block& block, const std::string& problem);

bool failed();
[[noreturn]] void throw_failure();  // and forgets it

}  // namespace lb::simt
