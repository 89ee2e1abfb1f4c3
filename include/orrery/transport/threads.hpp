// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "orrery/kernel/thread_team.hpp"
#include "orrery/kernel/tile.hpp"
#include "orrery/transport/deadline.hpp"
#include "orrery/transport/host_memory.hpp"
#include "orrery/transport/time_slice.hpp"
#include "orrery/transport/transport.hpp"

/// Ranks that are threads of one process.
namespace orrery::threads {

struct options {
  /// How long a rank waits for another, in seconds, before both fail with a sentence.
  double deadline = 60;
  /// Threads that compute in each rank: the rank's own and helpers, which all of its plans share and which sleep
  /// between calls. Started with the rank's first plan. Results have the same bits whatever the number.
  int threads_per_rank = 1;
};

/// Who of a message's two ranks has posted it. The second to do so copies it, so that a post never waits and no thread
/// waits for a copy that it could do itself.
class handover {
 public:
  /// Does this rank's post complete the message? Then `copy()` is called, and both ends have it from then on. If `copy`
  /// throws, neither ever has.
  template <class Copy>
  bool post(const Copy& copy) {
    const std::uint64_t before = posted_.fetch_add(1, std::memory_order_acq_rel);
    if (before % 2 == 0 || (before & withdrawn) != 0) return false;
    try {
      copy();
    } catch (...) {
      broken_.store(true, std::memory_order_release);
      throw;
    }
    copied_.fetch_add(1, std::memory_order_release);
    return true;
  }

  /// In how many calls it has been copied.
  [[nodiscard]] std::uint64_t copied() const noexcept { return copied_.load(std::memory_order_acquire); }

  /// From now on nobody touches the memory of either end: a rank that gives up in the middle of a call leaves messages
  /// behind which its peer has yet to post.
  void withdraw() {
    const std::uint64_t before = posted_.fetch_or(withdrawn, std::memory_order_acq_rel);
    if ((before & withdrawn) != 0) return;  // the peer has, and so it copies no more
    while (copied() < before / 2 && !broken_.load(std::memory_order_acquire)) std::this_thread::yield();
  }

 private:
  static constexpr std::uint64_t withdrawn = std::uint64_t{1} << 63;

  std::atomic<std::uint64_t> posted_{0};  // twice in a call, and `withdrawn`
  std::atomic<std::uint64_t> copied_{0};  // once in a call
  std::atomic<bool> broken_{false};
};

/// What the ranks of a world share. Waiting threads sleep: there may be many more of them than cores.
class shared_world {
 public:
  shared_world(int size, const options& how)
      : size_{checked(size, how)},
        options_{how},
        ranks_(static_cast<std::size_t>(size)),
        gathered_(ranks_.size()),
        shown_(ranks_.size()) {}

  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] const options& how() const noexcept { return options_; }

  /// A peer that means: any other rank.
  static constexpr int anyone = -2;

