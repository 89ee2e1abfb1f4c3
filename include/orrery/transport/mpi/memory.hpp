// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/host/memory.hpp"

/// Memory of communications that were given up.
namespace orrery::mpi {

/// True if MPI is initialised, and not finalised.
[[nodiscard]] inline bool running() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

/// Keeps the memory that abandoned communications may still use until the process ends. Shared by all worlds of a
/// process. Never destroyed, so that an operator in a static variable can be destroyed at any time.
class abandoned_buffers {
 public:
  [[nodiscard]] static abandoned_buffers& all() {
    static abandoned_buffers& only = *new abandoned_buffers;
    return only;
  }

  /// Makes buffers that are kept until `release` is called.
  template <class Buffers>
  [[nodiscard]] std::shared_ptr<Buffers> retain() {
    auto made = std::make_shared<Buffers>();
    const std::lock_guard lock{mutex_};
    kept_.push_back(made);
    return made;
  }
  void release(const std::shared_ptr<void>& completed) {
    const std::lock_guard lock{mutex_};
    kept_.erase(std::remove(kept_.begin(), kept_.end(), completed), kept_.end());
  }

  /// Never destroys the object. Leaks it if there is no memory to record it.
  template <class Object, class Deleter>
  void retain_forever(std::unique_ptr<Object, Deleter> object) noexcept {
    try {
      const std::lock_guard lock{mutex_};
      kept_.push_back(std::shared_ptr<Object>{object.get(), [](Object*) {}});
    } catch (...) {}
    static_cast<void>(object.release());
  }

  /// Records that a communication may still use the memory that `address` lies in.
  void use(const std::byte* address) noexcept {
    try {
      const std::lock_guard lock{mutex_};
      addresses_.push_back(address);
    } catch (...) {
      all_in_use_ = true;
    }
  }
  [[nodiscard]] bool uses(const std::byte* data, std::int64_t bytes) noexcept {
    const std::lock_guard lock{mutex_};
    return all_in_use_ || std::any_of(addresses_.begin(), addresses_.end(), [&](const std::byte* used) {
             return !std::less{}(used, data) && std::less{}(used, data + bytes);
           });
  }

 private:
  abandoned_buffers() = default;

  std::mutex mutex_;
  std::vector<std::shared_ptr<void>> kept_;
  std::vector<const std::byte*> addresses_;
  std::atomic<bool> all_in_use_ = false;
};

/// Host memory of a plan. Kept until the process ends if an abandoned communication may still use it.
class memory {
 public:
  memory() = default;
  explicit memory(std::int64_t bytes) : held_{new detail::host_memory{bytes}, release{bytes}} {}
  [[nodiscard]] std::byte* data() const noexcept { return held_ == nullptr ? nullptr : held_->data(); }

 private:
  struct release {
    std::int64_t bytes;
    void operator()(detail::host_memory* held) const noexcept {
      std::unique_ptr<detail::host_memory> local{held};
      if (abandoned_buffers::all().uses(held->data(), bytes)) abandoned_buffers::all().retain_forever(std::move(local));
    }
  };
  std::unique_ptr<detail::host_memory, release> held_;
};

}  // namespace orrery::mpi
