// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// A block: its threads, who of them can go on, what the others wait for, and its barrier.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "calls.h"
#include "executor/fiber.h"
#include "executor/memory.h"
#include "executor/race.h"
#include "executor/report.h"
#include "executor/warp.h"

namespace lb::simt {

struct Index {
  unsigned x, y, z;
};

class Block;

enum class Wait : uint8_t { nothing, barrier, warp, grid, finished };

struct Thread {
  Fiber fiber;
  Block* block;
  Index index;
  uint16_t rank;  // in the block: x runs fastest
  Wait wait;
  const char* call;  // what it waits in, and where
  Site site;
  int accesses_left;  // until it is made to let others go on
  Deposit deposit;    // what it brought to an operation of its warp, and took from it
  Clock clock;

  unsigned lane() const { return rank % 32u; }
};

class Block {
 public:
  // Makes this the block `number` at `index`, with no thread begun.
  void begin(const struct Launch& launch, int64_t number, Index index, uint64_t seed);

  // Runs threads in random order until none can go on, `turns` have been taken, or one has failed.
  void run(int64_t turns);
  size_t able() const { return ready_.size(); }  // threads that can go on
  bool finished() const { return finished_ == int(size()); }
  bool all_wait_for_grid() const { return at_grid_ == int(size()); }
  void leave_grid_barrier();
  // Who waits where, for the report of a block that cannot go on.
  std::string describe_waiting() const;

  // Called by the running thread.
  int arrive(Thread& thread, Barrier kind, bool predicate, Site site);
  void arrive_at_grid(Thread& thread, Site site);
  void wait(Thread& thread, Wait why, const char* call, Site site);
  void give_way(Thread& thread, Code code);  // stays ready
  void wake(Thread& thread);
  void finish(Thread& thread);

  size_t size() const { return size_; }
  Thread& thread(size_t rank) { return *threads_[rank]; }
  Warp& warp_of(const Thread& thread) { return warps_[thread.rank / 32u]; }
  const Launch& launch() const { return *launch_; }

  int64_t number = 0;
  Index index{};
  SharedMemory shared;
  BlockClock clock;

 private:
  void pass_barrier();

  const Launch* launch_ = nullptr;
  size_t size_ = 0;
  std::vector<std::unique_ptr<Thread>> threads_;  // kept from block to block, as are their stacks
  std::vector<Warp> warps_;
  std::vector<Thread*> ready_;
  std::mt19937_64 random_;  // whose numbers are the same on every machine
  int finished_ = 0, at_grid_ = 0;
  int arrived_ = 0, votes_ = 0;  // at the barrier
  int result_ = 0;
  Barrier kind_ = Barrier::plain;
  Site first_;  // where the first of those came
};

}  // namespace lb::simt
