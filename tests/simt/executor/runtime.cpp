// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The host's side: memory with guard bytes, and streams as queues. Work on the default stream is
// done at once, after all that waits in other streams, as on a device where it blocks them. Work on
// other streams waits until something needs it, and is then taken from the queues in random order
// as far as events allow: a missing event shows in the results of some seed.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "executor/grid.h"
#include "executor/memory.h"

struct CUevent_st {
  long recorded = 0, reached = 0;  // how many times
};

struct CUstream_st {
  struct Task {
    std::function<bool()> ready;
    std::function<void()> work;
  };
  std::deque<Task> tasks;
};

namespace lb::simt {

namespace {

cudaError_t last_error = cudaSuccess;
std::vector<cudaStream_t> streams;  // as they were made: addresses differ from run to run
std::map<const void*, size_t> allowed_shared;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// Until `done`, or until no stream can go on. After a bug the queues are empty: those who clean up
// wait for their streams, in destructors, and must not come upon the next one.
void drain(const std::function<bool()>& done) {
  std::optional<std::mt19937_64> random;  // when there is something to draw: a wrong seed throws
  while (!done()) {
    std::vector<cudaStream_t> able;
    for (cudaStream_t stream : streams) {
      if (!stream->tasks.empty() && stream->tasks.front().ready()) able.push_back(stream);
    }
    if (able.empty()) return;
    if (!random) random.emplace(read_options().seed + 0x5eed);
    auto& tasks = able[(*random)() % able.size()]->tasks;
    const auto work = std::move(tasks.front().work);
    tasks.pop_front();
    try {
      work();
    } catch (...) {
      for (cudaStream_t stream : streams) stream->tasks.clear();
      throw;
    }
  }
}

void drain_all() {
  drain([] { return false; });
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  if (stream == nullptr) {
    drain_all();
    work();
    return cudaSuccess;
  }
  stream->tasks.push_back({[] { return true; }, std::move(work)});
  return cudaSuccess;
}

// ---------------------------------------------------------------- memory

constexpr std::ptrdiff_t kGuard = 256;  // before and behind each block, as its alignment is
constexpr char kGuardByte = '\xa5';

struct Block {
  size_t bytes;
  RangeId range;
};
std::map<char*, Block> blocks;

// Kernels are stopped before they touch a guard. This finds what is not instrumented.
void check_guards() {
  for (const auto& [data, block] : blocks) {
    if (std::count(data - kGuard, data, kGuardByte) != kGuard ||
        std::count(data + block.bytes, data + block.bytes + kGuard, kGuardByte) != kGuard) {
      throw std::runtime_error("simt: bytes beside cudaMalloc(" + std::to_string(block.bytes) +
                               ") have changed.");
    }
  }
}

cudaError_t validate(const Launch& launch) {
  const auto product = [](Index i) { return uint64_t(i.x) * i.y * i.z; };
  const Index &grid = launch.grid, &block = launch.block;
  if (product(grid) == 0 || product(block) == 0 || product(block) > Device::kBlockThreads ||
      block.z > 64 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  const auto leave = allowed_shared.find(launch.function);
  const size_t shared = leave == allowed_shared.end() ? Device::kBlockShared : leave->second;
  if (launch.shared_bytes > shared || launch.argument_bytes > Device::kArguments) {
    return cudaErrorInvalidValue;
  }
  if (launch.cooperative) {
    const int resident = blocks_per_multiprocessor(int(product(block)), launch.shared_bytes);
    if (product(grid) > uint64_t(resident) * Device::kMultiprocessors) {
      return cudaErrorCooperativeLaunchTooLarge;
    }
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t allow_shared(const void* kernel, int bytes) {
  if (bytes < 0 || size_t(bytes) > Device::kBlockSharedOptin) return result(cudaErrorInvalidValue);
  allowed_shared[kernel] = size_t(bytes);
  return cudaSuccess;
}

cudaError_t submit(const cudaLaunchConfig_t& config, const void* kernel, void (*run)(const void*),
                   void (*destroy)(const void*), const void* call, size_t call_bytes) {
  const std::shared_ptr<const void> owner(call, destroy);
  const auto index = [](dim3 d) { return Index{d.x, d.y, d.z}; };
  Launch launch{kernel,
                index(config.gridDim),
                index(config.blockDim),
                config.dynamicSmemBytes,
                false,
                run,
                call,
                call_bytes};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeCooperative) {
      launch.cooperative = config.attrs[i].val.cooperative != 0;
    }
  }
  const cudaError_t error = validate(launch);
  if (error != cudaSuccess) return result(error);
  return enqueue(config.stream, [launch, owner] {
    execute(launch);
    check_guards();
  });
}

}  // namespace lb::simt

using namespace lb::simt;

const char* cudaGetErrorName(cudaError_t error) {
#define LB_SIMT_ERROR(name, number) \
  if (error == name) return #name;
  LB_SIMT_ERRORS(LB_SIMT_ERROR)
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return drain_all(), cudaSuccess; }

cudaError_t cudaMalloc(void** data, size_t bytes) {
  *data = nullptr;
  if (bytes == 0) return cudaSuccess;
  const size_t all = (bytes + 3 * kGuard) / kGuard * kGuard;
  auto* block = static_cast<char*>(std::aligned_alloc(kGuard, all));
  if (block == nullptr) return result(cudaErrorMemoryAllocation);
  std::memset(block, kGuardByte, all);
  std::memset(block += kGuard, 0xff, bytes);  // NaN, to who reads before writing
  blocks[block] = {bytes, add_range(block, bytes, "cudaMalloc")};
  *data = block;
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  drain_all();  // as on a device, where it waits for all work
  const auto block = blocks.find(static_cast<char*>(data));
  if (block == blocks.end()) return result(cudaErrorInvalidValue);
  // The memory itself is not given back: a late access must find nothing new there.
  remove_range(block->second.range);
  blocks.erase(block);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (!range_holds(to, bytes) || !range_holds(from, bytes)) return result(cudaErrorInvalidValue);
  return enqueue(nullptr, [=] { std::memmove(to, from, bytes); });
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  streams.push_back(*stream = new CUstream_st);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  drain([=] { return stream != nullptr && stream->tasks.empty(); });
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  drain([=] { return stream->tasks.empty(); });
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const long until = event->recorded;  // what is recorded later does not count
  stream->tasks.push_back({[=] { return event->reached >= until; }, [] {}});
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = new CUevent_st, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  drain_all();
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const long number = ++event->recorded;
  return enqueue(stream, [=] { event->reached = number; });
}
