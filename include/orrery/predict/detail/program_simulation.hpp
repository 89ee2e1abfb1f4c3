// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <queue>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "orrery/predict/detail/message_routes.hpp"
#include "orrery/predict/detail/shared_ports.hpp"
#include "orrery/predict/detail/timed_schedule.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// Simulates a schedule on a machine. Each rank does its steps in their order: it awaits what must have completed,
/// merges, posts, and computes. A message is under way when both its ends have posted it. Ranks are those of the
/// schedule's orbits: one stands for all of its orbit, until the end.
class program_simulation {
 public:
  /// The machine is right for the world.
  program_simulation(const timed_schedule& schedule, const machine& m, bool with_timeline)
      : schedule_{schedule},
        machine_{m},
        routes_{schedule.programs, schedule.orbits, m, schedule.bytes},
        with_timeline_{with_timeline},
        ports_{routes_.capacities()},
        ranks_(static_cast<std::size_t>(schedule.programs.size())) {
    for (const message_routes::port_pair& one : routes_.pairs())
      ports_.add_class(one.out, one.in, one.most, one.out_weight, one.in_weight);
    messages_.resize(routes_.messages().size());
    for (int rank = 0; rank < schedule.programs.size(); ++rank) {
      const program& p = schedule.programs[rank];
      open_ends_.resize(open_ends_.size() + static_cast<std::size_t>(p.exchanges.size()));
      state(rank).open.resize(static_cast<std::size_t>(p.steps.size()) + 1);
      for (int e = 0; e < p.exchanges.size(); ++e) {
        const message_routes::ends& ends = routes_.ends_of(routes_.first_exchange(rank) + e);
        if (ends.sends >= 0 || ends.receives >= 0)
          ++state(rank).open[static_cast<std::size_t>(p.exchanges[e].complete_before)];
      }
    }
  }

  /// Throws `std::invalid_argument` if the programs do not end.
  [[nodiscard]] prediction run() {
    const int ranks = schedule_.programs.size();
    result_.world = schedule_.orbits.world();
    result_.pass = ranks == 0 ? pass::forward : schedule_.programs[0].pass;
    result_.machine = machine_.name;
    result_.schedule = schedule_.note;
    result_.ranks.resize(ranks_.size());
    for (int rank = 0; rank < ranks; ++rank) begin_rank(rank);
    share(0);
    while (!events_.empty()) {
      const double now = events_.top().at;
      const double until = now + 1e-12 * now;  // what differs by rounding alone comes together
      while (!events_.empty() && events_.top().at <= until) {
        const event e = events_.top();
        events_.pop();
        handle(now, until, e);
      }
      share(now);
    }
    for (int rank = 0; rank < ranks; ++rank) {
      if (state(rank).phase != rank_phase::done) refuse_deadlock(rank);
    }
    finish();
    return std::move(result_);
  }

 private:
  enum class rank_phase : std::uint8_t { waiting, merging, computing, done };
  struct rank_state {
    rank_phase phase = rank_phase::waiting;
    int step = 0;
    double idle_since = 0;
    std::vector<int> open;  // exchanges that must complete before each step, and after the last
    int last_peer = -1;     // the other end of the message that came last
  };
  struct message_state {
    int posted = 0;  // by how many of its ends
    double posted_at = 0;
    double begun_at = 0;
  };
  struct event {
    double at;
    std::int64_t order;  // of events at one time, the earlier first
    enum class kind : std::uint8_t { rank, arrival, arrivals, completion } what;
    int which;  // a rank, message, entry of batches_, or component of ports
    std::uint32_t version = 0;

    bool operator<(const event& other) const noexcept {
      return at > other.at || (at == other.at && order > other.order);
    }
  };
  using span_kind = prediction::span::kind;

  [[nodiscard]] rank_state& state(int rank) noexcept { return ranks_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] const program& program_of(int rank) const noexcept { return schedule_.programs[rank]; }
  [[nodiscard]] const step_times& times(int rank) const noexcept {
    return schedule_.times[static_cast<std::size_t>(rank)];
  }
  [[nodiscard]] const message_routes::message& route(int m) const noexcept {
    return routes_.messages()[static_cast<std::size_t>(m)];
  }
  [[nodiscard]] double latency(int m) const noexcept {
    return machine_.levels[static_cast<std::size_t>(route(m).level)].latency;
  }

