// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The memory a multi-tensor step works in, beside the tensors themselves: one block on the device
// of the tensors, laid out once for a plan and used again by every step.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "core/plan.h"

namespace lb {

// Infinity or NaN.
template <class R>
LB_HD bool is_nonfinite(R x) {
  return !(x - x == 0);
}

// What a whole step shares. Written by the step, readable by the caller afterwards.
struct Control {
  double grad_norm;   // global norm of the unscaled gradients; 0 when none was taken
  int32_t skip;       // 1: the step changes nothing
  int32_t nonfinite;  // tensors whose sums of squares are not finite
  int32_t arrived;    // blocks that are done; 0 between steps, as is
  int32_t counting;   // what they have counted so far
};

// Scalars that a step reads where the tensors are. Each may be null.
struct StepInputs {
  const double* grad_sq_sum;  // takes the place of the pass over the gradients
  const float* grad_scale;    // gradients are divided by it
  const float* found_inf;     // not 0: skip
};

LB_HD double grad_scale_of(const StepInputs& inputs) {
  return inputs.grad_scale != nullptr ? double(*inputs.grad_scale) : 1;
}

// A step is two phases with the per-tensor sums between them. One call may do both.
struct Phases {
  bool first;   // moments or norms: writes sums
  bool second;  // apply: reads sums
};

template <class Group, class Scalars>
struct Workspace {
  Control* control;   // [1]
  Group* groups;      // [num_groups] hyper-parameters
  void** grads;       // [num_rows]
  Row* rows;          // [num_rows]
  int32_t* tile_row;  // [num_tiles]
  double* partials;   // [num_tiles, 2] sums of a tile; of a part of a group where there are any
  double* sums;       // [num_rows, 2] sums of a tensor, in the caller's order; or of a group, in
                      // that of the rows
  Scalars* scalars;   // [num_rows] what a tensor's update needs, derived from its group and step
  int32_t num_rows;
  int32_t num_tiles;

  LB_HD Table table() const { return {rows, grads, tile_row, num_rows, num_tiles}; }
};

// Keeps a plan and its workspace up to date. Knows nothing of Python or CUDA: it is given the
// means to allocate memory on the device and to bring bytes there.
template <class Group, class Scalars>
class Session {
 public:
  struct Means {
    std::function<void*(int64_t bytes)> allocate;  // 64-byte aligned; replaces the block before
    std::function<void(void* to, const void* from, int64_t bytes)> upload;
    bool recording;  // uploads are recorded for later (CUDA graph), not done now
  };

  const Plan& plan() const { return plan_; }
  const Workspace<Group, Scalars>& workspace() const { return workspace_; }

  // `change` is what the entries differ in from those before, as the plan compares them.
  void prepare(std::vector<Entry> entries, Plan::Change change, const std::vector<Group>& groups,
               const Means& means) {
    plan_.update(std::move(entries), change);
    if (change == Plan::Change::everything) laid_out_ = false;
    if (!laid_out_ || groups.size() != groups_) {
      laid_out_ = valid_ = false;  // should there be no memory now, the next step begins here again
      const int64_t bytes = lay_out(nullptr, groups.size());
      lay_out(static_cast<char*>(means.allocate(bytes)), groups.size());
      const Control zero{};
      means.upload(workspace_.control, &zero, int64_t(sizeof zero));
      means.upload(workspace_.rows, plan_.rows().data(), bytes_of(plan_.rows()));
      means.upload(workspace_.tile_row, plan_.tile_row().data(), bytes_of(plan_.tile_row()));
      laid_out_ = true;
    }
    groups_ = groups.size();
    upload_live(groups, means);
  }

 private:
  template <class T>
  static int64_t bytes_of(const std::vector<T>& v) {
    return int64_t(v.size() * sizeof(T));
  }

  // Lays the arrays out from `block` on and returns how many bytes they take.
  int64_t lay_out(char* block, size_t num_groups) {
    int64_t used = 0;
    const auto take = [&](auto*& array, size_t count) {
      using T = std::remove_reference_t<decltype(*array)>;
      array = block == nullptr ? nullptr : reinterpret_cast<T*>(block + used);
      used += (int64_t(count * sizeof(T)) + 63) / 64 * 64;
    };
    const size_t rows = plan_.rows().size(), tiles = plan_.tile_row().size();
    take(workspace_.control, 1);  // first: the caller finds it at the start of the block
    take(workspace_.groups, num_groups);
    take(workspace_.grads, rows);
    take(workspace_.rows, rows);
    take(workspace_.tile_row, tiles);
    take(workspace_.partials, 2 * size_t(plan_.parts()));
    take(workspace_.sums, 2 * size_t(plan_.groups()));
    take(workspace_.scalars, rows);
    workspace_.num_rows = int32_t(rows);
    workspace_.num_tiles = int32_t(tiles);
    return used;
  }

  // Groups and gradients, the neighbours in the block that may change between steps: uploads from
  // the first to the last word that did, in one launch for some thousand tensors.
  void upload_live(const std::vector<Group>& groups, const Means& means) {
    const auto grads_at = size_t(reinterpret_cast<char*>(workspace_.grads) -
                                 reinterpret_cast<char*>(workspace_.groups));
    next_.assign(grads_at / sizeof(int64_t) + plan_.grads().size(), 0);
    const auto put = [&](size_t at, const auto& values) {
      if (values.empty()) return;
      std::memcpy(reinterpret_cast<char*>(next_.data()) + at, values.data(),
                  size_t(bytes_of(values)));
    };
    put(0, groups);
    put(grads_at, plan_.grads());

    size_t first = 0, last = next_.size();
    if (valid_ && !means.recording) {
      while (first < last && live_[first] == next_[first]) ++first;
      while (last > first && live_[last - 1] == next_[last - 1]) --last;
    }
    if (first < last) {
      means.upload(reinterpret_cast<int64_t*>(workspace_.groups) + first, &next_[first],
                   int64_t((last - first) * sizeof(int64_t)));
    }
    std::swap(live_, next_);
    valid_ = !means.recording;  // a recorded upload has not happened yet
  }

  Plan plan_;
  Workspace<Group, Scalars> workspace_{};
  size_t groups_ = 0;                 // how many there is room for
  std::vector<int64_t> live_, next_;  // groups and gradients: on the device if valid_, and to be
  bool laid_out_ = false;
  bool valid_ = false;
};

}  // namespace lb
