// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "orrery/detail/function_ref.hpp"

namespace orrery {

/// A team of threads that share the work of one caller: the calling thread, and helpers that sleep between calls.
///
///     orrery::thread_team team{4};
///     orrery::flash<float>::forward({.team = &team}, ...);
///
/// Transports make one for each rank that asks for more than one thread (`threads_per_rank` in their options). One
/// thread may call at a time, and not from within the work. A call allocates nothing and takes no lock. It does not
/// wait for helpers that wake up too late, so a team on busy cores costs little more than no team.
class thread_team {
 public:
  /// Starts threads - 1 helpers. Throws `std::invalid_argument` if `threads` is less than 1, and `std::runtime_error`
  /// if the system has no more threads.
  explicit thread_team(int threads) : marks_(checked(threads) + 1) {
    helpers_.reserve(marks_.size() - 2);
    try {
      for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { help(i); });
    } catch (const std::exception& e) {  // no more threads, or no memory for one
      dismiss();
      throw std::runtime_error{"orrery: thread_team: " + std::to_string(threads) +
                               " threads asked for, but the system refuses one more after " +
                               std::to_string(helpers_.size() + 1) + ": " + e.what()};
    }
  }
  thread_team(const thread_team&) = delete;
  thread_team& operator=(const thread_team&) = delete;
  ~thread_team() { dismiss(); }

  /// The number of threads that work in a call, including the caller.
  [[nodiscard]] int threads() const noexcept { return static_cast<int>(helpers_.size()) + 1; }

  /// Calls work(item, thread) once for each item in [0, items), on any thread, and returns when all are done. Items
  /// begin in increasing order; thread 0 is the caller. Rethrows the first exception of the work; items that had not
  /// begun by then are skipped.
  template <class Work>
  void run(std::int64_t items, const Work& work) {
    share(items, work);
  }

  /// Orders the stages of an item of `run_staged` after those of the item before it.
  class stage_order {
   public:
    /// Waits until the item before this one has left `stage`.
    void enter(std::int64_t stage) const noexcept {
      if (item_ > 0) team_->await(item_ - 1, stage + 1);
    }
    /// Leaves `stage`, and all stages before it: the next item may enter them.
    void leave(std::int64_t stage) const noexcept { team_->mark(item_, stage + 1); }

   private:
    friend thread_team;
    stage_order(thread_team& team, std::int64_t item) noexcept : team_{&team}, item_{item} {}

    thread_team* team_;
    std::int64_t item_;
  };

  /// As `run`, for items that pass the same stages one after the other. Calls work(item, thread, order), in which the
  /// item enters and leaves stages 0, 1, ... (fewer than 2^24) by `order`. An item enters a stage after the item before
  /// it has left that stage. So each stage sees the items in increasing order, for every number of threads.
  ///
  ///     team.run_staged(blocks, [&](std::int64_t block, int, const orrery::thread_team::stage_order& order) {
  ///       for (int row = 0; row < rows; ++row) {
  ///         order.enter(row);
  ///         add(block, row);  // rows get their blocks in order
  ///         order.leave(row);
  ///       }
  ///     });
  template <class Work>
  void run_staged(std::int64_t items, const Work& work) {
    for (mark_of_item& mark : marks_) mark.passed.store(0, std::memory_order_relaxed);
    run(items, [&](std::int64_t item, int thread) {
      const leave_all at_the_end{*this, item};  // also if the work throws, so that later items do not wait for ever
      work(item, thread, stage_order{*this, item});
    });
  }

 private:
  using item_work = detail::function_ref<void(std::int64_t, int)>;

  static constexpr std::uint32_t open = std::uint32_t{1} << 31;
  static constexpr int stage_bits = 24;
  static constexpr std::int64_t all_stages = (std::int64_t{1} << stage_bits) - 1;

  /// The progress of an item: item << stage_bits | stages that it has left. Items use the marks round-robin. When an
  /// item takes a mark, its previous item and the one that waited for that are done, because at most `threads()` items
  /// run at a time, and they end in order.
  struct alignas(64) mark_of_item {
    std::atomic<std::int64_t> passed{0};
  };

