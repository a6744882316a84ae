// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "executor/memory.h"

#include <link.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "executor/block.h"
#include "executor/grid.h"
#include "executor/race.h"

namespace lb::simt {

namespace {

struct Span {
  uintptr_t begin, end;
  bool holds(uintptr_t at, size_t size) const { return at >= begin && at + size <= end; }
};
struct Range : Span {
  std::string label;
};

// ---------------------------------------------------------------- registry

std::mutex registry_mutex;
std::map<RangeId, Range> registry;
std::deque<Range> removed;  // the last ones, for a better message
constexpr size_t kRemembered = 4096;
RangeId next_id = 1;
bool changed = true;

std::vector<Span> spans;       // of the registry, sorted, overlapping ones joined
std::vector<Span> image;       // of this module: constants and __device__ variables
Span arguments{}, recent[64];  // recent: spans by page, of which a kernel needs a handful

void take_spans() {
  const std::lock_guard<std::mutex> lock(registry_mutex);
  if (!changed) return;
  changed = false;
  std::vector<Span> all;
  for (const auto& [id, range] : registry) all.push_back(range);
  std::sort(all.begin(), all.end(), [](Span a, Span b) { return a.begin < b.begin; });
  spans.clear();
  for (const Span& span : all) {
    // Neighbours that only touch stay two: an access across the border is wrong.
    if (!spans.empty() && span.begin < spans.back().end) {
      spans.back().end = std::max(spans.back().end, span.end);
    } else {
      spans.push_back(span);
    }
  }
}

// Looked for in the thread that asks: the thread-local segment is another one for each.
Span shared_span;

// Touched before it is looked for: the segment is made when a thread first needs it.
thread_local volatile char anchor;

int find_parts(dl_phdr_info* info, size_t, void*) {
  image.clear();
  bool here = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
    const auto local = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
    if (part.p_type == PT_TLS) shared_span = {local, local + part.p_memsz};
    if (part.p_type == PT_LOAD) image.push_back({begin, begin + part.p_memsz});
    here |= part.p_type == PT_LOAD && image.back().holds(uintptr_t(&find_parts), 1);
  }
  return here;  // which ends the search
}

// ---------------------------------------------------------------- checks

bool find_span(const Access& access) {
  Span& slot = recent[access.at >> 12 & 63];
  if (slot.holds(access.at, access.size)) return true;
  const auto after =
      std::upper_bound(spans.begin(), spans.end(), access.at,
                       [](uintptr_t at, const Span& span) { return at < span.begin; });
  if (after == spans.begin()) return false;
  slot = *(after - 1);
  return slot.holds(access.at, access.size);
}

std::string verb(const Access& access) {
  return (access.read ? "reads " : "writes ") + std::to_string(access.size) + " bytes ";
}

// Where an address is that no live memory holds, in terms of the nearest there is.
std::string locate(const Access& access) {
  const std::lock_guard<std::mutex> lock(registry_mutex);
  constexpr uintptr_t kBeside = 256, kNear = 1 << 20;
  if (access.at < 4096) return "at " + hex(access.at) + ": a null pointer";
  uintptr_t nearest = kNear;
  std::string where = "which is no memory of this call";
  for (const auto& [id, range] : registry) {
    const bool before = access.at < range.begin, across = !before && access.at < range.end;
    const uintptr_t distance = before   ? range.begin - access.at
                               : across ? 0
                                        : access.at - range.end;
    if (distance >= nearest) continue;
    nearest = distance;
    where = across ? "across the end of " : std::to_string(distance) + " bytes ";
    where += (across ? "" : before ? "before " : "past the end of ") + range.label;
  }
  // Just beside live memory it is not what was freed there in the past.
  for (auto range = removed.rbegin(); range != removed.rend() && nearest >= kBeside; ++range) {
    if (!range->holds(access.at, 1)) continue;
    return "at " + hex(access.at) + ", inside freed " + range->label;
  }
  return "at " + hex(access.at) + ", " + where;
}

void check_written(const Access& access, uint8_t* written) {
  if (access.read && std::memchr(written, 0, access.size) != nullptr) {
    fail(verb(access) + "of shared memory that no thread of the block has written", access.code);
  }
  if (access.write) std::memset(written, 1, access.size);
}

}  // namespace

