// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

/// Ends the program if its scope is not left in time. A test that hangs, whatever its deadline, fails by its name, and
/// long before ctest ends it.
class time_limit {
 public:
  explicit time_limit(std::chrono::seconds limit = std::chrono::seconds{90})
      : watcher_{[this, limit] { watch(limit); }} {}
  time_limit(const time_limit&) = delete;
  time_limit& operator=(const time_limit&) = delete;
  ~time_limit() {
    {
      const std::lock_guard lock{mutex_};
      over_ = true;
    }
    left_.notify_all();
    watcher_.join();
  }

 private:
  void watch(std::chrono::seconds limit) {
    std::unique_lock lock{mutex_};
    if (left_.wait_for(lock, limit, [&] { return over_; })) return;
    std::fprintf(stderr, "a test hangs: it has not ended within %d s\n", static_cast<int>(limit.count()));
    std::abort();  // doctest then names the test
  }

  std::mutex mutex_;
  std::condition_variable left_;
  bool over_ = false;
  std::thread watcher_;  // last: it begins with the others
};
