// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "executor/fiber.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <vector>

namespace lb::simt {

namespace {

constexpr uint64_t kCanary = 0x51a7c0de51a7c0de;

// Stacks are mapped many at a time and never given back: there are as many as the largest grid that
// ran at once had threads.
std::vector<char*>& free_stacks() {
  static auto& stacks = *new std::vector<char*>;  // for fibers that outlive main
  return stacks;
}

char* take_stack() {
  constexpr size_t kAtOnce = 256;
  auto& stacks = free_stacks();
  if (stacks.empty()) {
    void* block = mmap(nullptr, kAtOnce * Fiber::kStack, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    for (size_t i = 0; i < kAtOnce; ++i) {
      stacks.push_back(static_cast<char*>(block) + i * Fiber::kStack);
    }
  }
  char* stack = stacks.back();
  stacks.pop_back();
  return stack;
}

}  // namespace

Fiber::Fiber() : stack_(take_stack()) { std::memcpy(stack_, &kCanary, sizeof kCanary); }
Fiber::~Fiber() { free_stacks().push_back(stack_); }
bool Fiber::overflowed() const { return std::memcmp(stack_, &kCanary, sizeof kCanary) != 0; }

// void lb_simt_switch(void** from, void* to): leaves what a function must keep on this stack, its
// stack pointer in *from, and goes on where the other stack left off.
// lb_simt_enter: where a new fiber begins; start() put entry and argument into its registers.
asm(R"(
.text
.hidden lb_simt_switch; .globl lb_simt_switch; .type lb_simt_switch, @function
lb_simt_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size lb_simt_switch, .-lb_simt_switch
.hidden lb_simt_enter; .globl lb_simt_enter; .type lb_simt_enter, @function
lb_simt_enter:
  .cfi_startproc
  .cfi_undefined rip  # here a backtrace ends
  movq %r12, %rdi
  callq *%r13
  ud2
  .cfi_endproc
.size lb_simt_enter, .-lb_simt_enter
)");
extern "C" void lb_simt_switch(void** from, void* to);
extern "C" void lb_simt_enter();

void Fiber::start(void (*entry)(void*), void* argument) {
  auto* top = reinterpret_cast<uintptr_t*>(stack_ + kStack) - 9;
  top[0] = top[1] = 0;                                  // r15, r14
  top[2] = reinterpret_cast<uintptr_t>(entry);          // r13
  top[3] = reinterpret_cast<uintptr_t>(argument);       // r12
  top[4] = top[5] = 0;                                  // rbx, rbp: the end of a chain of frames
  top[6] = reinterpret_cast<uintptr_t>(lb_simt_enter);  // leaves 16-byte alignment for its call
  inside_ = top;
}
void Fiber::resume() { lb_simt_switch(&outside_, inside_); }
void Fiber::pause() { lb_simt_switch(&inside_, outside_); }

}  // namespace lb::simt
