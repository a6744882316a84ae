// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "executor/grid.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "executor/report.h"

namespace lb::simt {

namespace {

std::mutex one_grid_at_a_time;
std::map<const void*, unsigned long> launched;  // kernel: how often
Options current;

Index index_of(const Launch& launch, uint64_t number) {
  const uint64_t x = launch.grid.x, y = launch.grid.y;
  return {unsigned(number % x), unsigned(number / x % y), unsigned(number / x / y)};
}

// One block after the other, each to its end: what the threads of a grid may rely on.
void run_in_turn(const Launch& launch, std::vector<uint32_t> order, uint64_t seed) {
  static Block block;
  for (const uint32_t number : order) {
    block.begin(launch, number, index_of(launch, number), seed);
    block.run(INT64_MAX);
    if (!failed() && !block.finished()) fail_block(block, block.describe_waiting());
    if (failed()) return;
  }
}

// All alive, some turns of one and then of another.
void run_together(const Launch& launch, std::vector<uint32_t> order, uint64_t seed) {
  std::vector<std::unique_ptr<Block>> blocks;
  for (const uint32_t number : order) {
    blocks.push_back(std::make_unique<Block>());
    blocks.back()->begin(launch, number, index_of(launch, number), seed);
    blocks.back()->shared.swap_out();
  }
  std::mt19937_64 random(seed);
  std::vector<Block*> able;
  while (!failed()) {
    able.clear();
    for (const auto& block : blocks) {
      if (block->able() > 0) able.push_back(block.get());
    }
    if (able.empty()) break;
    Block& block = *able[random() % able.size()];
    block.shared.swap_in();
    // In proportion to who is able: a lone thread that spins waits for another block.
    block.run(int64_t(1 + random() % (8 * block.able())));
    block.shared.swap_out();
    const bool all_wait = std::all_of(blocks.begin(), blocks.end(),
                                      [](const auto& b) { return b->all_wait_for_grid(); });
    if (all_wait && !failed()) {
      next_era();
      for (const auto& b : blocks) b->leave_grid_barrier();
    }
  }
  for (const auto& block : blocks) {
    if (!failed() && !block->finished()) fail_block(*block, block->describe_waiting());
  }
}

}  // namespace

Options read_options() {
  const auto get = [](const char* name) {
    const char* text = std::getenv(name);
    return std::string(text == nullptr ? "" : text);
  };
  const std::string seed = get("LARGEBATCH_SIMT_SEED");
  if (seed.find_first_not_of("0123456789") != std::string::npos) {
    throw std::runtime_error("LARGEBATCH_SIMT_SEED: got '" + seed + "', expected a whole number.");
  }
  return {std::strtoull(seed.c_str(), nullptr, 10), get("LARGEBATCH_SIMT_RACECHECK") == "1",
          get("LARGEBATCH_SIMT_DROP_BARRIER")};
}

const Options& options() { return current; }

int blocks_per_multiprocessor(int threads, size_t shared_bytes) {
  const int by_threads = Device::kThreads / ((threads + 31) / 32 * 32);
  const int by_memory = int(Device::kShared / (shared_bytes + 1024));
  return std::min({by_threads, by_memory, Device::kBlocks});
}

void grid_sync(Site site) { running()->block->arrive_at_grid(*running(), site); }

void execute(const Launch& launch) {
  const std::lock_guard<std::mutex> lock(one_grid_at_a_time);
  ++launched[launch.function];
  begin_memory(launch);
  current = read_options();
  begin_race_check();
  const uint64_t seed = current.seed;
  std::vector<uint32_t> order(uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z);
  std::iota(order.begin(), order.end(), 0u);
  std::mt19937_64 random(~seed);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);

  const std::vector<char> others = save_thread_local();
  (launch.cooperative ? run_together : run_in_turn)(launch, std::move(order), seed);
  restore_thread_local(others);
  if (failed()) throw_failure();
}

}  // namespace lb::simt

// For ctypes: tells which kernels have run, by their offsets in this module, as nm prints them, and
// how often.
extern "C" __attribute__((visibility("default"))) void lb_simt_launched(
    void (*tell)(unsigned long offset, unsigned long times)) {
  for (const auto& [kernel, times] : lb::simt::launched) {
    Dl_info info{};
    if (dladdr(kernel, &info) == 0) continue;
    tell(reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(info.dli_fbase), times);
  }
}
