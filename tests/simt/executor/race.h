// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Data races (LARGEBATCH_SIMT_RACECHECK=1): two threads touch the same byte, one of them writes,
// not both are atomic, and nothing orders the two. What orders: a barrier of the block, an
// operation of the warp that both take part in, a grid sync, the end of a launch, and an atomic or
// volatile write after a fence that the other one has read.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lb::simt {

struct Access;
struct Thread;
class Block;

// "All that `thread` of `block` did up to `time`, and all that its block did in earlier epochs."
struct Knowledge {
  uint32_t block, epoch;
  uint32_t time;
  uint16_t thread;
};

// Of a thread: its own time, and what it knows to have happened.
struct Clock {
  uint32_t time = 1;
  std::array<uint32_t, 32> lanes{};  // times of its warp, in this epoch of the block
  std::vector<Knowledge> acquired;   // through atomics
  std::vector<Knowledge> fenced;     // what it knew at its last fence: an atomic write passes it on
};

// Of a block: its barriers.
struct BlockClock {
  uint32_t epoch = 1;
  std::vector<Knowledge> acquired;

  void barrier(Block& block);
};

void begin_race_check();
void next_era();  // nothing after this is concurrent with anything before
void meet_clocks(Block& block, unsigned first_rank, unsigned lanes);
void fence_clock(Thread& thread);
void check_race(Thread& thread, const Access& access, bool shared);

}  // namespace lb::simt