  /// Sleeps until `done()`, and throws if the world has failed, if rank `peer` has ended, or after the deadline. `what`
  /// says what for; it is called only then.
  template <class Done, class What>
  void wait(int rank, int peer, const Done& done, const What& what) {
    if (done()) return;
    sleeper& me = ranks_[static_cast<std::size_t>(rank)];
    const auto deadline = deadline_in(options_.deadline);
    const wait_mark registered{me, peer};
    bool in_time = true;
    std::unique_lock lock{me.mutex};
    while (!done()) {
      std::string why;
      if (const int ended = who_ended(rank, peer); ended != nobody) {
        if (done()) return;
        why =
            "rank " + std::to_string(rank) + " waits " + what() + ", but rank " + std::to_string(ended) + " has ended";
      } else if (!in_time) {
        why = "rank " + std::to_string(rank) + " has waited " + describe_seconds(options_.deadline) + " " + what() +
              who_is_late(rank, peer);
      }
      if (!why.empty() || failed()) {
        lock.unlock();
        throw_failure(rank, !why.empty() && fail(why) ? "" : "waiting " + what());
      }
      in_time = me.wake.wait_until(lock, deadline) == std::cv_status::no_timeout;
    }
  }

  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_seq_cst); }

  /// Throws if the world has failed.
  void check(int rank, const char* doing) {
    if (failed()) throw_failure(rank, doing);
  }

  void wake(int rank) {
    sleeper& other = ranks_[static_cast<std::size_t>(rank)];
    { const std::lock_guard lock{other.mutex}; }
    other.wake.notify_all();
  }
  void wake_all() {
    for (int rank = 0; rank < size_; ++rank) wake(rank);
  }

  /// The first failure is everybody's. Is it this one?
  bool fail(const std::string& why) {
    {
      const std::lock_guard lock{failure_mutex_};
      if (failed_.load(std::memory_order_relaxed)) return false;
      failure_ = why;
      failed_.store(true, std::memory_order_seq_cst);
    }
    wake_all();
    return true;
  }
  void leave(int rank) {
    ranks_[static_cast<std::size_t>(rank)].left.store(true, std::memory_order_release);
    wake_all();
  }

  /// Returns when all ranks have come.
  void barrier(int rank) {
    check(rank, coming);
    ranks_[static_cast<std::size_t>(rank)].arrivals.fetch_add(1, std::memory_order_relaxed);
    const std::uint64_t turn = arrived_.fetch_add(1, std::memory_order_acq_rel) / static_cast<std::uint64_t>(size_) + 1;
    const std::uint64_t all = turn * static_cast<std::uint64_t>(size_);
    const auto complete = [&] { return arrived_.load(std::memory_order_acquire) >= all; };
    if (complete()) return wake_all();
    wait(rank, anyone, complete, [] { return std::string{"for all ranks to come to the same collective call"}; });
  }

  /// The texts of all ranks.
  [[nodiscard]] std::vector<std::string> all_gather(int rank, const std::string& text) {
    check(rank, coming);
    gathered_[static_cast<std::size_t>(rank)] = text;
    barrier(rank);
    std::vector<std::string> all = gathered_;
    barrier(rank);
    return all;
  }

  /// Shows `mine` to all ranks, and calls `look` with what all ranks show, in their order. Returns, or throws, when
  /// nobody looks any more: what a rank shows need not live longer than this call, even if it is given up in between.
  template <class Look>
  void show(int rank, void* mine, const Look& look) {
    std::atomic<bool>& looking = ranks_[static_cast<std::size_t>(rank)].looking;
    looking.store(true, std::memory_order_seq_cst);
    try {
      check(rank, coming);  // after the store: who fails now either sees that this rank looks, or is seen here
      shown_[static_cast<std::size_t>(rank)] = mine;
      barrier(rank);
      look(static_cast<const std::vector<void*>&>(shown_));
      looking.store(false, std::memory_order_seq_cst);
      barrier(rank);
    } catch (...) {
      looking.store(false, std::memory_order_seq_cst);
      // Nobody waits while looking, and a barrier of a failed world ends at once: this does, too.
      for (const sleeper& other : ranks_) {
        while (other.looking.load(std::memory_order_seq_cst)) std::this_thread::yield();
      }
      throw;
    }
  }

 private:
  static constexpr const char* coming = "coming to a collective call";

  /// The size, if all is well with it and the options.
  [[nodiscard]] static int checked(int size, const options& how) {
    if (size < 1) {
      throw std::invalid_argument{"orrery: threads::run: the number of ranks is " + std::to_string(size) +
                                  ", expected at least 1"};
    }
    if (const std::string wrong = what_is_wrong_with(how.deadline, how.threads_per_rank); !wrong.empty()) {
      throw std::invalid_argument{"orrery: threads::options: " + wrong};
    }
    return size;
  }

  struct sleeper {
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<bool> left{false};
    std::atomic<bool> looking{false};        // at what others show
    std::atomic<int> waits_for{nobody};      // a rank, anyone, or nobody: it does not wait
    std::atomic<std::uint64_t> arrivals{0};  // at barriers
    std::string sentence;                    // that the rank throws, once the world has failed
  };

  struct wait_mark {
    sleeper& me;
    wait_mark(sleeper& of, int peer) noexcept : me{of} { me.waits_for.store(peer, std::memory_order_relaxed); }
    wait_mark(const wait_mark&) = delete;
    wait_mark& operator=(const wait_mark&) = delete;
    ~wait_mark() { me.waits_for.store(nobody, std::memory_order_relaxed); }
  };

  [[nodiscard]] int who_ended(int rank, int peer) const {
    if (peer == nobody) return nobody;
    for (int other = 0; other < size_; ++other) {
      if (other == rank || (peer != anyone && peer != other)) continue;
      if (ranks_[static_cast<std::size_t>(other)].left.load(std::memory_order_acquire)) return other;
    }
    return nobody;
  }

  /// Whom `rank`, which waits for `peer`, waits for in the end: the deadlines of several ranks may pass together, and
  /// the first to say so may wait for one that itself waits.
  [[nodiscard]] std::string who_is_late(int rank, int peer) const {
    const auto of = [&](int other) -> const sleeper& { return ranks_[static_cast<std::size_t>(other)]; };
    std::string text;
    int last = rank;
    for (int hops = 0; hops < size_ && peer >= 0; ++hops) {
      last = peer;
      peer = of(last).waits_for.load(std::memory_order_relaxed);
      if (peer >= 0)
        text += (hops == 0 ? ", which itself waits for rank " : ", which waits for rank ") + std::to_string(peer);
    }
    if (peer >= 0) return text;  // round in a circle
    if (peer == nobody) {
      return text + "; rank " + std::to_string(last) + " does not wait for anybody: it is late, or stands still";
    }
    std::string absent;
    for (int other = 0; other < size_; ++other) {
      if (of(other).arrivals.load(std::memory_order_relaxed) >= of(last).arrivals.load(std::memory_order_relaxed))
        continue;
      absent += (absent.empty() ? "" : ", ") + std::to_string(other);
    }
    if (last != rank) text += "; rank " + std::to_string(last) + " waits for all ranks to come to a collective call";
    return absent.empty() ? text : text + "; not there: rank " + absent;
  }

  /// Always the same sentence, on each rank. `doing`: what the rank itself was at, if it is not the one that failed
  /// first.
  [[noreturn]] void throw_failure(int rank, const std::string& doing) {
    std::string& sentence = ranks_[static_cast<std::size_t>(rank)].sentence;
    if (sentence.empty()) {
      const std::lock_guard lock{failure_mutex_};
      const std::string who = "rank " + std::to_string(rank);
      sentence = "orrery: " + who + " stops: " + failure_ + (doing.empty() ? "" : "; " + who + " was " + doing) +
                 world_is_lost;
    }
    throw transport_error{sentence};
  }

  int size_;
  options options_;
  std::vector<sleeper> ranks_;
  std::atomic<std::uint64_t> arrived_{0};
  std::mutex failure_mutex_;
  std::atomic<bool> failed_{false};
  std::string failure_;
  std::vector<std::string> gathered_;
  std::vector<void*> shown_;
};

