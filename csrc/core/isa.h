// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Which instruction set the CPU loops use. A family's x_cpu.inl is compiled once for each, into
// lb::base, lb::avx2 and lb::avx512; the best one this processor runs is picked here.
#pragma once

#include <string>
#include <vector>

namespace lb {

enum class Isa { base, avx2, avx512 };

// The set in use. At first: what LARGEBATCH_CPU_ISA names, else the best supported one.
Isa cpu_isa();

// Forces one by name; ValueError when unknown or not supported by this processor.
void set_cpu_isa(const std::string& name);

const char* name(Isa isa);
std::vector<Isa> supported_isas();

}  // namespace lb

// LB_FOR_ISA(symbol): lb::<isa in use>::symbol. LB_DECLARE_FOR_ISAS declares the variants.
#if LB_X86
#define LB_DECLARE_FOR_ISAS(...) \
  namespace base {               \
  __VA_ARGS__;                   \
  }                              \
  namespace avx2 {               \
  __VA_ARGS__;                   \
  }                              \
  namespace avx512 {             \
  __VA_ARGS__;                   \
  }
#define LB_FOR_ISA(symbol)                               \
  (::lb::cpu_isa() == ::lb::Isa::avx512 ? avx512::symbol \
   : ::lb::cpu_isa() == ::lb::Isa::avx2 ? avx2::symbol   \
                                        : base::symbol)
#else
#define LB_DECLARE_FOR_ISAS(...) \
  namespace base {               \
  __VA_ARGS__;                   \
  }
#define LB_FOR_ISA(symbol) base::symbol
#endif
