// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "orrery/detail/function_ref.hpp"
#include "orrery/host/context.hpp"
#include "orrery/host/memory.hpp"
#include "orrery/host/thread_team.hpp"
#include "orrery/host/time_slice.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/threads/channel.hpp"
#include "orrery/transport/threads/shared_world.hpp"
#include "orrery/transport/transport.hpp"

/// Ranks that are threads of one process.
namespace orrery::threads {

/// One message of a plan, in host memory: copies the sender's pieces to the receiver's.
class message {
 public:
  struct end {
    thread_team* team = nullptr;  // null: one thread

    static void enter() noexcept {}
    [[nodiscard]] static bool pause() noexcept { return true; }
    [[nodiscard]] host_context context() const noexcept { return {team, {}}; }
    static void settle() noexcept {}
  };

  void expect(const end&, int, const std::vector<piece>& received) { target_ = &received; }
  void connect(const end&, const std::vector<piece>& sent) { source_ = &sent; }
  static void leave(const end&) noexcept {}
  static void arrive(const end&) noexcept {}
  void copy() const {
    for (std::size_t i = 0; i < source_->size(); ++i) {
      if ((*source_)[i].bytes == 0) continue;  // an empty shard may have a null address
      std::memcpy((*target_)[i].data, (*source_)[i].data, static_cast<std::size_t>((*source_)[i].bytes));
    }
  }
  static void finish(const end&) noexcept {}
  static void settle() noexcept {}

 private:
  const std::vector<piece>* source_ = nullptr;
  const std::vector<piece>* target_ = nullptr;
};

using channel = basic_channel<message>;

/// One rank of the world; `run` passes one to each thread. See `transport`.
class world {
 public:
  using memory = detail::host_memory;

  /// What `run` makes on its threads. Call `join` on a thread of your own.
  world(shared_world& shared, int rank) noexcept : shared_{&shared}, rank_{rank} {}
  world(const world&) = delete;
  world& operator=(const world&) = delete;
  ~world() {
    if (!joined_) return;
    if (std::uncaught_exceptions() > exceptions_) shared_->abandon(rank_, "with an exception");
    shared_->leave(rank_);
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return shared_->size(); }

  /// Returns when all ranks have called it.
  void barrier() { shared_->barrier(rank_); }

  /// False after a failure: from then on every other member throws its message. Not collective.
  [[nodiscard]] bool usable() const noexcept { return !shared_->failed(); }

  /// Returns the texts of all ranks. `call` is the kind that the ranks' signatures are compared by.
  [[nodiscard]] std::vector<std::string> all_gather(
      const std::string& text, detail::collective_call call = detail::collective_call::all_gather) {
    return shared_->all_gather(rank_, text, call);
  }

  /// Gives up: the other ranks fail at once with "rank 2 failed " and `why`. Not collective.
  void abandon(const std::string& why) noexcept { shared_->abandon(rank_, why); }

  /// Replaces the values of all ranks by their sums, added in the order of the ranks, so that every rank gets the same
  /// bits. Throws `std::invalid_argument` on every rank if ranks pass different counts or types.
  template <class T, std::size_t extent>
  void all_reduce_sum(std::span<T, extent> given) {
    std::span<T> values = given;
    const auto call = detail::collective_signature::sum<T>(values.size());
    shared_->publish(rank_, &values, call, [&](const std::vector<void*>& published) {
      const std::size_t ranks = published.size();
      const auto values_of = [&](std::size_t rank) { return *static_cast<const std::span<T>*>(published[rank]); };
      // Each rank computes a part of the sums, for all ranks.
      const std::size_t begin = values.size() * static_cast<std::size_t>(rank_) / ranks;
      const std::size_t end = values.size() * (static_cast<std::size_t>(rank_) + 1) / ranks;
      for (std::size_t i = begin; i < end; ++i) {
        T sum{};
        for (std::size_t rank = 0; rank < ranks; ++rank) sum += values_of(rank)[i];
        for (std::size_t rank = 0; rank < ranks; ++rank) values_of(rank)[i] = sum;
      }
    });
  }

  /// Throws `transport_error` on every rank if a rank sends what its peer does not expect; the world stays usable.
  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) try {
    return {*shared_, rank_, p, std::move(pieces), message::end{shared_->team_of(rank_)}};
  } catch (...) {
    give_up_on_exception(*this, "while it opened a plan");
    throw;
  }

 private:
  friend world join(shared_world& shared, int rank);

  struct by_join {};
  world(shared_world& shared, int rank, by_join)
      : shared_{&shared}, rank_{rank}, joined_{true}, exceptions_{std::uncaught_exceptions()} {
    shared.enter(rank);
  }

  shared_world* shared_;
  int rank_;
  bool joined_ = false;
  int exceptions_ = 0;  // in flight when `join` made this
};