/// One rank's end of a plan, for ranks that are threads of one process. See `transport_channel`.
///
/// What a message is, and how it is copied, is the transport's own: `Message` has the type `end` of what a rank's
/// messages share there, which has `enter()` and `context()`, `pause()` for the time of a wait, and `settle()` (nothing
/// of the plan is under way after it). Its members, with the end of the rank that calls them:
///
/// - at plan time `expect(end, lane, pieces)` on the receiver, then `connect(end, pieces)` on the sender;
/// - in a call `leave(end)` before the sender's and `arrive(end)` before the receiver's post, `copy()` on whoever posts
///   last, and `finish(end)` on both when it is awaited;
/// - `settle()` at the end of the plan, on both.
template <class Message>
class basic_channel {
 public:
  using end = typename Message::end;

  basic_channel(shared_world& world, int rank, const program& p, std::vector<exchange_pieces> pieces, end mine)
      : world_{&world}, rank_{rank}, plan_{std::make_unique<plan>(std::move(mine))} {
    plan_->steps = p;
    plan_->pieces = std::move(pieces);
    const auto exchanges = static_cast<std::size_t>(p.exchanges.size());
    plan_->arriving = std::shared_ptr<message[]>{new message[exchanges]};
    plan_->leaving.resize(exchanges);
    for (std::size_t e = 0; e < exchanges; ++e) {
      const exchange& x = p.exchanges[static_cast<int>(e)];
      if (x.received.count > 0) plan_->arriving.get()[e].expect(plan_->mine, x.lane, plan_->pieces[e].received);
    }

    std::string wrong;
    world_->show(rank, plan_.get(), [&](const std::vector<void*>& plans) {
      for (std::size_t e = 0; e < exchanges && wrong.empty(); ++e) wrong = find_receiver(e, plans);
    });
    for (const std::string& of_rank : world_->all_gather(rank, wrong)) {
      if (!of_rank.empty()) throw transport_error{"orrery: " + of_rank + world_is_usable};
    }
  }

