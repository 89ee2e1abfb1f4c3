// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/threads/shared_world.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::threads {

/// Counts which of a message's two ranks have posted it. The second one copies the message: so a post never waits, and
/// no thread waits for a copy that it could do itself.
class rendezvous {
 public:
  /// Posts this rank's end. Returns true if it was the second one: then `copy()` has been called, and the message is
  /// complete for both ranks. If `copy` throws, it never completes.
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

  /// The number of calls in which it has been copied.
  [[nodiscard]] std::uint64_t copied() const noexcept { return copied_.load(std::memory_order_acquire); }

  /// Prevents further copies, and waits for one that has begun. A rank that gives up in the middle of a call leaves
  /// messages behind that its peer has yet to post; after this, no rank touches the memory of either end.
  void withdraw() {
    const std::uint64_t before = posted_.fetch_or(withdrawn, std::memory_order_acq_rel);
    if ((before & withdrawn) != 0) return;  // the peer has withdrawn: it copies no more
    while (copied() < before / 2 && !broken_.load(std::memory_order_acquire)) std::this_thread::yield();
  }

 private:
  static constexpr std::uint64_t withdrawn = std::uint64_t{1} << 63;

  std::atomic<std::uint64_t> posted_{0};  // twice in a call, and `withdrawn`
  std::atomic<std::uint64_t> copied_{0};  // once in a call
  std::atomic<bool> broken_{false};
};

/// One rank's end of a plan, for ranks that are threads of one process. See `transport_channel`.
///
/// The transport defines what a message is and how it is copied. `Message::end` is what all messages of one rank share.
/// It has `enter()`, `context()`, `pause()` (returns an object that lives while the rank waits) and `settle()` (nothing
/// of the plan is in flight after it). Members of `Message`, each called with the end of the calling rank:
///
/// - when the plan is made: `expect(end, lane, pieces)` on the receiver, then `connect(end, pieces)` on the sender;
/// - in a call: `leave(end)` before the sender's post and `arrive(end)` before the receiver's post, `copy()` on the
///   rank that posts last, and `finish(end)` on both ranks when it is awaited;
/// - `settle()` at the end of the plan, on both ranks.
template <class Message>
class basic_channel {
 public:
  using end = typename Message::end;

  // NOLINTNEXTLINE(performance-unnecessary-value-param): the pieces are moved from
  basic_channel(shared_world& world, int rank, const schedule::program& p, std::vector<exchange_pieces> pieces,
                end local)
      : world_{&world}, alive_{world.watched()}, rank_{rank}, plan_{std::make_unique<plan>(std::move(local))} {
    plan_->steps = p;
    plan_->pieces = std::move(pieces);
    const int exchanges = p.exchanges.size();
    plan_->leaving = plan_->arriving = schedule::list<message*>(exchanges);
    for (int e = 0; e < exchanges; ++e) {
      const schedule::exchange& x = p.exchanges[e];
      if (x.received.count == 0) continue;
      plan_->arriving[e] = new message;
      plan_->arriving[e]->expect(plan_->local, x.lane, plan_->pieces[static_cast<std::size_t>(e)].received);
    }

    std::string wrong;
    world_->publish(rank, plan_.get(), {detail::collective_call::open}, [&](const std::vector<void*>& plans) {
      for (int e = 0; e < exchanges && wrong.empty(); ++e) wrong = find_receiver(e, plans);
    });
    for (const std::string& of_rank : world_->all_gather(rank, wrong, detail::collective_call::open)) {
      if (!of_rank.empty()) throw transport_error{"orrery: " + of_rank + detail::world_is_usable};
    }
  }

  void begin() {
    expect_world();
    world_->check(rank_, "beginning a call");
    if (call_++ > 0 && awaited_ != plan_->steps.exchanges.size()) {
      world_->fail("rank " + std::to_string(rank_) + " begins a call, but has not finished its last one");
      world_->check(rank_, "");
    }
    awaited_ = 0;
    plan_->local.enter();
  }

  void post(int e) {
    expect_world();
    const schedule::exchange& x = plan_->steps.exchanges[e];
    if (x.sent.count > 0) {
      message& m = *plan_->leaving[e];
      m.leave(plan_->local);
      post_end(m, x.to);
    }
    if (x.received.count > 0) {
      message& m = *plan_->arriving[e];
      m.arrive(plan_->local);
      post_end(m, x.from);
    }
  }

