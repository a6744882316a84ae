// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// A warp: lanes that call the same operation with the same mask meet, and the last one to come
// works the results out for all.
#pragma once

#include <cstdint>
#include <vector>

#include "calls.h"

namespace lb::simt {

struct Thread;
class Block;

// What a lane brings, and what it takes away.
struct Deposit {
  uint64_t value;  // bits of a shuffled value; integers and predicates widened to 64 bits
  int argument;    // of a shuffle: source lane, distance or mask
  int width;
  uint64_t result;
};

class Warp {
 public:
  void begin(Block& block, unsigned first_rank, unsigned lanes);
  // The running thread is one of the lanes. Returns the result of the operation.
  uint64_t meet(Thread& thread, WarpOp op, unsigned mask, Deposit deposit, Site site);
  // A lane has returned: those who wait for it need not any more.
  void leave(unsigned lane);

 private:
  struct Meeting {
    WarpOp op;
    unsigned mask;
    unsigned arrived;
  };

  Thread& lane(unsigned i) const;
  bool complete(const Meeting& meeting) const {
    return (meeting.mask & alive_ & ~meeting.arrived) == 0;
  }
  void conclude(const Meeting& meeting);
  void shuffle(const Meeting& meeting, unsigned lane);

  Block* block_ = nullptr;
  unsigned first_rank_ = 0;
  unsigned alive_ = 0;  // lanes that exist and have not returned
  std::vector<Meeting> meetings_;
};

}  // namespace lb::simt