  void push(double at, event::kind what, int which, std::uint32_t version = 0) {
    events_.push({at, order_++, what, which, version});
  }
  void share(double now) {
    ports_.share(
        now, [&](const shared_ports::completion& c) { push(c.at, event::kind::completion, c.component, c.version); });
  }
  void begin_rank(int rank) {
    const double begin = times(rank).begin;
    if (begin <= 0) {
      go(0, rank);
      return;
    }
    use(rank, span_kind::host, 0, begin);
    state(rank).phase = rank_phase::computing;  // as of a step before the first one
    state(rank).step = -1;
    push(begin, event::kind::rank, rank);
  }
  void handle(double now, double until, const event& e) {
    if (e.what == event::kind::arrival) {
      arrive(now, e.which);
    } else if (e.what == event::kind::arrivals) {
      std::vector<int> batch;
      batch.swap(batches_[static_cast<std::size_t>(e.which)]);
      free_batches_.push_back(e.which);
      for (const int m : batch) arrive(now, m);
      batch.clear();
      batch.swap(batches_[static_cast<std::size_t>(e.which)]);  // keeps its memory
    } else if (e.what == event::kind::completion) {
      if (!ports_.is_valid({e.at, e.which, e.version})) return;
      ports_.complete(now, until, e.which, [&](int m) { ended_.push_back(m); });
      send_off(now);
    } else {
      rank_state& s = state(e.which);
      if (s.phase == rank_phase::merging) {
        post_and_compute(now, e.which);
      } else {
        ++s.step;
        s.phase = rank_phase::waiting;
        s.idle_since = now;
      }
      go(now, e.which);
    }
  }

  /// The messages in `ended_` arrive after the latency of their level: one event for each level.
  void send_off(double now) {
    if (ended_.size() == 1) {
      push(now + latency(ended_[0]), event::kind::arrival, ended_[0]);
      ended_.clear();
    }
    for (std::size_t l = 0; l < machine_.levels.size() && !ended_.empty(); ++l) {
      int batch = -1;
      for (const int m : ended_) {
        if (route(m).level != static_cast<int>(l)) continue;
        if (batch < 0) batch = new_batch();
        batches_[static_cast<std::size_t>(batch)].push_back(m);
      }
      if (batch >= 0) push(now + machine_.levels[l].latency, event::kind::arrivals, batch);
    }
    ended_.clear();
  }
  [[nodiscard]] int new_batch() {
    if (free_batches_.empty()) {
      free_batches_.push_back(static_cast<int>(batches_.size()));
      batches_.emplace_back();
    }
    const int batch = free_batches_.back();
    free_batches_.pop_back();
    return batch;
  }

  void arrive(double now, int which) {
    const message_routes::message& m = route(which);
    if (with_timeline_) {
      const message_state& s = messages_[static_cast<std::size_t>(which)];
      const int posted = program_of(m.from).exchanges[m.sender - routes_.first_exchange(m.from)].posted;
      result_.timeline.push_back(
          {span_kind::message, m.from, posted, s.begun_at, now, m.to_rank, m.lane, m.bytes, s.posted_at});
    }
    close(now, m.from, m.sender, m.to_rank);
    close(now, m.to, m.receiver, m.from_rank);
  }
  /// One end of an exchange is done.
  void close(double now, int rank, int exchange, int peer) {
    if (--open_ends_[static_cast<std::size_t>(exchange)] > 0) return;
    rank_state& s = state(rank);
    const int before = program_of(rank).exchanges[exchange - routes_.first_exchange(rank)].complete_before;
    --s.open[static_cast<std::size_t>(before)];
    if (s.phase == rank_phase::waiting && s.step == before) s.last_peer = peer;
    go(now, rank);
  }

