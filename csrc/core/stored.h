// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Runs of numbers between the type they are stored in and the one that arithmetic is done in.
// Included by the x_cpu.inl files only. The bits are those of to_real and from_real, which
// compilers vectorise as the integer arithmetic they are: here halves are converted by the
// processor's own instructions, where there are any; a NaN keeps its sign and nothing else, as
// there.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"

#if defined(__F16C__) && defined(__AVX2__)
#include <immintrin.h>
#define LB_HALF_INSTRUCTIONS 1
#else
#define LB_HALF_INSTRUCTIONS 0
#endif

namespace lb {

template <class T>
constexpr bool kIsReal = std::is_same_v<T, real_t<T>>;

#if LB_HALF_INSTRUCTIONS

#if defined(__AVX512F__)

constexpr int64_t kHalves = 16;     // to an instruction
constexpr __mmask16 kAll = 0xffff;  // (What has no mask makes GCC 12 warn within its own headers.)

LB_HD void load_halves(const Half* from, float* to) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_ps(to, _mm512_maskz_cvtph_ps(kAll, bits));
}

LB_HD void store_halves(const float* from, Half* to) {
  const __m512 x = _mm512_loadu_ps(from);
  const __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(1 << 31));
  const __m512i quiet = _mm512_or_si512(sign, _mm512_set1_epi32(0x7fc00000));
  const __m512 clean =
      _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_castsi512_ps(quiet));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_maskz_cvtps_ph(kAll, clean, _MM_FROUND_TO_NEAREST_INT));
}

#else

constexpr int64_t kHalves = 8;

LB_HD void load_halves(const Half* from, float* to) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm256_storeu_ps(to, _mm256_cvtph_ps(bits));
}

LB_HD void store_halves(const float* from, Half* to) {
  const __m256 x = _mm256_loadu_ps(from);
  const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
  const __m256 quiet = _mm256_or_ps(sign, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)));
  const __m256 clean = _mm256_blendv_ps(x, quiet, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(clean, _MM_FROUND_TO_NEAREST_INT));
}

#endif
#endif

// from[0, n) to where it can be worked on: `to`, or where it is if that needs no conversion.
template <class T>
LB_HD auto* widen(T* from, real_t<std::remove_const_t<T>>* to, int64_t n) {
  using Stored = std::remove_const_t<T>;
  if constexpr (kIsReal<Stored>) {
    (void)to;
    (void)n;
    return from;
  } else {
    int64_t i = 0;
#if LB_HALF_INSTRUCTIONS
    if constexpr (std::is_same_v<Stored, Half>) {
      for (; i + kHalves <= n; i += kHalves) load_halves(from + i, to + i);
    }
#endif
#pragma omp simd
    for (int64_t k = i; k < n; ++k) to[k] = to_real(from[k]);
    return to;
  }
}

// And back, rounded to nearest even.
template <class T>
LB_HD void narrow(const real_t<T>* from, T* to, int64_t n) {
  int64_t i = 0;
#if LB_HALF_INSTRUCTIONS
  if constexpr (std::is_same_v<T, Half>) {
    for (; i + kHalves <= n; i += kHalves) store_halves(from + i, to + i);
  }
#endif
#pragma omp simd
  for (int64_t k = i; k < n; ++k) to[k] = from_real<T>(from[k]);
}

}  // namespace lb