/// Makes the calling thread a rank of the world. For trainers that have threads already: all of them share one
/// `shared_world`, and each joins it with a rank of its own.
///
///     orrery::threads::shared_world shared{2, {.deadline = 30}};  // before the threads, and destroyed after them
///     ...
///     auto world = orrery::threads::join(shared, rank);           // on each of two threads, with rank 0 and 1
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{world, shape};
///
/// The result is used like the world of `run`, by one thread at a time. Destroying it ends the rank: ranks that wait
/// for it, or come to a collective call later, fail at once with a message. If an exception destroys it, the other
/// ranks fail at their next communication, as in `run`. They are not told the exception's message, unless this rank
/// calls `world.abandon(why)` first.
///
/// Starts no threads, except for the helpers of `threads_per_rank`, and does not change the time slices of the caller's
/// threads. Does not wait for other ranks. Throws `std::invalid_argument` if `rank` is not in [0, size), and
/// `std::logic_error` if a thread has joined with this rank before.
[[nodiscard]] inline world join(shared_world& shared, int rank) { return {shared, rank, world::by_join{}}; }

/// Calls `body(rank)` on a new thread for each rank of the world, and returns when all have ended. Handles
/// exceptions as `run` below does.
inline void run_ranks(shared_world& shared, detail::function_ref<void(int rank)> body) {
  std::mutex mutex;
  std::exception_ptr root_cause;
  std::exception_ptr secondary_error;
  const auto keep_first = [&](std::exception_ptr& first) noexcept {
    const std::lock_guard lock{mutex};
    if (first == nullptr) first = std::current_exception();
  };
  // Zero if the number of cores is unknown.
  const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  const bool oversubscribed = cores > 0 && std::int64_t{shared.size()} * shared.get_options().threads_per_rank > cores;
  // Called in exception handlers, where another exception would end the process. So it does not throw, even without
  // memory.
  const auto fail = [&](int rank, const char* why) noexcept {
    try {
      shared.fail("rank " + std::to_string(rank) + " failed" + (*why == '\0' ? "" : ": ") + why);
    } catch (...) {  // no memory for the message
      shared.abandon(rank, "");
    }
  };
  const auto of_rank = [&, oversubscribed](int rank) noexcept {
    if (oversubscribed) detail::ask_for_long_time_slices();
    try {
      body(rank);
    } catch (const transport_error& e) {
      keep_first(secondary_error);
      fail(rank, e.what());
    } catch (const std::exception& e) {
      keep_first(root_cause);
      fail(rank, e.what());
    } catch (...) {
      keep_first(root_cause);
      fail(rank, "");
    }
    shared.leave(rank);
  };
  std::vector<std::thread> threads;
  std::error_code refused;
  try {
    threads.reserve(static_cast<std::size_t>(shared.size()));
    for (int rank = 0; rank < shared.size(); ++rank) {
      threads.emplace_back([&of_rank, rank] { of_rank(rank); });
    }
  } catch (const std::system_error& e) {
    refused = e.code();
  } catch (const std::bad_alloc&) {
    refused = std::make_error_code(std::errc::not_enough_memory);
  }
  // Ranks that were started fail at their next communication.
  const int missing = static_cast<int>(threads.size());
  if (refused) shared.abandon(missing, "to start: the system refuses its thread");
  for (std::thread& thread : threads) thread.join();
  if (refused) {
    throw std::system_error{refused, "orrery: threads::run: the system refuses the thread of rank " +
                                         std::to_string(missing) + " of " + std::to_string(shared.size()) +
                                         "; use fewer ranks, or let the process have more threads and memory"};
  }
  if (root_cause != nullptr) std::rethrow_exception(root_cause);
  if (secondary_error != nullptr) std::rethrow_exception(secondary_error);
}

}  // namespace orrery::threads

namespace orrery::detail {

/// Calls `body` on new threads as `threads::run` does. A template, so that it can be compiled once and not in every
/// source file that uses it (see compiled.hpp).
template <class World>
void run_worlds(int ranks, const threads::options& options, function_ref<void(World&)> body) {
  threads::shared_world shared{ranks, options, "threads::run"};
  threads::run_ranks(shared, [&](int rank) {
    World local{shared, rank};
    body(local);
  });
}

}  // namespace orrery::detail

namespace orrery::threads {

/// Calls `body(world&)` on `ranks` new threads, each with its own rank, and returns when all have ended. If one of them
/// throws, the others fail at their next communication. Rethrows the root cause: the first exception that is not a
/// `transport_error`. If all are, rethrows the first of them.
///
///     orrery::threads::run(4, {.deadline = 30}, [&](orrery::threads::world& world) {
///       orrery::attention<orrery::ring, orrery::flash<float>> attend{world, shape};
///       attend.forward(...);
///     });
///
/// An operator may outlive the world, for example in static storage; its calls then throw `transport_error`.
///
/// If there are more threads than cores, the threads ask for long time slices (see `ask_for_long_time_slices`), because
/// each context switch evicts the blocks that a kernel keeps in the core's caches.
///
/// Throws `std::invalid_argument` for a number of ranks, a deadline or a number of threads that is not positive. Throws
/// `std::system_error` if the system refuses the thread of a rank, after the ranks that had started have ended.
template <class Body>
void run(int ranks, const options& options, Body&& body) {
  detail::run_worlds<world>(ranks, options, [&](world& local) { body(local); });
}

template <class Body>
void run(int ranks, Body&& body) {
  run(ranks, options{}, body);
}

}  // namespace orrery::threads
