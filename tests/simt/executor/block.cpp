// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "executor/block.h"

#include <algorithm>
#include <map>

#include "executor/grid.h"
#include "executor/report.h"

lb::simt::Index threadIdx, blockIdx, blockDim, gridDim;  // what kernels see as constants

namespace lb::simt {

namespace {

Thread* now_running = nullptr;

// At most so many accesses of a thread until others may go on: enough to shuffle the schedule, and
// to let the one that a spinning thread waits for have its turn.
constexpr uint64_t kQuantum = 2048;

// Accesses of a grid without any thread coming to a barrier, a warp operation or its end.
constexpr int64_t kPatience = int64_t(1) << 27;
int64_t patience = kPatience;

void enter(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  const Launch& launch = thread.block->launch();
  launch.body(launch.arguments);
  thread.block->finish(thread);
}

// "0-15, 17"
std::string ranges(const std::vector<unsigned>& ranks) {
  std::string text;
  for (size_t i = 0, j; i < ranks.size(); i = j + 1) {
    for (j = i; j + 1 < ranks.size() && ranks[j + 1] == ranks[j] + 1; ++j) {
    }
    text += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
    if (j > i) text += "-" + std::to_string(ranks[j]);
  }
  return text;
}

}  // namespace

Thread* running() { return now_running; }

void Block::begin(const Launch& launch, int64_t block_number, Index block_index, uint64_t seed) {
  launch_ = &launch;
  number = block_number;
  index = block_index;
  size_ = size_t(launch.block.x) * launch.block.y * launch.block.z;
  random_.seed(seed + 0x2545f4914f6cdd1d * uint64_t(block_number + 1));
  finished_ = at_grid_ = arrived_ = votes_ = 0;
  patience = kPatience;
  shared.begin(launch.shared_bytes);
  clock = BlockClock();
  while (threads_.size() < size_) threads_.push_back(std::make_unique<Thread>());
  warps_.resize((size_ + 31) / 32);
  for (size_t w = 0; w < warps_.size(); ++w) {
    warps_[w].begin(*this, unsigned(w * 32), unsigned(std::min<size_t>(32, size_ - w * 32)));
  }
  ready_.clear();
  for (size_t r = 0; r < size_; ++r) {
    Thread& thread = *threads_[r];
    thread.block = this;
    const auto x = unsigned(r % launch.block.x), rest = unsigned(r / launch.block.x);
    thread.index = {x, rest % launch.block.y, rest / launch.block.y};
    thread.rank = uint16_t(r);
    thread.clock = Clock();
    thread.fiber.start(enter, &thread);
    wake(thread);
  }
}

void Block::run(int64_t turns) {
  for (; turns > 0 && !ready_.empty() && !failed(); --turns) {
    std::swap(ready_[random_() % ready_.size()], ready_.back());
    Thread* thread = ready_.back();
    ready_.pop_back();
    thread->wait = Wait::nothing;
    thread->accesses_left = int(1 + random_() % kQuantum);
    now_running = thread;
    threadIdx = thread->index;
    blockIdx = index;
    blockDim = launch_->block;
    gridDim = launch_->grid;
    thread->fiber.resume();
    now_running = nullptr;
    if (thread->fiber.overflowed()) {
      fail_in(*thread, "stack overflow: more than 128 KiB of local memory", thread->site);
    }
  }
}

void Block::wake(Thread& thread) { ready_.push_back(&thread); }

void Block::wait(Thread& thread, Wait why, const char* call, Site site) {
  thread.wait = why;
  thread.call = call;
  thread.site = site;
  patience = kPatience;
  thread.fiber.pause();
}

void Block::give_way(Thread& thread, Code code) {
  patience -= int64_t(kQuantum);
  if (patience < 0) fail("no thread gets further: this one waits for what nobody writes", code);
  wake(thread);
  thread.fiber.pause();
}

void Block::finish(Thread& thread) {
  ++finished_;
  warp_of(thread).leave(thread.lane());
  wait(thread, Wait::finished, "", {});
}

void Block::pass_barrier() {
  clock.barrier(*this);
  for (size_t r = 0; r < size_; ++r) wake(*threads_[r]);
}

int Block::arrive(Thread& thread, Barrier kind, bool predicate, Site site) {
  static const char* const names[] = {"__syncthreads", "__syncthreads_count", "__syncthreads_and",
                                      "__syncthreads_or"};
  if (arrived_ == 0) {
    kind_ = kind;
    first_ = site;
  } else if (kind != kind_) {
    fail(std::string("barrier divergence: ") + names[int(kind)] + " here, " + names[int(kind_)] +
             " at " + describe(first_),
         site);
  }
  votes_ += predicate;
  if (++arrived_ == int(size_)) {
    result_ = kind == Barrier::count ? votes_
              : kind == Barrier::all ? votes_ == int(size_)
                                     : votes_ != 0;
    arrived_ = votes_ = 0;
    pass_barrier();
  }
  wait(thread, Wait::barrier, names[int(kind)], site);
  return result_;
}

void Block::arrive_at_grid(Thread& thread, Site site) {
  if (!launch_->cooperative) fail("grid sync in a grid that was not launched cooperatively", site);
  ++at_grid_;
  wait(thread, Wait::grid, "grid sync", site);
}

void Block::leave_grid_barrier() {
  at_grid_ = 0;
  pass_barrier();
}

std::string Block::describe_waiting() const {
  std::map<std::string, std::vector<unsigned>> groups;
  for (size_t r = 0; r < size_; ++r) {
    const Thread& thread = *threads_[r];
    const std::string what = thread.wait == Wait::finished ? "have returned"
                                                           : std::string("wait at ") + thread.call +
                                                                 " (" + describe(thread.site) + ")";
    groups[what].push_back(unsigned(r));
  }
  std::string text = "barrier divergence:";
  for (const auto& [what, ranks] : groups) {
    text += (text.back() == ':' ? " threads " : "; threads ") + ranges(ranks) + " " + what;
  }
  return text;
}

}  // namespace lb::simt
