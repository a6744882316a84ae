// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "core/device.h"
#include "core/launch.cuh"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kUploadThreads = 256;
constexpr int kUploadWords = 4032;  // 32,256 B: CUDA takes 32,764 B of arguments from sm_70 on

struct UploadBytes {
  int64_t words[kUploadWords];
};

__global__ void __launch_bounds__(kUploadThreads)
    upload_kernel(int64_t* to, const __grid_constant__ UploadBytes bytes, int count) {
  const int i = int(blockIdx.x) * kUploadThreads + int(threadIdx.x);
  if (i < count) to[i] = bytes.words[i];
}

}  // namespace

// -------------------------------------------------------------- launchers

void upload(void* to, const void* from, int64_t bytes, void* stream) {
  constexpr int64_t kWord = sizeof(int64_t);
  int64_t done = 0;
  while (done < bytes) {
    UploadBytes chunk;
    const int64_t size =
        bytes - done < int64_t(sizeof chunk) ? bytes - done : int64_t(sizeof chunk);
    const int64_t words = (size + kWord - 1) / kWord;  // arrays are padded to 64 bytes
    chunk.words[words - 1] = 0;
    std::memcpy(chunk.words, static_cast<const char*>(from) + done, size_t(size));
    launch("upload_kernel", upload_kernel,
           {(words + kUploadThreads - 1) / kUploadThreads, kUploadThreads}, stream,
           reinterpret_cast<int64_t*>(static_cast<char*>(to) + done), chunk, int(words));
    done += size;
  }
}

bool capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  LB_CUDA_CHECK(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

DeviceGuard::DeviceGuard(int device) {
  LB_CUDA_CHECK(cudaGetDevice(&before_));
  if (before_ != device) LB_CUDA_CHECK(cudaSetDevice(device));
}

DeviceGuard::~DeviceGuard() {
  int now = before_;
  if (cudaGetDevice(&now) == cudaSuccess && now != before_) cudaSetDevice(before_);
}

Status status() {
  Status s{};
  cudaDriverGetVersion(&s.driver_version);  // 0 when there is no driver
  cudaRuntimeGetVersion(&s.runtime_version);
  const cudaError_t error = cudaGetDeviceCount(&s.device_count);
  if (error == cudaSuccess && s.device_count > 0) {
    s.available = true;
    return s;
  }
  cudaGetLastError();  // the error is reported here, not by the next launch
  s.device_count = 0;
  if (s.driver_version == 0 || error == cudaErrorInsufficientDriver) {
    s.reason =
        "no NVIDIA driver, or one older than 580, which CUDA 13 needs: install a newer driver";
  } else {
    s.reason = std::string("no usable GPU: ") + cudaGetErrorString(error);
  }
  return s;
}

}  // namespace lb::cuda
