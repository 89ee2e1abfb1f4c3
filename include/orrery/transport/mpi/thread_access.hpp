// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include <mpi.h>

#include "orrery/tensor/math.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/mpi/memory.hpp"
#include "orrery/transport/mpi_options.hpp"

namespace orrery::mpi {

/// Knows which threads may call MPI for a communicator, and which one does.
///
/// One thread may be inside at a time (see `presence`). A thread that comes while another one is inside, or while a
/// call that another thread has begun is not finished, is refused. So is every thread from which MPI's thread level
/// allows no calls.
class thread_access {
 public:
  /// Throws `std::invalid_argument` if MPI does not run, for options or a communicator that are not valid, and for
  /// threads that MPI's thread level does not allow.
  thread_access(MPI_Comm parent, const options& options)
      : level_{level_for(parent, options)}, maker_{std::this_thread::get_id()} {}

  /// Marks the calling thread as the one that is inside; no other calls MPI for this communicator. A thread may enter
  /// again. Empty if `on_entry` is `try_once` and another thread is inside.
  class [[nodiscard]] presence {
   public:
    enum class on_entry : std::uint8_t { try_once, wait };

    presence(thread_access& world, on_entry mode) noexcept {
      const std::thread::id me = std::this_thread::get_id();
      if (world.inside_.load(std::memory_order_relaxed) == me) {
        inside_ = true;
        return;
      }
      for (std::thread::id other; !world.inside_.compare_exchange_weak(other, me, std::memory_order_acquire);) {
        if (other != std::thread::id{} && mode == on_entry::try_once) return;
        if (other != std::thread::id{}) std::this_thread::yield();
        other = {};
      }
      inside_ = true;
      leaves_ = &world;
    }
    presence(presence&& other) noexcept
        : inside_{std::exchange(other.inside_, false)}, leaves_{std::exchange(other.leaves_, nullptr)} {}
    presence& operator=(presence&&) = delete;
    ~presence() {
      if (leaves_ != nullptr) leaves_->inside_.store(std::thread::id{}, std::memory_order_release);
    }

    explicit operator bool() const noexcept { return inside_; }

   private:
    bool inside_ = false;
    thread_access* leaves_ = nullptr;  // null: the thread was inside before
  };

  /// True if this thread may call MPI. Under MPI_THREAD_SERIALIZED and above every thread may. Otherwise only the
  /// thread that initialised MPI may, which is the one that made the world.
  [[nodiscard]] bool may_call_here() const noexcept {
    return level_ >= MPI_THREAD_SERIALIZED || std::this_thread::get_id() == maker_;
  }

  /// True if a thread can call MPI while another one does.
  [[nodiscard]] bool any_number_may_call() const noexcept { return level_ == MPI_THREAD_MULTIPLE; }

  /// Other threads are refused between these two. Call them inside.
  void begin_call() noexcept { ++calls_under_way_; }
  void end_call() noexcept { --calls_under_way_; }

 protected:
  /// Throws `std::logic_error` if this thread may not call MPI.
  void expect_thread() const {
    if (may_call_here()) return;
    throw std::logic_error{
        "orrery: mpi::world: called from another thread than the one that initialised MPI, which MPI_THREAD_FUNNELED "
        "does not allow; ask MPI_Init_thread for MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE"};
  }

  /// Throws `std::logic_error` if this thread may not begin a call: another one is in a call, or MPI is finalised.
  void expect_free(const presence& here) const {
    if (!here || (calls_under_way_ > 0 && !is_caller())) {
      throw std::logic_error{
          "orrery: mpi::world: called while another thread is in a call of this world, or has begun one that is not "
          "finished; make one call at a time, or give each thread a world of its own under MPI_THREAD_MULTIPLE"};
    }
    if (!running()) {
      throw std::logic_error{
          "orrery: mpi::world: called after MPI_Finalize; use worlds and operators before (they may be destroyed "
          "after)"};
    }
  }

  /// The caller is the last thread that entered.
  [[nodiscard]] bool is_caller() const noexcept {
    return caller_.load(std::memory_order_relaxed) == std::this_thread::get_id();
  }
  void become_caller() noexcept { caller_.store(std::this_thread::get_id(), std::memory_order_relaxed); }

 private:
  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: mpi::world: " + why}; }

  /// Returns the thread level of MPI. Throws `std::invalid_argument` if the arguments are invalid.
  [[nodiscard]] static int level_for(MPI_Comm parent, const options& options) {
    if (const std::string wrong = detail::options_error(options.deadline, options.threads_per_rank); !wrong.empty())
      refuse(wrong);
    if (!(options.progress_interval >= 0) || detail::math::is_nan(options.progress_interval)) {
      refuse("progress_interval is " + std::to_string(options.progress_interval) + ", expected seconds, at least 0");
    }
    if (!running()) refuse("MPI is not initialised, or finalised already; call MPI_Init_thread before");
    if (parent == MPI_COMM_NULL) refuse("the communicator is MPI_COMM_NULL; let only its members make a world");
    int inter = 0;
    MPI_Comm_test_inter(parent, &inter);
    if (inter != 0) refuse("the communicator is an intercommunicator; merge it by MPI_Intercomm_merge");
    int level = MPI_THREAD_SINGLE;
    int main_thread = 0;
    MPI_Query_thread(&level);
    MPI_Is_thread_main(&main_thread);
    if (level < MPI_THREAD_FUNNELED && options.threads_per_rank > 1) {
      refuse("threads_per_rank is " + std::to_string(options.threads_per_rank) +
             ", but MPI was initialised for a single thread; ask MPI_Init_thread for MPI_THREAD_FUNNELED");
    }
    if (level < MPI_THREAD_SERIALIZED && main_thread == 0) {
      refuse("this is not the thread that initialised MPI; make the world there, or ask for MPI_THREAD_SERIALIZED");
    }
    return level;
  }

  int level_;              // of MPI
  std::thread::id maker_;  // under MPI_THREAD_FUNNELED the main thread
  std::atomic<std::thread::id> inside_{};
  std::atomic<std::thread::id> caller_{};
  int calls_under_way_ = 0;  // calls of plans that the caller has begun
};

}  // namespace orrery::mpi
