// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Device memory, streams and events with the life of a scope: a launch that throws frees them too.
#pragma once

#include <array>
#include <vector>

#include "core/launch.cuh"

namespace lb::simt_kernels {

inline dim3 to_dim3(const std::array<unsigned, 3>& xyz) { return {xyz[0], xyz[1], xyz[2]}; }

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t size) : size_(size) { LB_CUDA_CHECK(cudaMalloc(&data_, bytes())); }
  explicit Buffer(const std::vector<T>& from) : Buffer(from.size()) {
    LB_CUDA_CHECK(cudaMemcpy(data_, from.data(), bytes(), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* get() const { return data_; }
  // What is in it when everything launched so far is done.
  std::vector<T> copy() const {
    LB_CUDA_CHECK(cudaDeviceSynchronize());
    std::vector<T> to(size_);
    LB_CUDA_CHECK(cudaMemcpy(to.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return to;
  }

 private:
  size_t bytes() const { return size_ * sizeof(T); }

  T* data_ = nullptr;
  size_t size_;
};

class Stream {
 public:
  Stream() { LB_CUDA_CHECK(cudaStreamCreate(&stream_)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { LB_CUDA_CHECK(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // What comes later in `second` waits for what is now in `first`.
  void order(const Stream& first, const Stream& second) const {
    LB_CUDA_CHECK(cudaEventRecord(event_, first.get()));
    LB_CUDA_CHECK(cudaStreamWaitEvent(second.get(), event_, 0));
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace lb::simt_kernels
