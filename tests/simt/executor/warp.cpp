// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "executor/warp.h"

#include <algorithm>
#include <string>

#include "executor/block.h"
#include "executor/report.h"

namespace lb::simt {

namespace {

const char* name_of(WarpOp op) {
  static const char* const names[] = {
      "__syncwarp",        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",
      "__shfl_xor_sync",   "__ballot_sync",     "__any_sync",        "__all_sync",
      "__match_any_sync",  "__match_all_sync",  "__reduce_add_sync", "__reduce_min_sync",
      "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};
  return names[int(op)];
}

bool is_shuffle(WarpOp op) { return op >= WarpOp::shfl && op <= WarpOp::shfl_xor; }

template <class Body>
void for_lanes(unsigned lanes, Body body) {
  for (; lanes != 0; lanes &= lanes - 1) body(unsigned(__builtin_ctz(lanes)));
}

}  // namespace

void Warp::begin(Block& block, unsigned first_rank, unsigned lanes) {
  block_ = &block;
  first_rank_ = first_rank;
  alive_ = lanes >= 32 ? ~0u : (1u << lanes) - 1;
  meetings_.clear();
}

Thread& Warp::lane(unsigned i) const { return block_->thread(first_rank_ + i); }

uint64_t Warp::meet(Thread& thread, WarpOp op, unsigned mask, Deposit deposit, Site site) {
  const unsigned me = 1u << thread.lane();
  if ((mask & me) == 0) {
    fail(std::string(name_of(op)) + " by lane " + std::to_string(thread.lane()) +
             ", which is not in its own mask " + hex(mask),
         site);
  }
  if (is_shuffle(op)) {
    // CUDA takes a source modulo the width. Nobody means that.
    const int limit = op == WarpOp::shfl_up || op == WarpOp::shfl_down ? 32 : deposit.width;
    if (deposit.argument < 0 || deposit.argument >= limit) {
      fail(std::string(name_of(op)) + (op == WarpOp::shfl ? " from lane " : " with distance ") +
               std::to_string(deposit.argument) + ": expected 0 to " + std::to_string(limit - 1),
           site);
    }
  }
  auto meeting = meetings_.end();
  for (auto m = meetings_.begin(); m != meetings_.end(); ++m) {
    if (m->op == op && m->mask == mask) {
      meeting = m;
    } else if ((m->mask & me) != 0 && (m->arrived & mask) != 0) {
      // One waits there for this lane, and this lane here for that one.
      fail(std::string("lanes of a warp meet in different calls: ") + name_of(op) + " with mask " +
               hex(mask) + " here, " + name_of(m->op) + " with mask " + hex(m->mask) + " at " +
               describe(lane(unsigned(__builtin_ctz(m->arrived))).site),
           site);
    }
  }
  if (meeting == meetings_.end()) meeting = meetings_.insert(meeting, Meeting{op, mask, 0});
  meeting->arrived |= me;
  thread.deposit = deposit;
  if (complete(*meeting)) {
    const Meeting done = *meeting;
    meetings_.erase(meeting);
    thread.site = site;
    conclude(done);
  }
  // Even the last to come stops here: anyone may be the first to go on.
  block_->wait(thread, Wait::warp, name_of(op), site);
  return thread.deposit.result;
}

void Warp::leave(unsigned lane) {
  alive_ &= ~(1u << lane);
  for (size_t i = 0; i < meetings_.size(); ++i) {
    if (!complete(meetings_[i])) continue;
    const Meeting done = meetings_[i];
    meetings_.erase(meetings_.begin() + std::ptrdiff_t(i--));
    conclude(done);
  }
}

void Warp::shuffle(const Meeting& meeting, unsigned i) {
  Thread& thread = lane(i);
  const int width = thread.deposit.width, by = thread.deposit.argument;
  const int first = int(i) / width * width, last = first + width - 1;
  int source = int(i);
  if (meeting.op == WarpOp::shfl) source = first + by;
  if (meeting.op == WarpOp::shfl_xor) source = int(i) ^ by;
  if (meeting.op == WarpOp::shfl_up && int(i) - by >= first) source = int(i) - by;
  if (meeting.op == WarpOp::shfl_down && int(i) + by <= last) source = int(i) + by;
  if ((meeting.arrived >> source & 1) == 0) {
    fail_in(thread,
            std::string(name_of(meeting.op)) + " from lane " + std::to_string(source) +
                ", which does not take part (mask " + hex(meeting.mask) + ", present " +
                hex(meeting.arrived) + ")",
            thread.site);
    return;
  }
  thread.deposit.result = lane(unsigned(source)).deposit.value;
}

void Warp::conclude(const Meeting& meeting) {
  using Value = int64_t;
  const auto value = [&](unsigned i) { return lane(i).deposit.value; };
  const unsigned first = unsigned(__builtin_ctz(meeting.arrived));
  unsigned votes = 0, equal = 0;
  uint64_t total = value(first);
  for_lanes(meeting.arrived, [&](unsigned i) {
    votes |= unsigned(value(i) != 0) << i;
    equal |= unsigned(value(i) == value(first)) << i;
    if (i == first) return;
    if (meeting.op == WarpOp::add) total += value(i);
    if (meeting.op == WarpOp::min) total = uint64_t(std::min(Value(total), Value(value(i))));
    if (meeting.op == WarpOp::max) total = uint64_t(std::max(Value(total), Value(value(i))));
    if (meeting.op == WarpOp::bit_and) total &= value(i);
    if (meeting.op == WarpOp::bit_or) total |= value(i);
    if (meeting.op == WarpOp::bit_xor) total ^= value(i);
  });
  for_lanes(meeting.arrived, [&](unsigned i) {
    uint64_t& result = lane(i).deposit.result;
    result = total;
    if (is_shuffle(meeting.op)) shuffle(meeting, i);
    if (meeting.op == WarpOp::ballot) result = votes;
    if (meeting.op == WarpOp::any) result = votes != 0;
    if (meeting.op == WarpOp::all) result = votes == meeting.arrived;
    if (meeting.op == WarpOp::match_all) result = equal == meeting.arrived ? equal : 0;
    if (meeting.op != WarpOp::match_any) return;
    result = 0;
    for_lanes(meeting.arrived, [&](unsigned j) { result |= uint64_t(value(j) == value(i)) << j; });
  });
  meet_clocks(*block_, first_rank_, meeting.arrived);
  for_lanes(meeting.arrived, [&](unsigned i) { block_->wake(lane(i)); });
}

}  // namespace lb::simt
