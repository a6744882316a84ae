// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

// LB_HD: a function of one formula, used by the CPU loops and the CUDA kernels alike. It is always
// inlined, so that no copy compiled for AVX-512 can be kept by the linker for older processors.
#if defined(__CUDACC__)
#define LB_HD __host__ __device__ __forceinline__
#else
#define LB_HD inline __attribute__((always_inline))
#endif

// LB_INLINE: the same for a lambda.
#define LB_INLINE __attribute__((always_inline))
