// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/host/thread_team.hpp"
#include "orrery/schedule/detail/counted.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/detail/failure_state.hpp"

namespace orrery::threads {

struct options {
  /// How long a rank waits for another, in seconds, before both fail with a message.
  double deadline = 60;
  /// Threads that compute in each rank: the rank's own thread, and helpers that all of its plans share and that sleep
  /// between calls. Started with the rank's first plan. Results have the same bits for every number of threads.
  int threads_per_rank = 1;
};

/// The options as their designated initialiser, without what has its default: "{.deadline = 30}".
[[nodiscard]] inline std::string to_string(const options& o) {
  const options defaults;
  return orrery::detail::initializer_text{}
      .member("deadline", o.deadline, defaults.deadline)
      .member("threads_per_rank", o.threads_per_rank, defaults.threads_per_rank)
      .text();
}

/// The state that the ranks of a world share. Waiting threads sleep, since there may be many more threads than cores.
class shared_world {
 public:
  /// For threads that the caller owns (see `join`); must outlive the worlds that ranks make of it. Messages name
  /// `caller`. Throws `std::invalid_argument` for a number of ranks, deadline or number of threads that is not
  /// positive, and `std::system_error` if there is no memory for the ranks.
  explicit shared_world(int size, const options& options = {}, const char* caller = "threads::shared_world")
      : size_{checked(size, options, caller)},
        options_{options},
        self_{watch(this, caller)},
        ranks_(for_ranks<decltype(ranks_)>(size, 1, caller)),
        signatures_(for_ranks<decltype(signatures_)>(size, 2, caller)),
        published_(for_ranks<decltype(published_)>(size, 1, caller)) {}

  shared_world(const shared_world&) = delete;
  shared_world& operator=(const shared_world&) = delete;

  /// A pointer that expires with the world: operators may be destroyed, or called, after it.
  [[nodiscard]] std::weak_ptr<shared_world> watched() const noexcept { return self_; }

  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] const options& get_options() const noexcept { return options_; }

  /// Stands for any other rank, as the peer of `wait`.
  static constexpr int any_rank = -2;

  /// Sleeps until `done()`. Throws if the world has failed, if rank `peer` has ended, or after the deadline. `what()`
  /// describes what the rank waits for; it is called for an error message only.
  template <class Done, class Describe>
  void wait(int rank, int peer, const Done& done, const Describe& describe) {
    if (done()) return;
    rank_state& me = ranks_[static_cast<std::size_t>(rank)];
    const auto deadline = detail::deadline_in(options_.deadline);
    const wait_mark registered{me, peer};
    bool in_time = true;
    std::unique_lock lock{me.mutex};
    while (!done()) {
      std::string why;
      if (const int ended = who_ended(rank, peer); ended != schedule::no_rank) {
        if (done()) return;
        why = "rank " + std::to_string(rank) + " waits " + describe() + ", but rank " + std::to_string(ended) +
              " has ended";
      } else if (!in_time) {
        why = "rank " + std::to_string(rank) + " has waited " + detail::describe_seconds(options_.deadline) + " " +
              describe() + who_is_late(rank, peer);
      }
      if (!why.empty() || failed()) {
        lock.unlock();
        throw_failure(rank, !why.empty() && fail(why) ? "" : "waiting " + describe());
      }
      in_time = me.wake.wait_until(lock, deadline) == std::cv_status::no_timeout;
    }
  }

  [[nodiscard]] bool failed() const noexcept { return failure_.happened(); }

  /// Throws if the world has failed.
  void check(int rank, const char* doing) {
    if (failed()) throw_failure(rank, doing);
  }

  void wake(int rank) {
    rank_state& other = ranks_[static_cast<std::size_t>(rank)];
    { const std::lock_guard lock{other.mutex}; }
    other.wake.notify_all();
  }
  void wake_all() {
    for (int rank = 0; rank < size_; ++rank) wake(rank);
  }

  /// Records the failure of the world, of which only the first counts, and wakes all ranks. Returns true if this call
  /// recorded it.
  bool fail(const std::string& why) {
    if (!failure_.record(why)) return false;
    wake_all();
    return true;
  }
  /// Makes a thread this rank. Throws `std::invalid_argument` if there is no such rank, and `std::logic_error` if a
  /// thread has joined with it before.
  void enter(int rank) {
    if (rank < 0 || rank >= size_) {
      throw std::invalid_argument{"orrery: threads::join: the rank is " + std::to_string(rank) +
                                  ", expected a number from 0 to " + std::to_string(size_ - 1)};
    }
    if (!ranks_[static_cast<std::size_t>(rank)].entered.exchange(true, std::memory_order_relaxed)) return;
    throw std::logic_error{"orrery: threads::join: rank " + std::to_string(rank) +
                           " has joined before, and a rank joins once; give each thread a rank of its own, keep its "
                           "world while it works, and make another shared_world to start again"};
  }
  void leave(int rank) {
    ranks_[static_cast<std::size_t>(rank)].left.store(true, std::memory_order_release);
    wake_all();
  }

