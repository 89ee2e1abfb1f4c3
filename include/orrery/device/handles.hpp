// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <cuda_runtime_api.h>

#include "orrery/device/context.hpp"

/// Owning handles of CUDA streams, events and memory.
namespace orrery::detail {

/// Ignores the result of a call whose failure has no consequence, such as those in destructors, and clears it: the next
/// cudaGetLastError, by which kernels check a launch, must not return it.
inline void ignore_cuda(cudaError_t code) noexcept {
  if (code != cudaSuccess) static_cast<void>(cudaGetLastError());
}

/// An event that orders streams, without timing. Belongs to the device that is current at construction, and can be
/// recorded on streams of that device only; streams of any device can wait for it. Throws `device_error`.
class cuda_event {
 public:
  cuda_event() { check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
  cuda_event(cuda_event&& other) noexcept : event_{std::exchange(other.event_, nullptr)} {}
  cuda_event& operator=(cuda_event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~cuda_event() {
    if (event_ != nullptr) ignore_cuda(cudaEventDestroy(event_));
  }

  [[nodiscard]] cudaEvent_t get() const noexcept { return event_; }
  void record(cudaStream_t stream) const { check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  /// Makes the stream wait for the last record: everything enqueued on the stream afterwards runs after it. Does not
  /// block the host.
  void order(cudaStream_t stream) const { check_cuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent"); }

 private:
  cudaEvent_t event_ = nullptr;
};

/// A stream of the device that is current at construction, not ordered with the default stream. Throws `device_error`.
class cuda_stream {
 public:
  cuda_stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
  /// Makes a stream whose kernels start before those of other streams, as soon as there is room for them.
  [[nodiscard]] static cuda_stream of_greatest_priority() {
    int least = 0;
    int greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    cudaStream_t made = nullptr;
    check_cuda(cudaStreamCreateWithPriority(&made, cudaStreamNonBlocking, greatest), "cudaStreamCreateWithPriority");
    return cuda_stream{made};
  }
  cuda_stream(cuda_stream&& other) noexcept : stream_{std::exchange(other.stream_, nullptr)} {}
  cuda_stream& operator=(cuda_stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~cuda_stream() {
    if (stream_ != nullptr) ignore_cuda(cudaStreamDestroy(stream_));
  }

  [[nodiscard]] cudaStream_t get() const noexcept { return stream_; }

 private:
  explicit cuda_stream(cudaStream_t made) noexcept : stream_{made} {}

  cudaStream_t stream_ = nullptr;
};

/// Memory of the device that is current at construction, aligned to 256 bytes and uninitialised: the buffers of plans
/// on transports whose ranks compute on CUDA devices. Throws `device_error`, which says how much memory is needed and
/// how much is free.
class device_memory {
 public:
  device_memory() = default;
  explicit device_memory(std::int64_t bytes) {
    if (bytes <= 0) return;
    void* taken = nullptr;
    const cudaError_t code = cudaMalloc(&taken, static_cast<std::size_t>(bytes));
    if (code == cudaErrorMemoryAllocation) throw_short(bytes);
    check_cuda(code, "cudaMalloc");
    data_ = static_cast<std::byte*>(taken);
  }
  device_memory(device_memory&& other) noexcept : data_{std::exchange(other.data_, nullptr)} {}
  device_memory& operator=(device_memory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~device_memory() {
    if (data_ != nullptr) ignore_cuda(cudaFree(data_));
  }

  [[nodiscard]] std::byte* data() const noexcept { return data_; }

  /// Copies bytes of the host to the begin of this memory, and waits for that. Plan time only.
  void write(const void* from, std::int64_t bytes) const {
    const cuda_stream copies;
    check_cuda(cudaMemcpyAsync(data_, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, copies.get()),
               "cudaMemcpyAsync");
    check_cuda(cudaStreamSynchronize(copies.get()), "cudaStreamSynchronize");
  }

 private:
  [[noreturn]] static void throw_short(std::int64_t bytes) {
    ignore_cuda(cudaErrorMemoryAllocation);  // clears the error: a device without free memory is still usable
    int device = 0;
    std::size_t free = 0;
    std::size_t total = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    throw device_error{cudaErrorMemoryAllocation,
                       "orrery: a plan needs " + std::to_string(bytes) + " bytes more on device " +
                           std::to_string(device) + ", where " + std::to_string(free) + " of " + std::to_string(total) +
                           " are free; free some, use more ranks or a topology with fewer slots (see orrery::traffic)"};
  }

  std::byte* data_ = nullptr;
};

}  // namespace orrery::detail