  void begin() {
    world_->check(rank_, "beginning a call");
    if (call_++ > 0 && awaited_ != plan_->steps.exchanges.size()) {
      world_->fail("rank " + std::to_string(rank_) + " begins a call, but has left its last one in the middle");
      world_->check(rank_, "");
    }
    awaited_ = 0;
    plan_->mine.enter();
  }

  void post(int e) {
    const exchange& x = plan_->steps.exchanges[e];
    if (x.sent.count > 0) {
      message& m = *plan_->leaving[static_cast<std::size_t>(e)];
      m.leave(plan_->mine);
      hand_over(m, x.to);
    }
    if (x.received.count > 0) {
      message& m = plan_->arriving[e];
      m.arrive(plan_->mine);
      hand_over(m, x.from);
    }
  }

  void await(int e) {
    const exchange& x = plan_->steps.exchanges[e];
    if (x.received.count > 0) finish(plan_->arriving[e], x.from, e, way::receiving);
    if (x.sent.count > 0) finish(*plan_->leaving[static_cast<std::size_t>(e)], x.to, e, way::sending);
    ++awaited_;
  }

  void abandon(const std::string& why) { world_->fail("rank " + std::to_string(rank_) + " failed " + why); }

  [[nodiscard]] auto context() const noexcept { return plan_->mine.context(); }

 private:
  struct message : Message {
    handover ends;
  };
  struct plan {
    end mine;
    program steps;
    std::vector<exchange_pieces> pieces;
    std::shared_ptr<message[]> arriving;  // shared with the senders, who may look at them last
    std::vector<std::shared_ptr<message>> leaving;

    explicit plan(end of_rank) : mine{std::move(of_rank)} {}
    plan(const plan&) = delete;
    plan& operator=(const plan&) = delete;
    ~plan() {
      for (std::size_t e = 0; e < leaving.size(); ++e) {
        give_up(arriving.get()[e]);
        if (leaving[e] != nullptr) give_up(*leaving[e]);
      }
      mine.settle();
    }

    static void give_up(message& m) {
      m.ends.withdraw();
      if (m.ends.copied() > 0) m.settle();
    }
  };

