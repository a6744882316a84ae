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

// LB_HD_CALL: the same for a longer one, which a kernel calls: inlined in all kernels, those of exp
// and log take minutes to compile.
#if defined(__CUDACC__)
#define LB_HD_CALL __host__ __device__ __noinline__ inline
#else
#define LB_HD_CALL LB_HD
#endif

// LB_OUTLINE: a function of its own, always. A stage of a CPU loop that many types share: compiled
// once for each instruction set; static, in the unnamed namespace of an x_cpu.inl. Or what is rare:
// inlined, its messages would cost what calls it the registers.
#define LB_OUTLINE __attribute__((noinline))

// LB_INLINE: as LB_HD, for a lambda.
#define LB_INLINE __attribute__((always_inline))
