// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What the bindings of the optimizers share: the Python object that holds a plan and its memory,
// the scalars of a step, and the way to the backend.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/checks.h"
#include "core/device.h"
#include "core/error.h"
#include "core/workspace.h"

// A call of the CUDA backend: its functions are declared in every build, defined in those with
// CUDA.
#if LB_CUDA
#define LB_CUDA_CALL(call) call
#else
#define LB_CUDA_CALL(call) (void)0
#endif

namespace lb::bind {

// Whether work on a device is the CPU loops'. In the tests' build of the CUDA kernels for the host
// (tests/simt) no work is: there the CUDA backend takes the tensors of the CPU.
constexpr bool is_host(Device device) { return !LB_SIMT && device.type == DeviceType::cpu; }

// Throws BackendUnavailable, with the reason and the way out, unless work on `device` can be done.
void require_backend(const char* op, Device device);

// Calls cpu() or cuda(stream) without the GIL, on the right device.
template <class Cpu, class Cuda>
void run(const char* op, Device device, void* stream, Cpu cpu, Cuda cuda) {
  require_backend(op, device);
  if (is_host(device)) {
    pybind11::gil_scoped_release release;
    cpu();
    return;
  }
#if LB_CUDA
  const cuda::DeviceGuard guard(device.index);
  pybind11::gil_scoped_release release;
  cuda(stream);
#else
  (void)stream;
  (void)cuda;
#endif
}

// Memory from torch, so that its allocator knows of it: a uint8 tensor.
pybind11::object allocate(int64_t bytes, Device device);
void* data_of(const pybind11::object& block);
// One number out of it: block[at : at + size].view(torch.<dtype>)[0], a copy.
pybind11::object read_block(const pybind11::object& block, size_t at, size_t size,
                            const char* dtype);
void upload(Device device, void* stream, void* to, const void* from, int64_t bytes);
bool recording(Device device, void* stream);

// A plan, its workspace, and the block of memory that the workspace lies in.
template <class Group, class Scalars>
class StepPlan {
 public:
  const Plan& plan() const { return session_.plan(); }
  const Workspace<Group, Scalars>& workspace() const { return session_.workspace(); }

  // What the entries differ in from those of the last step. If anything, the arrays are to be
  // checked against each other: with the rest of the checks each is looked at by itself, every
  // time.
  Plan::Change compare(const std::vector<Entry>& entries) const { return plan().compare(entries); }

  void prepare(const char* op, Device device, void* stream, std::vector<Entry> entries,
               const std::vector<Group>& groups) {
    const Plan::Change change = compare(entries);
    prepare(op, device, stream, std::move(entries), change, groups);
  }
  void prepare(const char* op, Device device, void* stream, std::vector<Entry> entries,
               Plan::Change change, const std::vector<Group>& groups) {
    require_backend(op, device);
    const bool in_graph = recording(device, stream);
    session_.prepare(
        std::move(entries), change, groups,
        {[&](int64_t bytes) {
           if (in_graph) {
             throw ValueError(std::string(op) +
                              ": the tensors differ from those of the last step, and a graph "
                              "capture cannot make room for new ones. Run one step before it.");
           }
           block_ = allocate(bytes, device);
           watch_ = Watch();
           watch_.add(data_of(block_), size_t(bytes), [] { return "workspace"; });
           // NaN, to who reads before writing.
           if (LB_SIMT) std::memset(data_of(block_), 0xff, size_t(bytes));
           return data_of(block_);
         },
         [&](void* to, const void* from, int64_t bytes) {
           upload(device, stream, to, from, bytes);
         },
         in_graph});
  }

  // Results of the last step as 0-dim tensors on the device.
  pybind11::object grad_norm() const {
    return read_block(block_, offsetof(Control, grad_norm), sizeof(double), "float64");
  }
  pybind11::object nonfinite() const {
    return read_block(block_, offsetof(Control, nonfinite), sizeof(int32_t), "int32");
  }

 private:
  Session<Group, Scalars> session_;
  pybind11::object block_;
  Watch watch_;
};

// The scalars of a step that may be None. Holds the arrays; give inputs() to the backend.
class StepScalars {
 public:
  StepScalars(const char* op, const ArrayList& like, pybind11::handle grad_sq_sum,
              pybind11::handle grad_scale, pybind11::handle found_inf);
  StepInputs inputs() const;

 private:
  ArrayList grad_sq_sum_, grad_scale_, found_inf_;
};

// Which phases a call does: None is both.
Phases parse_phases(const char* op, pybind11::handle phases);

// The sums [T, 2] fp64 between the phases. Needed unless one call does both.
double* sums_of(const ArrayList& sums, const ArrayList& params, Phases phases, double* own);

// What every optimizer brings. A role that only some tensors have comes as a shorter list with the
// positions of its tensors.
struct StepTensors {
  const ArrayList& params;  // the weights: role 0
  const ArrayList& grads;   // empty in a phase that does not read them
  const ArrayList& steps;   // empty in a phase that does not advance them
  const std::vector<int64_t>& group_of;
  size_t num_groups;
};
std::vector<Entry> make_entries(const StepTensors& tensors);

// Adds the arrays of one role: on the device of their params and laid out like them.
void add_role(std::vector<Entry>& entries, int role, const ArrayList& arrays,
              const ArrayList& params);
void add_role(std::vector<Entry>& entries, int role, const ArrayList& arrays,
              const ArrayList& params, const char* rows_argument, const std::vector<int64_t>& rows);

// State of a param is fp32, or fp64 with an fp64 param. `rows` as above; null: all params.
void check_state_dtypes(const ArrayList& state, const ArrayList& params,
                        const std::vector<int64_t>* rows = nullptr);
// Copies are fp16 or bf16, and their params, the masters, fp32.
void check_copy_dtypes(const ArrayList& copies, const ArrayList& params,
                       const std::vector<int64_t>& rows);

}  // namespace lb::bind