  /// The k-th message to a rank in a lane is the k-th that it expects from here in that lane. Empty, or what is wrong.
  [[nodiscard]] std::string find_receiver(std::size_t e, const std::vector<void*>& plans) {
    const exchange& x = plan_->steps.exchanges[static_cast<int>(e)];
    if (x.sent.count == 0) return "";
    int before = 0;
    for (std::size_t d = 0; d < e; ++d) {
      const exchange& y = plan_->steps.exchanges[static_cast<int>(d)];
      if (y.sent.count > 0 && y.to == x.to && y.lane == x.lane) ++before;
    }
    const plan& other = *static_cast<const plan*>(plans[static_cast<std::size_t>(x.to)]);
    for (int r = 0; r < other.steps.exchanges.size(); ++r) {
      const exchange& y = other.steps.exchanges[r];
      if (y.received.count == 0 || y.from != rank_ || y.lane != x.lane || before-- > 0) continue;
      const std::vector<piece>& sent = plan_->pieces[e].sent;
      const std::vector<piece>& expected = other.pieces[static_cast<std::size_t>(r)].received;
      bool fits = sent.size() == expected.size();
      for (std::size_t i = 0; fits && i < sent.size(); ++i) fits = sent[i].bytes == expected[i].bytes;
      if (!fits) break;
      message& found = other.arriving[r];
      found.connect(plan_->mine, sent);
      plan_->leaving[e] = std::shared_ptr<message>{other.arriving, &found};
      return "";
    }
    return "rank " + std::to_string(rank_) + " sends " +
           describe_message(plan_->steps, static_cast<int>(e), way::sending) + " to rank " + std::to_string(x.to) +
           ", which does not expect it, or not in this size";
  }

  void hand_over(message& m, int peer) {
    if (m.ends.post([&] { m.copy(); })) world_->wake(peer);
  }

  void finish(message& m, int peer, int e, way w) {
    if (m.ends.copied() < call_) {
      [[maybe_unused]] const auto waiting = plan_->mine.pause();
      world_->wait(
          rank_, peer, [&] { return m.ends.copied() >= call_; }, [&] { return describe_wait(plan_->steps, e, w); });
    }
    m.finish(plan_->mine);
  }

  shared_world* world_;
  int rank_;
  std::unique_ptr<plan> plan_;
  std::uint64_t call_ = 0;
  int awaited_ = 0;  // exchanges of this call
};

/// One message of a plan in the memory of the host: where it comes from and goes to.
class message {
 public:
  struct end {
    std::shared_ptr<thread_team> team;  // null: one thread

    static void enter() noexcept {}
    [[nodiscard]] static bool pause() noexcept { return true; }
    [[nodiscard]] host_context context() const noexcept { return {team.get(), nullptr, nullptr}; }
    static void settle() noexcept {}
  };

