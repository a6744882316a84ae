// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What the compiler calls at every load and store of a file built with -fsanitize=thread. The
// sanitizer's own runtime is not linked: these are its functions.
#include <cstring>

#include "executor/block.h"
#include "executor/grid.h"
#include "executor/memory.h"

namespace lb::simt {

namespace {

enum Kind : unsigned { kRead = 1, kWrite = 2, kVolatile = 4 };

// The thread whose kernel calls, or null: launchers are in these files too, and another thread of
// the host may be in one while a grid runs.
Thread* caller() {
  Thread* thread = running();
  const auto frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  return thread != nullptr && thread->fiber.owns(frame) ? thread : nullptr;
}

void on_access(const void* at, size_t size, unsigned kind, void* code) {
  Thread* thread = caller();
  if (thread == nullptr || size == 0) return;
  // Others go on before the check, not after it: nothing may come between the check and the access.
  const Code place{reinterpret_cast<uintptr_t>(code)};
  if (--thread->accesses_left <= 0) thread->block->give_way(*thread, place);
  check(*thread, {reinterpret_cast<uintptr_t>(at), size, (kind & kRead) != 0, (kind & kWrite) != 0,
                  (kind & kVolatile) != 0, place});
}

}  // namespace

void on_atomic(const void* at, size_t size, void* code) {
  on_access(at, size, kRead | kWrite | kVolatile, code);
}

}  // namespace lb::simt

using namespace lb::simt;

#define LB_SIMT_PLACE __builtin_return_address(0)
#define LB_SIMT_CALLBACK(name, size, kind) \
  void name(const void* at) { on_access(at, size, kind, LB_SIMT_PLACE); }
// "unaligned" is what the compiler does not know to be aligned.
#define LB_SIMT_CALLBACKS(size)                                                   \
  LB_SIMT_CALLBACK(__tsan_read##size, size, kRead)                                \
  LB_SIMT_CALLBACK(__tsan_write##size, size, kWrite)                              \
  LB_SIMT_CALLBACK(__tsan_read_write##size, size, kRead | kWrite)                 \
  LB_SIMT_CALLBACK(__tsan_unaligned_read##size, size, kRead)                      \
  LB_SIMT_CALLBACK(__tsan_unaligned_write##size, size, kWrite)                    \
  LB_SIMT_CALLBACK(__tsan_unaligned_read_write##size, size, kRead | kWrite)       \
  LB_SIMT_CALLBACK(__tsan_volatile_read##size, size, kRead | kVolatile)           \
  LB_SIMT_CALLBACK(__tsan_volatile_write##size, size, kWrite | kVolatile)         \
  LB_SIMT_CALLBACK(__tsan_unaligned_volatile_read##size, size, kRead | kVolatile) \
  LB_SIMT_CALLBACK(__tsan_unaligned_volatile_write##size, size, kWrite | kVolatile)

extern "C" {
LB_SIMT_CALLBACKS(1)
LB_SIMT_CALLBACKS(2)
LB_SIMT_CALLBACKS(4)
LB_SIMT_CALLBACKS(8)
LB_SIMT_CALLBACKS(16)
void __tsan_read_range(const void* at, size_t size) { on_access(at, size, kRead, LB_SIMT_PLACE); }
void __tsan_write_range(const void* at, size_t size) { on_access(at, size, kWrite, LB_SIMT_PLACE); }
// Of the guards of static variables, which launchers may have.
unsigned char __tsan_atomic8_load(const volatile unsigned char* at, int) {
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}  // of exceptions in launchers
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// The compiler does not announce what it leaves to these three: include/copies.h has it call ours.
void* lb_simt_memmove(void* to, const void* from, size_t size) {
  on_access(from, size, kRead, LB_SIMT_PLACE);
  on_access(to, size, kWrite, LB_SIMT_PLACE);
  return std::memmove(to, from, size);
}
void* lb_simt_memcpy(void* to, const void* from, size_t size) {
  on_access(from, size, kRead, LB_SIMT_PLACE);
  on_access(to, size, kWrite, LB_SIMT_PLACE);
  return std::memcpy(to, from, size);
}
void* lb_simt_memset(void* to, int value, size_t size) {
  on_access(to, size, kWrite, LB_SIMT_PLACE);
  return std::memset(to, value, size);
}

// -fsanitize=bounds and alignment: an index outside an array of known length, shared arrays among
// them; an address that a type as a whole may not have.
struct UbsanPlace {
  const char* file;
  unsigned line, column;
};
struct UbsanType {
  uint16_t kind, info;
  char name[1];
};
struct UbsanMismatch {
  UbsanPlace place;
  const UbsanType* type;
  unsigned char log_alignment, kind;
};
void __ubsan_handle_out_of_bounds(const UbsanPlace* place, size_t index) {
  if (caller() == nullptr) return;
  fail("index " + std::to_string(ptrdiff_t(index)) + " is outside its array",
       Site{place->file, int(place->line)});
}
void __ubsan_handle_type_mismatch_v1(const UbsanMismatch* found, uintptr_t at) {
  if (caller() == nullptr) return;
  fail("misaligned: " + hex(at) + " for " + found->type->name + ", whose alignment is " +
           std::to_string(1u << found->log_alignment),
       Site{found->place.file, int(found->place.line)});
}
}
