// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"
#include "orrery/transport/detail/describe.hpp"

/// The watchdog: ends the waits of a rank on its device while the rank's own thread waits in CUDA, or computes, and so
/// checks nothing itself.
namespace orrery::nccl {

/// A lock of a rank's communicators, for its own thread and its watchdog. NCCL allows one thread at a time. Not even
/// ncclCommGetAsyncError may run beside another call, since it completes what that has begun.
class comm_lock {
 public:
  /// Waits while the other thread holds the lock: at most for one check of the watchdog. Costs one atomic exchange
  /// without contention.
  void lock() noexcept {
    while (taken_.exchange(true, std::memory_order_acquire)) taken_.wait(true, std::memory_order_relaxed);
  }
  [[nodiscard]] bool try_lock() noexcept { return !taken_.exchange(true, std::memory_order_acquire); }
  void unlock() noexcept {
    taken_.store(false, std::memory_order_release);
    taken_.notify_one();
  }

 private:
  std::atomic<bool> taken_{false};
};

/// A call that can describe what it waits for.
class watched_call {
 public:
  /// Returns "in step 3 for key shard 1 from rank 2", or an empty string.
  [[nodiscard]] virtual std::string waits() const = 0;

 protected:
  ~watched_call() = default;
};

/// Measures how long calls on a stream take, by an event before and an event after each call. It reports how long the
/// first unfinished call has been running on the device. While the host is still inside that call, time counts from the
/// host's last step in it, since the host may wait for the device there. If more than `most` calls are unfinished,
/// further calls share the last one's events, and get as much more time. For one thread at a time, except `go_on`.
class call_timers {
 public:
  static constexpr std::size_t most = 64;
  using clock = std::chrono::steady_clock;

  /// Makes the events, on the current device. Throws `device_error`.
  explicit call_timers(double deadline) : deadline_{deadline}, timers_(most) {}

  /// Records the begin of a call on the stream. Not while the stream is captured.
  void begin(cudaStream_t stream, const watched_call* call) {
    if (count_ == most) {
      newest().calls += 1;
      newest().call = nullptr;
    } else {
      ++count_;
      newest().begun.record(stream);
      newest().call = call;
      newest().calls = 1;
      newest().running = false;
    }
    newest().enqueued = false;
  }
  void end(cudaStream_t stream) {
    newest().ended.record(stream);
    newest().enqueued = true;
  }
  /// Records that the host makes progress in the call.
  void go_on() noexcept { steps_.fetch_add(1, std::memory_order_relaxed); }
  /// Forgets `what`, which is about to be destroyed.
  void forget(const watched_call* call) {
    for (call_timer& timer : timers_) {
      if (timer.call == call) timer.call = nullptr;
    }
  }

  /// Checks the first unfinished call. Returns an error, a clause that begins with "has", or an empty string. Queries
  /// the device without waiting for it.
  [[nodiscard]] std::string overdue(clock::time_point now) {
    for (; count_ > 0; oldest_ = (oldest_ + 1) % most, --count_) {
      call_timer& timer = timers_[oldest_];
      if (!timer.running) {
        if (const cudaError_t state = cudaEventQuery(timer.begun.get()); state != cudaSuccess) return failure(state);
        timer.running = true;
        timer.since = now;
      }
      if (!timer.enqueued) {
        if (const unsigned steps = steps_.load(std::memory_order_relaxed); std::exchange(timer.steps, steps) != steps) {
          timer.since = now;
        }
        return late(timer, now);
      }
      if (const cudaError_t state = cudaEventQuery(timer.ended.get()); state != cudaSuccess) {
        if (state != cudaErrorNotReady) return failure(state);
        detail::ignore_cuda(state);
        return late(timer, now);
      }
    }
    return "";
  }
  /// Describes the wait of the first unfinished call: "has waited 60 s in step 3 for key shard 1 from rank 2". The
  /// place is not known if the same plan has been called again since.
  [[nodiscard]] std::string waited(double seconds) const {
    std::string where;
    if (count_ > 0 && timers_[oldest_].call != nullptr) {
      int calls = 0;
      for (std::size_t i = 0; i < count_; ++i) {
        calls += timers_[(oldest_ + i) % most].call == timers_[oldest_].call ? 1 : 0;
      }
      if (calls == 1) where = timers_[oldest_].call->waits();
    }
    return where.empty() ? nothing_known(seconds) : "has waited " + detail::describe_seconds(seconds) + " " + where;
  }
  [[nodiscard]] static std::string nothing_known(double seconds) {
    return "has waited " + detail::describe_seconds(seconds) +
           " for its stream: for a peer that has not come, or a kernel that does not end";
  }

 private:
  struct call_timer {
    detail::cuda_event begun;
    detail::cuda_event ended;
    const watched_call* call = nullptr;
    int calls = 0;
    bool enqueued = true;  // the end has been enqueued
    bool running = false;  // on the device, since `since`
    clock::time_point since{};
    unsigned steps = 0;  // steps of the host at that time
  };

  [[nodiscard]] call_timer& newest() { return timers_[(oldest_ + count_ - 1) % most]; }
  [[nodiscard]] std::string late(const call_timer& timer, clock::time_point now) const {
    const std::chrono::duration<double> age = now - timer.since;
    return age.count() < deadline_ * timer.calls ? "" : waited(deadline_ * timer.calls);
  }
  [[nodiscard]] static std::string failure(cudaError_t state) {
    detail::ignore_cuda(state);
    if (state == cudaErrorNotReady) return "";
    return std::string{"has lost its device: cudaEventQuery failed: "} + cudaGetErrorString(state) + " (" +
           cudaGetErrorName(state) + ")";
  }

  double deadline_;
  std::vector<call_timer> timers_;
  std::size_t oldest_ = 0;
  std::size_t count_ = 0;
  std::atomic<unsigned> steps_{0};
};

/// A thread that calls `check` periodically until it returns false, and sleeps in between.
class watchdog {
 public:
  watchdog(std::chrono::duration<double> period, int device, std::function<bool()> check)
      : thread_{[this, period, device, check = std::move(check)] { watch(period, device, check); }} {}
  watchdog(const watchdog&) = delete;
  watchdog& operator=(const watchdog&) = delete;
  ~watchdog() {
    {
      const std::lock_guard lock{mutex_};
      over_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

 private:
  void watch(std::chrono::duration<double> period, int device, const std::function<bool()>& check) {
    detail::ignore_cuda(cudaSetDevice(device));
    // Relaxed mode, so that querying an event does not invalidate a capture of another thread.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    detail::ignore_cuda(cudaThreadExchangeStreamCaptureMode(&mode));
    std::unique_lock lock{mutex_};
    while (!wake_.wait_for(lock, period, [this] { return over_; })) {
      lock.unlock();
      const bool goes_on = check();
      lock.lock();
      if (!goes_on) return;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  bool over_ = false;
  std::thread thread_;  // last: it uses the members above
};

}  // namespace orrery::nccl