  void expect(const end&, int, const std::vector<piece>& received) { target_ = &received; }
  void connect(const end&, const std::vector<piece>& sent) { source_ = &sent; }
  static void leave(const end&) noexcept {}
  static void arrive(const end&) noexcept {}
  void copy() const {
    for (std::size_t i = 0; i < source_->size(); ++i) {
      if ((*source_)[i].bytes == 0) continue;  // an empty shard may lie nowhere
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

/// One rank of the world: what `run` hands to each thread. See `transport`.
class world {
 public:
  using memory = host_memory;

  world(shared_world& shared, int rank) noexcept : shared_{&shared}, rank_{rank} {}

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return shared_->size(); }

  /// Returns when all ranks have called it.
  void barrier() { shared_->barrier(rank_); }

  /// False after a failure: from then on every other member throws its sentence. Not collective.
  [[nodiscard]] bool usable() const noexcept { return !shared_->failed(); }

  /// The texts of all ranks.
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text) {
    return shared_->all_gather(rank_, text);
  }

  /// Replaces the values of all ranks by their sums, added in the order of the ranks: every rank gets the same bits.
  /// Throws `std::invalid_argument` on every rank if they do not all give equally many values.
  template <class T>
  void all_reduce_sum(std::span<T> values) {
    std::string wrong;
    shared_->show(rank_, &values, [&](const std::vector<void*>& shown) {
      const std::size_t ranks = shown.size();
      const auto values_of = [&](std::size_t rank) { return *static_cast<const std::span<T>*>(shown[rank]); };
      std::size_t odd = 0;
      while (odd < ranks && values_of(odd).size() == values_of(0).size()) ++odd;
      if (odd < ranks) {
        wrong = "orrery: all_reduce_sum: rank 0 gives " + std::to_string(values_of(0).size()) + " values and rank " +
                std::to_string(odd) + " gives " + std::to_string(values_of(odd).size()) + "; give equally many";
        return;
      }
      // Each rank adds up its part, for all.
      const std::size_t begin = values.size() * static_cast<std::size_t>(rank_) / ranks;
      const std::size_t end = values.size() * (static_cast<std::size_t>(rank_) + 1) / ranks;
      for (std::size_t i = begin; i < end; ++i) {
        T sum{};
        for (std::size_t rank = 0; rank < ranks; ++rank) sum += values_of(rank)[i];
        for (std::size_t rank = 0; rank < ranks; ++rank) values_of(rank)[i] = sum;
      }
    });
    if (!wrong.empty()) throw std::invalid_argument{wrong};
  }

  /// Throws `transport_error` on every rank if a rank sends what its peer does not expect; the world stays usable.
  [[nodiscard]] channel open(const program& p, std::vector<exchange_pieces> pieces) {
    if (team_ == nullptr && shared_->how().threads_per_rank > 1) {
      team_ = std::make_shared<thread_team>(shared_->how().threads_per_rank);
    }
    return {*shared_, rank_, p, std::move(pieces), message::end{team_}};
  }

 private:
  shared_world* shared_;
  int rank_;
  std::shared_ptr<thread_team> team_;
};

/// Calls `call(body, rank)` on a new thread for each rank of the world, and returns when all have ended; as `run`
/// below. Threads that exceed the cores ask for long time slices, because each change of thread costs a core the blocks
/// that a kernel keeps in its caches.
inline void run_ranks(shared_world& shared, void (*call)(void* body, int rank), void* body) {
  std::mutex mutex;
  std::exception_ptr cause;
  std::exception_ptr echo;
  const auto keep_first = [&](std::exception_ptr& first) {
    const std::lock_guard lock{mutex};
    if (first == nullptr) first = std::current_exception();
  };
  // Zero where the number of cores is not known.
  const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  const bool crowded = cores > 0 && std::int64_t{shared.size()} * shared.how().threads_per_rank > cores;
  const auto of_rank = [&, crowded](int rank) {
    const std::string who = "rank " + std::to_string(rank) + " failed";
    if (crowded) ask_for_long_time_slices();
    try {
      call(body, rank);
    } catch (const transport_error& e) {
      keep_first(echo);
      shared.fail(who + ": " + e.what());
    } catch (const std::exception& e) {
      keep_first(cause);
      shared.fail(who + ": " + e.what());
    } catch (...) {
      keep_first(cause);
      shared.fail(who);
    }
    shared.leave(rank);
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(shared.size()));
  for (int rank = 0; rank < shared.size(); ++rank) {
    try {
      threads.emplace_back(of_rank, rank);
    } catch (const std::system_error& e) {
      keep_first(cause);
      shared.fail("rank " + std::to_string(rank) + " could not be started: " + e.what());
      break;
    }
  }
  for (std::thread& one : threads) one.join();
  if (cause != nullptr) std::rethrow_exception(cause);
  if (echo != nullptr) std::rethrow_exception(echo);
}

/// The same for `body(rank)`.
template <class Body>
void run_ranks(shared_world& shared, const Body& body) {
  run_ranks(
      shared, [](void* of, int rank) { (*static_cast<const Body*>(of))(rank); },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

/// Calls `body(world&)` on `ranks` new threads, each with its own rank, and returns when all have ended. If one of them
/// throws, the others fail at their next communication. The first exception that is no `transport_error`, and so the
/// cause of those, is thrown here; if there are only such, the first of them.
///
/// Throws `std::invalid_argument` for a number of ranks, deadline or threads that is not positive.
template <class Body>
void run(int ranks, const options& how, Body&& body) {
  shared_world shared{ranks, how};
  run_ranks(shared, [&](int rank) {
    world mine{shared, rank};
    body(mine);
  });
}

template <class Body>
void run(int ranks, Body&& body) {
  run(ranks, options{}, body);
}

}  // namespace orrery::threads