  /// The helper threads of a rank, which its kernels share; started at the first call. Null if the rank's own thread is
  /// the only one.
  [[nodiscard]] thread_team* team_of(int rank) {
    std::unique_ptr<thread_team>& team = ranks_[static_cast<std::size_t>(rank)].team;
    if (team == nullptr && options_.threads_per_rank > 1) {
      team = std::make_unique<thread_team>(options_.threads_per_rank);
    }
    return team.get();
  }

  /// Gives up: the other ranks fail at once with "rank 2 failed " and `why`, or without `why` if there is no memory for
  /// the message.
  void abandon(int rank, const std::string& why) noexcept {
    try {
      failure_.record({"rank ", std::to_string(rank), " failed", why.empty() ? "" : " ", why});
    } catch (...) {  // no memory
      failure_.record_rank(rank);
    }
    wake_all();
  }

  /// Returns when all ranks have called it.
  void barrier(int rank) {
    check(rank, coming);
    meet(rank, numbered(rank, {detail::collective_call::barrier}));
  }

  /// Returns the texts of all ranks.
  [[nodiscard]] std::vector<std::string> all_gather(int rank, std::string text, detail::collective_call call) {
    std::vector<std::string> all;
    publish(rank, &text, {call}, [&](const std::vector<void*>& published) {
      all.reserve(published.size());
      for (const void* of_rank : published) all.push_back(*static_cast<const std::string*>(of_rank));
    });
    return all;
  }

  /// Publishes the address `local` to all ranks, and calls `inspect` with the addresses of all ranks, in the order of
  /// the ranks. First compares the signatures of the calls, so that all addresses have the same meaning. Returns, or
  /// throws, when no rank inspects any more: what `local` points to need not outlive this call, even if the call fails.
  template <class Inspect>
  void publish(int rank, void* local, const detail::collective_signature& call, const Inspect& inspect) {
    const detail::collective_signature signature = numbered(rank, call);
    std::atomic<bool>& inspecting = ranks_[static_cast<std::size_t>(rank)].inspecting;
    inspecting.store(true, std::memory_order_seq_cst);
    bool refused = false;
    try {
      check(rank, coming);  // after the store: a rank that fails now sees that this one inspects, or is seen here
      published_[static_cast<std::size_t>(rank)] = local;
      try {
        meet(rank, signature);
      } catch (const std::invalid_argument&) {  // on all ranks: none inspects
        refused = true;
        throw;
      }
      inspect(static_cast<const std::vector<void*>&>(published_));
      inspecting.store(false, std::memory_order_seq_cst);
      meet(rank, signature);
    } catch (...) {
      inspecting.store(false, std::memory_order_seq_cst);
      // No rank waits while it inspects, and a meeting of a failed world ends at once. So this loop ends, too.
      for (const rank_state& other : ranks_) {
        while (!refused && other.inspecting.load(std::memory_order_seq_cst)) std::this_thread::yield();
      }
      throw;
    }
  }

 private:
  // The next two are called where a member is constructed: a function-try-block of the constructor would stop nvcc 13.

  /// Returns a pointer that does not own `self`.
  static std::shared_ptr<shared_world> watch(shared_world* self, const char* caller) {
    try {
      return {self, keep};
    } catch (const std::bad_alloc&) {
      throw_without_memory(self->size_, caller);
    }
  }

  /// Returns a list of `each` elements for each rank.
  template <class List>
  static List for_ranks(int size, std::size_t each, const char* caller) {
    try {
      return List(each * static_cast<std::size_t>(size));
    } catch (const std::bad_alloc&) {
      throw_without_memory(size, caller);
    }
  }

  [[noreturn]] static void throw_without_memory(int size, const char* caller) {
    throw std::system_error{
        std::make_error_code(std::errc::not_enough_memory),
        std::string{"orrery: "} + caller + ": no memory for " + detail::counted_ranks(size) + "; use fewer"};
  }

  static constexpr const char* coming = "coming to a collective call";

  /// Returns the size, if it and the options are valid.
  [[nodiscard]] static int checked(int size, const options& options, const char* caller) {
    if (size < 1) {
      throw std::invalid_argument{std::string{"orrery: "} + caller + ": the number of ranks is " +
                                  std::to_string(size) + ", expected at least 1"};
    }
    if (const std::string wrong = detail::options_error(options.deadline, options.threads_per_rank); !wrong.empty()) {
      throw std::invalid_argument{"orrery: threads::options: " + wrong};
    }
    return size;
  }

  /// Numbers the next collective call of this rank.
  [[nodiscard]] detail::collective_signature numbered(int rank, detail::collective_signature call) noexcept {
    call.sequence = ranks_[static_cast<std::size_t>(rank)].calls++;
    return call;
  }