  /// Begins the rank's step if it waits for it and can.
  void go(double now, int rank) {
    rank_state& s = state(rank);
    while (s.phase == rank_phase::waiting && s.open[static_cast<std::size_t>(s.step)] == 0) {
      end_wait(now, rank);
      const double merging = times(rank).arrivals[static_cast<std::size_t>(s.step)];
      if (merging > 0) {
        use(rank, span_kind::merge, now, merging);
        s.phase = rank_phase::merging;
        push(now + merging, event::kind::rank, rank);
        return;
      }
      post_and_compute(now, rank);
    }
  }
  void end_wait(double now, int rank) {
    rank_state& s = state(rank);
    const double waited = now - s.idle_since;
    if (waited <= 0) return;
    prediction::rank_times& r = result_.ranks[static_cast<std::size_t>(rank)];
    r.waits += waited;
    if (waited > r.longest_wait) {
      r.longest_wait = waited;
      r.waits_for = s.last_peer;
      r.waits_in_step = s.step;
    }
    if (with_timeline_) {
      result_.timeline.push_back({span_kind::wait, rank, s.step, s.idle_since, now, s.last_peer});
    }
  }
  /// After what had to complete was merged: posts the step's exchanges, and computes its tile.
  void post_and_compute(double now, int rank) {
    rank_state& s = state(rank);
    const program& p = program_of(rank);
    if (s.step == p.steps.size()) {
      s.phase = rank_phase::done;
      result_.ranks[static_cast<std::size_t>(rank)].end = now;
      return;
    }
    for (const int e : p.steps[s.step].exchanges) {
      const int exchange = routes_.first_exchange(rank) + e;
      const message_routes::ends& ends = routes_.ends_of(exchange);
      open_ends_[static_cast<std::size_t>(exchange)] = (ends.sends >= 0 ? 1 : 0) + (ends.receives >= 0 ? 1 : 0);
      if (ends.sends >= 0) post(now, ends.sends, true);
      if (ends.receives >= 0) post(now, ends.receives, false);
    }
    const auto at = static_cast<std::size_t>(s.step);
    const double host = times(rank).host[at], tile = times(rank).tiles[at], merge = times(rank).merges[at];
    use(rank, span_kind::host, now, host);
    use(rank, span_kind::tile, now + host, tile);
    use(rank, span_kind::merge, now + host + tile, merge);
    const double all = host + tile + merge;
    if (all > 0) {
      s.phase = rank_phase::computing;
      push(now + all, event::kind::rank, rank);
    } else {
      ++s.step;
      s.phase = rank_phase::waiting;
      s.idle_since = now;
    }
  }
  void post(double now, int which, bool by_sender) {
    message_state& s = messages_[static_cast<std::size_t>(which)];
    if (by_sender) s.posted_at = now;
    if (++s.posted < 2) return;
    s.begun_at = now;
    if (route(which).bytes > 0) {
      ports_.begin(now, route(which).pair, static_cast<double>(route(which).bytes), which);
    } else {
      push(now + latency(which), event::kind::arrival, which);
    }
  }
  /// The rank does something for some seconds.
  void use(int rank, span_kind what, double begin, double seconds) {
    if (seconds <= 0) return;
    prediction::rank_times& r = result_.ranks[static_cast<std::size_t>(rank)];
    (what == span_kind::tile ? r.tiles : what == span_kind::merge ? r.merges : r.host) += seconds;
    if (with_timeline_) {
      result_.timeline.push_back({what, rank, (std::max)(state(rank).step, 0), begin, begin + seconds});
    }
  }

  void finish() {
    for (std::size_t rank = 0; rank < result_.ranks.size(); ++rank) {
      prediction::rank_times& r = result_.ranks[rank];
      result_.seconds = (std::max)(result_.seconds, r.end);
      result_.bound_compute = (std::max)(result_.bound_compute, r.tiles + r.merges + r.host);
      if (rank < schedule_.memory.size()) r.peak_bytes = schedule_.memory[rank];
    }
    result_.levels = routes_.uses();
    if (schedule_.orbits.is_folded()) unfold();
    std::stable_sort(result_.timeline.begin(), result_.timeline.end(),
                     [](const prediction::span& a, const prediction::span& b) {
                       return std::tie(a.rank, a.begin) < std::tie(b.rank, b.begin);
                     });
  }
  /// Writes the times of all ranks.
  void unfold() {
    const rank_orbits& orbits = schedule_.orbits;
    std::vector<prediction::rank_times> all(static_cast<std::size_t>(orbits.world()));
    for (int rank = 0; rank < orbits.world(); ++rank) {
      prediction::rank_times& r = all[static_cast<std::size_t>(rank)];
      r = result_.ranks[static_cast<std::size_t>(orbits.orbit_of(rank))];
      if (r.waits_for >= 0) r.waits_for = orbits.moved_back(rank, r.waits_for);
    }
    result_.ranks = std::move(all);
  }
  [[noreturn]] void refuse_deadlock(int rank) {
    throw std::invalid_argument{"orrery: simulate: the schedule does not end: rank " +
                                std::to_string(schedule_.orbits.representative(rank)) + " waits for ever before step " +
                                std::to_string(state(rank).step) + "; verify(...) says what is wrong"};
  }

  const timed_schedule& schedule_;
  const machine& machine_;
  message_routes routes_;
  bool with_timeline_;
  shared_ports ports_;
  std::vector<rank_state> ranks_;
  std::vector<int> open_ends_;  // of each exchange
  std::vector<message_state> messages_;
  std::priority_queue<event> events_;
  std::vector<int> ended_;                 // messages of which the last byte was just sent
  std::vector<std::vector<int>> batches_;  // messages that arrive together
  std::vector<int> free_batches_;
  std::int64_t order_ = 0;
  prediction result_;
};

}  // namespace orrery::detail
