// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Included before all else in kernel sources: calls of these three, which the sanitizer leaves to
// its own runtime, become calls of the executor's, which look at both ends first.
#pragma once

extern "C" {
void* memcpy(void*, const void*, unsigned long) noexcept __asm__("lb_simt_memcpy");
void* memmove(void*, const void*, unsigned long) noexcept __asm__("lb_simt_memmove");
void* memset(void*, int, unsigned long) noexcept __asm__("lb_simt_memset");
}