  /// Returns when all ranks have come with the same signature. Throws `std::invalid_argument` on all of them if only
  /// their arguments differ; fails the world if they make different calls.
  void meet(int rank, const detail::collective_signature& signature) {
    rank_state& me = ranks_[static_cast<std::size_t>(rank)];
    // A rank is at most one meeting ahead of ranks that still read the signatures of the last one: two buffers suffice.
    const std::span<detail::collective_signature> of_ranks =
        std::span{signatures_}.subspan(me.meetings++ % 2 * ranks_.size(), ranks_.size());
    of_ranks[static_cast<std::size_t>(rank)] = signature;
    me.arrivals.fetch_add(1, std::memory_order_relaxed);
    const std::uint64_t round =
        arrived_.fetch_add(1, std::memory_order_acq_rel) / static_cast<std::uint64_t>(size_) + 1;
    const std::uint64_t all = round * static_cast<std::uint64_t>(size_);
    const auto complete = [&] { return arrived_.load(std::memory_order_acquire) >= all; };
    if (complete()) {
      wake_all();
    } else {
      wait(rank, any_rank, complete, [] { return std::string{"for all ranks to come to the same collective call"}; });
    }
    detail::require_same_call(of_ranks, [&](const std::string& why) {
      fail(why);
      throw_failure(rank, "");
    });
  }

  struct rank_state {
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<bool> entered{false};
    std::atomic<bool> left{false};
    std::atomic<bool> inspecting{false};            // what other ranks published
    std::atomic<int> waits_for{schedule::no_rank};  // a rank, any_rank, or no_rank if it does not wait
    std::atomic<std::uint64_t> arrivals{0};         // at meetings
    std::uint64_t meetings = 0;                     // as arrivals, read by the rank itself
    std::uint64_t calls = 0;                        // collective ones
    std::string message;                            // what the rank throws once the world has failed
    std::unique_ptr<thread_team> team;              // null without helpers
  };

  struct wait_mark {
    rank_state& me;
    wait_mark(rank_state& rank, int peer) noexcept : me{rank} { me.waits_for.store(peer, std::memory_order_relaxed); }
    wait_mark(const wait_mark&) = delete;
    wait_mark& operator=(const wait_mark&) = delete;
    ~wait_mark() { me.waits_for.store(schedule::no_rank, std::memory_order_relaxed); }
  };

  [[nodiscard]] int who_ended(int rank, int peer) const {
    if (peer == schedule::no_rank) return schedule::no_rank;
    for (int other = 0; other < size_; ++other) {
      if (other == rank || (peer != any_rank && peer != other)) continue;
      if (ranks_[static_cast<std::size_t>(other)].left.load(std::memory_order_acquire)) return other;
    }
    return schedule::no_rank;
  }

  /// Follows the chain of waits from `rank`, which waits for `peer`, to its end, and describes it. The deadlines of
  /// several ranks may pass at the same time, and the first one to report may wait for a rank that itself waits.
  [[nodiscard]] std::string who_is_late(int rank, int peer) const {
    const auto of = [&](int other) -> const rank_state& { return ranks_[static_cast<std::size_t>(other)]; };
    std::string text;
    int last = rank;
    for (int hops = 0; hops < size_ && peer >= 0; ++hops) {
      last = peer;
      peer = of(last).waits_for.load(std::memory_order_relaxed);
      if (peer >= 0)
        text += (hops == 0 ? ", which itself waits for rank " : ", which waits for rank ") + std::to_string(peer);
    }
    if (peer >= 0) return text;  // a cycle
    if (peer == schedule::no_rank) {
      return text + "; rank " + std::to_string(last) + " is not waiting: it is late or stopped";
    }
    std::string absent;
    for (int other = 0; other < size_; ++other) {
      if (of(other).arrivals.load(std::memory_order_relaxed) >= of(last).arrivals.load(std::memory_order_relaxed))
        continue;
      absent += (absent.empty() ? "" : ", ") + std::to_string(other);
    }
    if (last != rank) text += "; rank " + std::to_string(last) + " waits for all ranks to come to a collective call";
    return absent.empty() ? text : text + "; missing: rank " + absent;
  }

  /// `doing` is what the rank was doing, if another rank failed first.
  [[noreturn]] void throw_failure(int rank, const std::string& doing) {
    failure_.stop(rank, ranks_[static_cast<std::size_t>(rank)].message, doing);
  }

  static void keep(shared_world*) noexcept {}

  int size_;
  options options_;
  std::shared_ptr<shared_world> self_;  // non-owning
  std::vector<rank_state> ranks_;
  std::atomic<std::uint64_t> arrived_{0};
  detail::failure_state failure_;
  std::vector<detail::collective_signature>
      signatures_;  // of all ranks at this meeting, and at the one before or after it
  std::vector<void*> published_;
};

}  // namespace orrery::threads
