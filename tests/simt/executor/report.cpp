// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "executor/report.h"

#include <dlfcn.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <utility>
#include <vector>

#include "executor/block.h"
#include "executor/grid.h"

namespace lb::simt {

namespace {

std::string failure;

std::string base_name(const std::string& path) {
  std::string name = path.substr(path.find_last_of('/') + 1);
  return name.substr(0, name.find(' '));  // addr2line adds "(discriminator 3)"
}

// What addr2line, which comes with every gcc, says of an address in this module: pairs of function
// and file:line, from the innermost inlined function outwards.
std::vector<std::pair<std::string, std::string>> look_up(uintptr_t address) {
  std::vector<std::pair<std::string, std::string>> frames;
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(address), &info) == 0) return frames;
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -e '%s' -f -C -i %#lx 2>/dev/null",
                info.dli_fname, static_cast<unsigned long>(address - uintptr_t(info.dli_fbase)));
  std::FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return frames;
  char function[4096], place[4096];
  const auto line = [&](char* text) {
    if (std::fgets(text, sizeof function, pipe) == nullptr) return false;
    text[std::string(text).find_last_not_of('\n') + 1] = 0;
    return true;
  };
  while (line(function) && line(place)) frames.emplace_back(function, place);
  pclose(pipe);
  return frames;
}

std::string at(Index i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

void note(const Block& block, const std::string& what) {
  if (!failure.empty()) return;  // the first one is the cause
  failure = "simt: " + describe(block.launch().function) + ": block " + at(block.index) + what;
  // Before anything is abandoned, so that a debugger shows the thread where it stands.
  if (std::getenv("LARGEBATCH_SIMT_TRAP") != nullptr) std::raise(SIGTRAP);
}

[[noreturn]] void stop(const std::string& problem, const std::string& place) {
  Thread& thread = *running();
  note(*thread.block, " thread " + at(thread.index) + ": " + problem + ", at " + place);
  thread.fiber.pause();
  std::abort();  // nobody resumes it
}

}  // namespace

std::string hex(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%lx", static_cast<unsigned long>(value));
  return text;
}

std::string describe(Site site) {
  if (site.file == nullptr) return "an unknown line";
  return base_name(site.file) + ":" + std::to_string(site.line);
}

std::string describe(Code code) {
  std::string text;
  for (const auto& [function, place] : look_up(code.address - 1)) {
    if (place.find("/simt/include/") != std::string::npos) continue;  // CUDA's, not the kernel's
    const std::string here = base_name(place);
    if (text.find(here) == std::string::npos) text += (text.empty() ? "" : ", inlined at ") + here;
  }
  return text.empty() ? "code " + hex(code.address) : text;
}

std::string describe(const void* kernel) {
  const auto frames = look_up(reinterpret_cast<uintptr_t>(kernel));
  if (frames.empty()) return "kernel " + hex(uintptr_t(kernel));
  std::string name = frames.back().first;
  // Parameters and namespaces say nothing to one who knows the kernel.
  const std::string unnamed = "(anonymous namespace)::";
  for (size_t at; (at = name.find(unnamed)) != std::string::npos;) name.erase(at, unnamed.size());
  name = name.substr(0, name.find('('));
  const size_t scope = name.substr(0, name.find('<')).rfind("::");
  return scope == std::string::npos ? name : name.substr(scope + 2);
}

void fail(const std::string& problem, Site site) { stop(problem, describe(site)); }
void fail(const std::string& problem, Code code) { stop(problem, describe(code)); }

void fail_in(const Thread& thread, const std::string& problem, Site site) {
  note(*thread.block, " thread " + at(thread.index) + ": " + problem + ", at " + describe(site));
}

void fail_block(const Block& block, const std::string& problem) { note(block, ": " + problem); }

bool failed() { return !failure.empty(); }

void throw_failure() { throw std::runtime_error(std::exchange(failure, "")); }

}  // namespace lb::simt
