// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "executor/race.h"

#include <algorithm>
#include <memory>
#include <string>
#include <unordered_map>

#include "executor/block.h"
#include "executor/grid.h"
#include "executor/memory.h"
#include "executor/report.h"

namespace lb::simt {

namespace {

// An access that is remembered. `bytes`: which of the four bytes of the cell.
struct Past {
  uint32_t era, block, epoch, time;
  uintptr_t code;
  uint16_t thread;
  uint8_t bytes;
  bool write, atomic;
};
struct Cell {  // four bytes of memory
  Past past[4];
};
constexpr uintptr_t kPage = 1024;  // cells
using Page = std::array<Cell, kPage>;

bool enabled = false;
uint32_t era = 0;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
Page* last_page = nullptr;
uintptr_t last_number = 0;
std::unordered_map<uintptr_t, std::vector<Knowledge>> published;  // by address of an atomic
constexpr size_t kMaxPages = 4096;  // 512 MiB; forgotten between launches

bool covers(const Knowledge& k, const Past& past) {
  if (k.block != past.block) return false;
  return past.epoch < k.epoch ||
         (past.epoch == k.epoch && past.thread == k.thread && past.time <= k.time);
}

void learn(std::vector<Knowledge>& known, const Knowledge& k) {
  for (Knowledge& old : known) {
    if (old.block != k.block) continue;
    if (old.epoch > k.epoch) return;
    if (old.epoch < k.epoch || old.thread == k.thread) {
      if (old.epoch < k.epoch || old.time < k.time) old = k;
      return;
    }
  }
  known.push_back(k);
}

void learn(std::vector<Knowledge>& known, const std::vector<Knowledge>& more) {
  for (const Knowledge& k : more) learn(known, k);
}

bool ordered(const Past& past, const Thread& thread) {
  const Block& block = *thread.block;
  const Clock& clock = thread.clock;
  if (past.era != era) return true;
  if (past.block == uint32_t(block.number)) {
    if (past.thread == thread.rank || past.epoch < block.clock.epoch) return true;
    if (past.thread / 32 == thread.rank / 32 && past.time <= clock.lanes[past.thread % 32]) {
      return true;
    }
  }
  const auto by = [&](const Knowledge& k) { return covers(k, past); };
  return std::any_of(clock.acquired.begin(), clock.acquired.end(), by) ||
         std::any_of(block.clock.acquired.begin(), block.clock.acquired.end(), by);
}

Cell& cell_of(uintptr_t word) {
  const uintptr_t number = word / kPage;
  if (last_page == nullptr || number != last_number) {
    auto& page = pages[number];
    if (page == nullptr) page = std::make_unique<Page>();
    last_number = number;
    last_page = page.get();
  }
  return (*last_page)[word % kPage];
}

std::string describe(const Past& past, const Thread& thread) {
  const Launch& launch = thread.block->launch();
  const unsigned x = past.thread % launch.block.x, rest = past.thread / launch.block.x;
  std::string text = "thread (" + std::to_string(x) + "," + std::to_string(rest % launch.block.y) +
                     "," + std::to_string(rest / launch.block.y) + ")";
  if (past.block != uint32_t(thread.block->number)) {
    text += " of block " + std::to_string(past.block);
  }
  return text + (past.write ? " wrote" : " read") + " at " + describe(Code{past.code});
}

void check_cell(Thread& thread, const Access& access, bool shared, uintptr_t word, uint8_t bytes) {
  Cell& cell = cell_of(word);
  const Past now{era,
                 uint32_t(thread.block->number),
                 thread.block->clock.epoch,
                 thread.clock.time,
                 access.code.address,
                 thread.rank,
                 bytes,
                 access.write,
                 access.atomic};
  Past* replaced = nullptr;
  for (Past& past : cell.past) {
    const bool stale = past.era != era || (shared && past.block != now.block);
    if (stale) {
      replaced = &past;
      continue;
    }
    const bool mine = past.thread == now.thread && past.block == now.block;
    const bool before = mine || ordered(past, thread);
    if (!before && (past.bytes & bytes) != 0 && (past.write || access.write) &&
        !(past.atomic && access.atomic)) {
      fail(std::string("race: ") + (access.read ? "reads " : "writes ") +
               std::to_string(access.size) + " bytes of " + (shared ? "shared" : "global") +
               " memory at " + hex(access.at) + ", which " + describe(past, thread) +
               "; nothing orders the two",
           access.code);
    }
    // Who races with a past that is ordered before this access races with this access too.
    if (before && (past.bytes & ~bytes) == 0 && (access.write || !past.write) &&
        (!access.atomic || past.atomic)) {
      replaced = &past;
    }
  }
  if (replaced == nullptr) replaced = &cell.past[(now.thread + now.time) % 4];
  *replaced = now;
}

}  // namespace

void BlockClock::barrier(Block& block) {
  if (!enabled) return;
  ++epoch;
  for (size_t r = 0; r < block.size(); ++r) {
    Clock& clock = block.thread(r).clock;
    learn(acquired, clock.acquired);
    clock.acquired.clear();
    clock.lanes.fill(0);
  }
}

void begin_race_check() {
  enabled = options().race_check;
  if (!enabled) return;
  if (pages.size() > kMaxPages) {
    pages.clear();
    last_page = nullptr;
  }
  published.clear();
  next_era();
}

void next_era() { ++era; }

void meet_clocks(Block& block, unsigned first_rank, unsigned lanes) {
  if (!enabled) return;
  std::array<uint32_t, 32> joint{};
  std::vector<Knowledge> acquired;
  for (unsigned i = 0; i < 32; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    const Clock& clock = block.thread(first_rank + i).clock;
    for (unsigned j = 0; j < 32; ++j) joint[j] = std::max(joint[j], clock.lanes[j]);
    joint[i] = std::max(joint[i], clock.time);
    learn(acquired, clock.acquired);
  }
  for (unsigned i = 0; i < 32; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    Clock& clock = block.thread(first_rank + i).clock;
    clock.lanes = joint;
    clock.acquired = acquired;
    ++clock.time;
  }
}

void fence_clock(Thread& thread) {
  if (!enabled) return;
  Clock& clock = thread.clock;
  const Block& block = *thread.block;
  const auto number = uint32_t(block.number);
  clock.fenced = block.clock.acquired;
  learn(clock.fenced, clock.acquired);
  learn(clock.fenced, {number, block.clock.epoch, clock.time, thread.rank});
  for (unsigned i = 0; i < 32; ++i) {
    if (clock.lanes[i] == 0 || i == thread.lane()) continue;
    const auto rank = uint16_t(thread.rank / 32 * 32 + i);
    clock.fenced.push_back({number, block.clock.epoch, clock.lanes[i], rank});
  }
  ++clock.time;
}

void check_race(Thread& thread, const Access& access, bool shared) {
  if (!enabled) return;
  const uintptr_t last = (access.at + access.size - 1) / 4;
  for (uintptr_t word = access.at / 4; word <= last; ++word) {
    const uintptr_t begin = std::max(access.at, word * 4);
    const uintptr_t end = std::min(access.at + access.size, word * 4 + 4);
    const unsigned bytes = ((1u << (end - begin)) - 1) << (begin - word * 4);
    check_cell(thread, access, shared, word, uint8_t(bytes));
  }
  if (!access.atomic) return;
  auto& here = published[access.at];
  learn(thread.clock.acquired, here);
  if (access.write) learn(here, thread.clock.fenced);
}

}  // namespace lb::simt