  void await(int e) {
    expect_world();
    const schedule::exchange& x = plan_->steps.exchanges[e];
    if (x.received.count > 0) finish(*plan_->arriving[e], x.from, e, detail::direction::receiving);
    if (x.sent.count > 0) finish(*plan_->leaving[e], x.to, e, detail::direction::sending);
    ++awaited_;
  }

  void abandon(const std::string& why) noexcept {
    if (!alive_.expired()) world_->abandon(rank_, why);
  }

  [[nodiscard]] auto context() const noexcept { return plan_->local.context(); }

 private:
  /// Owned by the plans of both ranks; the last one to release it deletes it.
  struct message : Message {
    rendezvous ends;
    std::atomic<int> owners{1};
  };
  struct plan {
    end local;
    schedule::program steps;
    std::vector<exchange_pieces> pieces;
    schedule::list<message*> arriving;  // by exchange; null if nothing is received
    schedule::list<message*> leaving;

    explicit plan(end of_rank) : local{std::move(of_rank)} {}
    plan(const plan&) = delete;
    plan& operator=(const plan&) = delete;
    ~plan() {
      for (int e = 0; e < leaving.size(); ++e) {
        give_up(arriving[e]);
        give_up(leaving[e]);
      }
      local.settle();
    }

    static void give_up(message* m) {
      if (m == nullptr) return;
      m->ends.withdraw();
      if (m->ends.copied() > 0) m->settle();
      if (m->owners.fetch_sub(1, std::memory_order_acq_rel) == 1) delete m;
    }
  };

  void expect_world() const {
    if (!alive_.expired()) return;
    throw transport_error{"orrery: rank " + std::to_string(rank_) +
                          ": this operator's world has ended, so it cannot be called any more"};
  }

  /// Connects exchange e to its receiver: the k-th message to a rank in a lane is the k-th one that this rank expects
  /// from here in that lane. Returns an error message, or an empty string.
  [[nodiscard]] std::string find_receiver(int e, const std::vector<void*>& plans) {
    const schedule::exchange& x = plan_->steps.exchanges[e];
    if (x.sent.count == 0) return "";
    int before = 0;
    for (int d = 0; d < e; ++d) {
      const schedule::exchange& y = plan_->steps.exchanges[d];
      if (y.sent.count > 0 && y.to == x.to && y.lane == x.lane) ++before;
    }
    const plan& other = *static_cast<const plan*>(plans[static_cast<std::size_t>(x.to)]);
    for (int r = 0; r < other.steps.exchanges.size(); ++r) {
      const schedule::exchange& y = other.steps.exchanges[r];
      if (y.received.count == 0 || y.from != rank_ || y.lane != x.lane || before-- > 0) continue;
      const std::vector<piece>& sent = plan_->pieces[static_cast<std::size_t>(e)].sent;
      const std::vector<piece>& expected = other.pieces[static_cast<std::size_t>(r)].received;
      bool fits = sent.size() == expected.size();
      for (std::size_t i = 0; fits && i < sent.size(); ++i) fits = sent[i].bytes == expected[i].bytes;
      if (!fits) break;
      message& found = *other.arriving[r];
      found.connect(plan_->local, sent);
      found.owners.fetch_add(1, std::memory_order_relaxed);
      plan_->leaving[e] = &found;
      return "";
    }
    return "rank " + std::to_string(rank_) + " sends " +
           detail::describe_message(plan_->steps, e, detail::direction::sending) + " to rank " + std::to_string(x.to) +
           ", which does not expect it, or not in this size";
  }

  void post_end(message& m, int peer) {
    if (m.ends.post([&] { m.copy(); })) world_->wake(peer);
  }

  void finish(message& m, int peer, int e, detail::direction w) {
    if (m.ends.copied() < call_) {
      [[maybe_unused]] const auto waiting = plan_->local.pause();
      world_->wait(
          rank_, peer, [&] { return m.ends.copied() >= call_; },
          [&] { return detail::describe_wait(plan_->steps, e, w); });
    }
    m.finish(plan_->local);
  }

  shared_world* world_;
  std::weak_ptr<shared_world> alive_;
  int rank_;
  std::unique_ptr<plan> plan_;
  std::uint64_t call_ = 0;
  int awaited_ = 0;  // exchanges of this call
};

}  // namespace orrery::threads
