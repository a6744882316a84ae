// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// A launch: what is run, whether a device would take it, and running it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "executor/block.h"

namespace lb::simt {

// The device that is played: few multiprocessors, so that a cooperative grid that is sized by the
// device stays small; the limits are those of compute capability 9.0.
struct Device {
  static constexpr int kMultiprocessors = 4;
  static constexpr int kThreads = 2048;  // a multiprocessor
  static constexpr int kBlocks = 32;
  static constexpr int kBlockThreads = 1024;
  static constexpr size_t kShared = 233472;  // bytes: a multiprocessor, a block with leave, without
  static constexpr size_t kBlockSharedOptin = 232448;
  static constexpr size_t kBlockShared = 49152;
  static constexpr size_t kArguments = 32764;
};

struct Launch {
  const void* function;
  Index grid, block;
  size_t shared_bytes;
  bool cooperative;
  void (*body)(const void* arguments);  // calls the kernel once
  const void* arguments;
  size_t argument_bytes;
};

// Resident blocks a multiprocessor, by threads and dynamic shared memory.
int blocks_per_multiprocessor(int threads, size_t shared_bytes);

// Runs the grid to its end, alone. Throws std::runtime_error with the first bug found.
void execute(const Launch& launch);

// The thread that runs now, or null.
Thread* running();
void grid_sync(Site site);

// What the environment asks for, read at every launch.
struct Options {
  uint64_t seed;             // LARGEBATCH_SIMT_SEED: of the schedule
  bool race_check;           // LARGEBATCH_SIMT_RACECHECK=1
  std::string drop_barrier;  // LARGEBATCH_SIMT_DROP_BARRIER=tile.cuh:87: to see that it is missed
};
Options read_options();
const Options& options();  // of the grid that runs

}  // namespace lb::simt
