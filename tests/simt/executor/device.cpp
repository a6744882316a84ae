// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What kernels call: include/device_functions.h, on the thread that runs.
#include <cuda_runtime.h>

#include "executor/block.h"
#include "executor/grid.h"
#include "executor/race.h"
#include "executor/report.h"

namespace lb::simt {

namespace {

Thread& self() { return *running(); }

}  // namespace

void* dynamic_shared() { return self().block->shared.dynamic(); }

int barrier(Barrier kind, bool predicate, Site site) {
  const std::string& dropped = options().drop_barrier;
  if (!dropped.empty() && describe(site) == dropped) return predicate;
  return self().block->arrive(self(), kind, predicate, site);
}

uint64_t warp(WarpOp op, unsigned mask, uint64_t value, int argument, int width, Site site) {
  Thread& thread = self();
  const Deposit deposit{value, argument, width, 0};
  return thread.block->warp_of(thread).meet(thread, op, mask, deposit, site);
}

void fence() { fence_clock(self()); }

}  // namespace lb::simt
