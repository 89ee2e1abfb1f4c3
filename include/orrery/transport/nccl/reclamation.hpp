// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/device/handles.hpp"

namespace orrery::nccl {

/// Aborts or destroys all communicators of a rank, on threads of its own.
///
/// ncclCommAbort sets the communicator's abort flag, which ends its kernels, and then reclaims the communicator: it
/// waits for the communicator's work, may synchronise the device, and waits until no CUDA graph holds calls of the
/// communicator. One abort after the other can wait for ever: the first waits for work that is queued behind a kernel
/// of the second, whose flag is not set yet. So all flags are set before anything is reclaimed. From NCCL 2.22 on, that
/// is what a group does: its calls set the flags, and its end reclaims. Before, each communicator gets a thread.
///
/// The caller does not wait, and may hold a lock: a graph that is still alive delays only these threads, which end when
/// it is destroyed.
class reclamation {
 public:
  reclamation() = default;
  reclamation(const reclamation&) = delete;
  reclamation& operator=(const reclamation&) = delete;

  /// Begins to abort communicators of this device.
  void abort(std::vector<ncclComm_t> comms, int device) {
    constexpr int grouped_from = 22200;  // NCCL_VERSION_CODE of 2.22.0
    int version = 0;
    const bool known = ncclGetVersion(&version) == ncclSuccess;
    if (known && version >= grouped_from) {
      start(std::move(comms), device, [](std::span<const ncclComm_t> all) {
        static_cast<void>(ncclGroupStart());
        for (ncclComm_t comm : all) static_cast<void>(ncclCommAbort(comm));
        static_cast<void>(ncclGroupEnd());
      });
      return;
    }
    for (ncclComm_t comm : comms) {
      start({comm}, device, [](std::span<const ncclComm_t> all) { static_cast<void>(ncclCommAbort(all[0])); });
    }
  }
  /// Begins to destroy communicators of this device, whose work is done.
  void destroy(std::vector<ncclComm_t> comms, int device) {
    start(std::move(comms), device, [](std::span<const ncclComm_t> all) {
      for (ncclComm_t comm : all) static_cast<void>(ncclCommDestroy(comm));
    });
  }
  /// Waits until all communicators are reclaimed, at most until the deadline. Returns true if they are.
  bool wait(std::chrono::steady_clock::time_point deadline) noexcept {
    std::unique_lock lock{progress_->mutex};
    return progress_->changed.wait_until(lock, deadline, [this] { return progress_->running == 0; });
  }

 private:
  struct progress {
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t running = 0;  // threads
  };

  template <class Reclaim>
  void start(std::vector<ncclComm_t> comms, int device, Reclaim reclaim) {
    if (comms.empty()) return;
    const auto run = [shared = progress_, comms = std::move(comms), device, reclaim] {
      detail::ignore_cuda(cudaSetDevice(device));
      // Relaxed mode, so that freeing memory does not invalidate a capture of another thread.
      cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
      detail::ignore_cuda(cudaThreadExchangeStreamCaptureMode(&mode));
      reclaim(std::span{comms});
      detail::ignore_cuda(cudaThreadExchangeStreamCaptureMode(&mode));
      const std::lock_guard lock{shared->mutex};
      --shared->running;
      shared->changed.notify_all();
    };
    {
      const std::lock_guard lock{progress_->mutex};
      ++progress_->running;
    }
    try {
      std::thread{run}.detach();
    } catch (const std::exception&) {  // no thread, or no memory for one
      run();
    }
  }

  std::shared_ptr<progress> progress_ = std::make_shared<progress>();
};

}  // namespace orrery::nccl
