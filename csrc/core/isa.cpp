// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"

#include <atomic>
#include <cstdlib>

#include "core/error.h"

namespace lb {

namespace {

bool supported(Isa isa) {
  if (isa == Isa::base) return true;
#if LB_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa parse(const std::string& text) {
  std::string choices;
  for (Isa isa : supported_isas()) {
    if (text == name(isa)) return isa;
    choices += (choices.empty() ? "" : ", ") + std::string(name(isa));
  }
  throw ValueError("LARGEBATCH_CPU_ISA: got '" + text + "', expected one of " + choices +
                   ", which are the instruction sets this processor runs.");
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa = [] {
    const char* forced = std::getenv("LARGEBATCH_CPU_ISA");
    return forced != nullptr && *forced != '\0' ? parse(forced) : supported_isas().back();
  }();
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  return isa == Isa::base ? "base" : isa == Isa::avx2 ? "avx2" : "avx512";
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
    if (supported(isa)) isas.push_back(isa);
  }
  return isas;
}

Isa cpu_isa() { return current().load(std::memory_order_relaxed); }

void set_cpu_isa(const std::string& name) { current().store(parse(name)); }

}  // namespace lb