  struct leave_all {
    thread_team& team;
    std::int64_t item;
    leave_all(thread_team& owner, std::int64_t which) noexcept : team{owner}, item{which} {}
    leave_all(const leave_all&) = delete;
    leave_all& operator=(const leave_all&) = delete;
    ~leave_all() {
      if (item > 0) team.await(item - 1, all_stages);
      team.mark(item, all_stages);
    }
  };

  [[nodiscard]] static std::size_t checked(int threads) {
    if (threads < 1) {
      throw std::invalid_argument{"orrery: thread_team: threads is " + std::to_string(threads) +
                                  ", expected at least 1"};
    }
    return static_cast<std::size_t>(threads);
  }

  std::atomic<std::int64_t>& mark_for(std::int64_t item) noexcept {
    return marks_[static_cast<std::size_t>(item) % marks_.size()].passed;
  }
  // Sequentially consistent, like every store here that is followed by a notification: the notification looks for
  // sleeping threads afterwards.
  void mark(std::int64_t item, std::int64_t stages) noexcept {
    std::atomic<std::int64_t>& passed = mark_for(item);
    passed.store(item << stage_bits | stages);
    passed.notify_all();
  }
  void await(std::int64_t item, std::int64_t stages) noexcept {
    std::atomic<std::int64_t>& passed = mark_for(item);
    for (std::int64_t now = passed.load(); now < (item << stage_bits | stages); now = passed.load()) passed.wait(now);
  }

  void share(std::int64_t items, item_work work) {
    if (helpers_.empty() || items < 2) {
      for (std::int64_t item = 0; item < items; ++item) work(item, 0);
      return;
    }
    // No helper is active, so no thread reads these now.
    work_ = work;
    items_ = items;
    next_.store(0, std::memory_order_relaxed);
    failed_.store(false, std::memory_order_relaxed);
    helping_.store(open);
    calls_.fetch_add(1);
    if (items - 1 < static_cast<std::int64_t>(helpers_.size())) {
      for (std::int64_t item = 1; item < items; ++item) calls_.notify_one();
    } else {
      calls_.notify_all();
    }
    take_items(0);
    for (std::uint32_t left = helping_.fetch_and(~open) & ~open; left != 0; left = helping_.load()) helping_.wait(left);
    if (failed_.load(std::memory_order_relaxed)) {
      const std::exception_ptr why = error_;
      error_ = nullptr;
      std::rethrow_exception(why);
    }
  }

  void take_items(int thread) noexcept {
    for (;;) {
      const std::int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
      if (item >= items_) return;
      try {
        work_(item, thread);
      } catch (...) {
        if (!failed_.exchange(true)) error_ = std::current_exception();
        next_.store(items_, std::memory_order_relaxed);
      }
    }
  }

  void help(int thread) noexcept {
    std::uint32_t known = 0;
    for (;;) {
      calls_.wait(known);
      known = calls_.load();
      if (dismissed_.load()) return;
      // Joins the call, unless the caller has finished it meanwhile.
      std::uint32_t helping = helping_.load();
      while ((helping & open) != 0 && !helping_.compare_exchange_weak(helping, helping + 1)) {}
      if ((helping & open) == 0) continue;
      take_items(thread);
      if (helping_.fetch_sub(1) == 1) helping_.notify_one();
    }
  }

  void dismiss() noexcept {
    dismissed_.store(true);
    calls_.fetch_add(1);
    calls_.notify_all();
    for (std::thread& thread : helpers_) thread.join();
  }

  std::vector<mark_of_item> marks_;
  item_work work_;  // of the present call
  std::int64_t items_ = 0;
  std::exception_ptr error_;
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<std::uint32_t> calls_{0};    // the number of calls; helpers sleep on it
  alignas(64) std::atomic<std::uint32_t> helping_{0};  // the number of active helpers, and `open` if more may join
  std::atomic<bool> failed_{false};
  std::atomic<bool> dismissed_{false};
  std::vector<std::thread> helpers_;  // last: they use the members above
};

}  // namespace orrery