void check(Thread& thread, const Access& access) {
  if (thread.fiber.owns(access.at)) return;
  SharedMemory& shared = thread.block->shared;
  if (uint8_t* written = shared.written(access.at, access.size)) {
    check_written(access, written);
    check_race(thread, access, true);
  } else if (shared.near_dynamic(access.at, access.size)) {
    fail(verb(access) + "outside the dynamic shared memory of the launch (" +
             std::to_string(thread.block->launch().shared_bytes) + " bytes)",
         access.code);
  } else if (find_span(access) || std::any_of(image.begin(), image.end(), [&](const Span& part) {
               return part.holds(access.at, access.size);
             })) {
    check_race(thread, access, false);
  } else if (access.write || !arguments.holds(access.at, access.size)) {
    fail(verb(access) + locate(access), access.code);
  }
}

// ---------------------------------------------------------------- ranges

RangeId add_range(const void* data, size_t bytes, std::string label) {
  if (bytes == 0) return 0;
  const std::lock_guard<std::mutex> lock(registry_mutex);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  label += " (" + std::to_string(bytes) + " bytes)";
  registry[next_id] = Range{{begin, begin + bytes}, std::move(label)};
  changed = true;
  return next_id++;
}

void remove_range(RangeId id) {
  const std::lock_guard<std::mutex> lock(registry_mutex);
  const auto range = registry.find(id);
  if (range == registry.end()) return;
  removed.push_back(std::move(range->second));
  if (removed.size() > kRemembered) removed.pop_front();
  registry.erase(range);
  changed = true;
}

bool range_holds(const void* data, size_t bytes) {
  const std::lock_guard<std::mutex> lock(registry_mutex);
  const auto at = reinterpret_cast<uintptr_t>(data);
  for (const auto& [id, range] : registry) {
    if (range.holds(at, 1)) return range.holds(at, bytes);
  }
  return true;  // memory of the host
}

void begin_memory(const Launch& launch) {
  anchor = 0;
  dl_iterate_phdr(find_parts, nullptr);
  take_spans();
  std::fill(std::begin(recent), std::end(recent), Span{});
  const auto begin = reinterpret_cast<uintptr_t>(launch.arguments);
  arguments = {begin, begin + launch.argument_bytes};
}

std::vector<char> save_thread_local() {
  const char* begin = reinterpret_cast<const char*>(shared_span.begin);
  return std::vector<char>(begin, begin + (shared_span.end - shared_span.begin));
}
void restore_thread_local(const std::vector<char>& saved) {
  std::memcpy(reinterpret_cast<void*>(shared_span.begin), saved.data(), saved.size());
}

// ---------------------------------------------------------------- shared memory

void SharedMemory::begin(size_t dynamic_bytes) {
  dynamic_bytes_ = dynamic_bytes;
  dynamic_.assign(dynamic_bytes + 2 * kGap, char(0xff));
  dynamic_written_.assign(dynamic_bytes, 0);
  static_written_.assign(shared_span.end - shared_span.begin, 0);
  std::memset(reinterpret_cast<void*>(shared_span.begin), 0xff, static_written_.size());
}

uint8_t* SharedMemory::written(uintptr_t address, size_t size) {
  if (shared_span.holds(address, size)) return &static_written_[address - shared_span.begin];
  const auto begin = reinterpret_cast<uintptr_t>(dynamic());
  const Span span{begin, begin + dynamic_bytes_};
  return span.holds(address, size) ? &dynamic_written_[address - begin] : nullptr;
}

bool SharedMemory::near_dynamic(uintptr_t address, size_t size) const {
  const auto begin = reinterpret_cast<uintptr_t>(dynamic_.data());
  return address + size > begin && address < begin + dynamic_.size();
}

}  // namespace lb::simt
