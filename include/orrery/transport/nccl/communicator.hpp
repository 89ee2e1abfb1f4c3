// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/device/handles.hpp"
#include "orrery/tensor/math.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/nccl_options.hpp"

namespace orrery::nccl {

/// Returns NCCL's description of a result, and its last error message in this process.
[[nodiscard]] inline std::string describe(ncclResult_t result) {
  std::string text = ncclGetErrorString(result);
  const char* const last = ncclGetLastError(nullptr);
  std::string said = last == nullptr ? "" : last;
  while (!said.empty() && (said.back() == '\n' || said.back() == ' ')) said.pop_back();
  return said.empty() ? text : text + " (" + said + ")";
}

/// Owns a nonblocking communicator. Aborted instead of destroyed if it has failed or was never complete.
class communicator {
 public:
  communicator() = default;
  communicator(communicator&& other) noexcept : comm_{std::exchange(other.comm_, nullptr)} {}
  communicator& operator=(communicator&& other) noexcept {
    std::swap(comm_, other.comm_);
    return *this;
  }
  ~communicator() {
    if (comm_ != nullptr) static_cast<void>(ncclCommDestroy(comm_));
  }
  [[nodiscard]] ncclComm_t get() const noexcept { return comm_; }
  [[nodiscard]] ncclComm_t* address() noexcept { return &comm_; }
  void release() noexcept { comm_ = nullptr; }
  /// Aborts this one alone. For one whose work no other work of the device waits for (see `reclamation`).
  void abort() noexcept {
    if (comm_ != nullptr) static_cast<void>(ncclCommAbort(std::exchange(comm_, nullptr)));
  }

 private:
  ncclComm_t comm_ = nullptr;
};

/// Returns what is wrong with the options, or an empty string.
[[nodiscard]] inline std::string options_error(const options& given) {
  if (!(given.watchdog_period >= 0) || detail::math::is_nan(given.watchdog_period)) {
    return "watchdog_period is " + std::to_string(given.watchdog_period) + ", expected seconds, or 0 for no watchdog";
  }
  if (given.max_ctas < 0 || given.max_ctas > 64) {
    return "max_ctas is " + std::to_string(given.max_ctas) + ", expected 1 to 64, or 0 for NCCL's choice";
  }
  return detail::options_error(given.deadline, 1);
}

/// The configuration of nonblocking communicators. `max_ctas`: see `options`.
[[nodiscard]] inline ncclConfig_t not_blocking(int max_ctas = 0) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  if (max_ctas > 0) config.maxCTAs = max_ctas;
  return config;
}

/// Waits until `comm` has finished the operation that returned `result`. Returns an error message that names `call`, or
/// an empty string.
[[nodiscard]] inline std::string wait_for(ncclComm_t comm, ncclResult_t result, const char* call,
                                          std::chrono::steady_clock::time_point deadline) {
  while (result == ncclInProgress) {
    if (const ncclResult_t asked = ncclCommGetAsyncError(comm, &result); asked != ncclSuccess) result = asked;
    if (result != ncclInProgress) break;
    if (std::chrono::steady_clock::now() >= deadline) {
      return std::string{call} + " is not done before the deadline: another rank has not come to it";
    }
    std::this_thread::yield();
  }
  return result == ncclSuccess ? "" : std::string{call} + " failed: " + describe(result);
}

/// Makes a nonblocking communicator of the ranks of `parent` that pass the same color. Returns an error message, or an
/// empty string. After an error NCCL may write to `made` until the parent is aborted.
[[nodiscard]] inline std::string split(ncclComm_t parent, int color, int key, int max_ctas,
                                       std::chrono::steady_clock::time_point deadline, communicator& made) {
  ncclConfig_t config = not_blocking(max_ctas);
  const ncclResult_t result = ncclCommSplit(parent, color, key, made.address(), &config);
  std::string wrong = wait_for(parent, result, "ncclCommSplit", deadline);
  if (wrong.empty() && made.get() != nullptr) {
    wrong = wait_for(made.get(), ncclInProgress, "ncclCommSplit", deadline);
  }
  return wrong;
}

/// Makes a nonblocking communicator of all ranks of the trainer's communicator, which may be blocking. On a blocking
/// one ncclCommSplit waits for ranks that do not come, and there is no way to ask beforehand. So a separate thread
/// calls it, and is abandoned at the deadline: it stays inside NCCL until the owner of the parent aborts it.
class split_with_timeout {
 public:
  /// Returns an error message, or an empty string. `device` is that of the parent.
  [[nodiscard]] static std::string make(ncclComm_t parent, int key, int max_ctas, int device,
                                        std::chrono::steady_clock::time_point deadline, communicator& made) {
    const auto split = std::make_shared<split_with_timeout>();
    split->config_ = not_blocking(max_ctas);
    std::thread{[split, parent, key, device] { split->run(parent, key, device); }}.detach();
    std::string wrong = split->wait(parent, deadline);
    const std::lock_guard lock{split->mutex_};
    if (wrong.empty()) {
      *made.address() = std::exchange(split->child_, nullptr);
    } else {
      split->given_up_ = true;
      // Never destroyed, since NCCL may still write to it.
      static auto& given_up = *new std::vector<std::shared_ptr<split_with_timeout>>;
      static auto& mutex = *new std::mutex;
      const std::lock_guard lock_of_all{mutex};
      given_up.push_back(split);
    }
    return wrong;
  }

 private:
  void run(ncclComm_t parent, int key, int device) {
    detail::ignore_cuda(cudaSetDevice(device));
    const ncclResult_t result = ncclCommSplit(parent, 0, key, &child_, &config_);
    const std::lock_guard lock{mutex_};
    result_ = result;
    returned_ = true;
    if (given_up_ && result == ncclSuccess && child_ != nullptr) static_cast<void>(ncclCommAbort(child_));
    changed_.notify_one();
  }
  [[nodiscard]] std::string wait(ncclComm_t parent, std::chrono::steady_clock::time_point deadline) {
    {
      std::unique_lock lock{mutex_};
      if (!changed_.wait_until(lock, deadline, [this] { return returned_; })) {
        return "ncclCommSplit does not return before the deadline: another rank has not come to it, and the trainer's "
               "communicator is blocking, so that a thread waits in it until ncclCommAbort is called on it; make it "
               "not blocking, as nccl::join does";
      }
    }
    std::string wrong = wait_for(parent, result_, "ncclCommSplit", deadline);
    if (wrong.empty()) wrong = wait_for(child_, ncclInProgress, "ncclCommSplit", deadline);
    return wrong;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool returned_ = false;
  bool given_up_ = false;
  ncclConfig_t config_{};
  ncclComm_t child_ = nullptr;
  ncclResult_t result_ = ncclSuccess;
};

}  // namespace orrery::nccl
