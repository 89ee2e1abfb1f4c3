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
#include <unordered_map>
#include <utility>
#include <vector>

#include "orrery/predict/detail/shared_ports.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// What a rank's steps take, in the order in which it does them; all in seconds.
struct step_times {
  double begin = 0;              ///< of the host, before the first step
  std::vector<double> arrivals;  ///< merging what has arrived before each step, and after the last
  std::vector<double> tiles;     ///< of each step
  std::vector<double> merges;    ///< of each step's tile with what was begun before
  std::vector<double> host;      ///< of each step
};

/// Simulates finished programs on a machine. Each rank does its steps in their order: it awaits what must have
/// completed, merges, posts, and computes. A message is under way when both its ends have posted it.
class program_simulation {
 public:
  /// `bytes` gives those that each exchange of each rank sends. The programs are of all ranks; the machine is right for
  /// the world.
  program_simulation(const list<program>& programs, const machine& m, std::vector<step_times> times,
                     const std::vector<std::vector<std::int64_t>>& bytes, bool with_timeline)
      : programs_{programs},
        machine_{m},
        times_{std::move(times)},
        with_timeline_{with_timeline},
        ranks_(static_cast<std::size_t>(programs.size())),
        ports_{make_ports()} {
    match(bytes);
  }

  /// Throws `std::invalid_argument` if the programs do not end.
  [[nodiscard]] prediction run() {
    result_.world = programs_.size();
    result_.pass = programs_.empty() ? pass::forward : programs_[0].pass;
    result_.machine = machine_.name;
    result_.ranks.resize(ranks_.size());
    for (int rank = 0; rank < programs_.size(); ++rank) begin_rank(rank);
    share(0);
    while (!events_.empty()) {
      const double now = events_.top().at;
      const double until = now + 1e-12 * now;  // what differs by rounding alone comes together
      while (!events_.empty() && events_.top().at <= until) {
        const event e = events_.top();
        events_.pop();
        handle(now, e);
      }
      share(now);
    }
    for (int rank = 0; rank < programs_.size(); ++rank) {
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
    int first_exchange = 0;  // of the lists of all exchanges
    std::vector<int> open;   // exchanges that must complete before each step, and after the last
    int last_peer = -1;      // the other end of the message that came last
  };
  struct exchange_state {
    int sends = -1;     // the message
    int receives = -1;  // likewise
    int open_ends = 0;
  };
  struct message {
    int from;
    int to;
    int sender;    // exchange, in the list of all
    int receiver;  // likewise
    int lane;
    int of_class;
    int level;
    double bytes;
    int posted = 0;
    double posted_at = 0;
    double begun_at = 0;
  };
  struct event {
    double at;
    std::int64_t order;  // of events at one time, the earlier first
    enum class kind : std::uint8_t { rank, arrival, completion } what;
    int which;
    std::uint32_t version = 0;

    bool operator<(const event& other) const noexcept {
      return at > other.at || (at == other.at && order > other.order);
    }
  };

  [[nodiscard]] rank_state& state(int rank) noexcept { return ranks_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] const step_times& times(int rank) const noexcept { return times_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] exchange_state& exchange_of(int e) noexcept { return exchanges_[static_cast<std::size_t>(e)]; }
  [[nodiscard]] message& message_of(int m) noexcept { return messages_[static_cast<std::size_t>(m)]; }
  [[nodiscard]] const machine::level& level_of(int l) const noexcept {
    return machine_.levels[static_cast<std::size_t>(l)];
  }

  // 1. Ports and messages.

  /// The ports of a level: how many ranks share one, and where its ports are in the list of all.
  struct level_ports {
    std::int64_t group = 1;  // ranks of this level's group
    std::int64_t sharers = 1;
    std::int64_t first_out = 0;
    std::int64_t first_in = 0;
    std::string owner;
  };

  [[nodiscard]] std::vector<double> make_ports() {
    std::vector<double> capacities;
    const std::int64_t world = programs_.size();
    for (std::size_t l = 0; l < machine_.levels.size(); ++l) {
      const machine::level& one = machine_.levels[l];
      level_ports of;
      of.group = machine_.ranks_of_level(static_cast<int>(l));
      of.owner = "rank";
      for (std::size_t i = 0; i <= l; ++i) {
        if (machine_.levels[i].name != one.shared_by) continue;
        of.sharers = machine_.ranks_of_level(static_cast<int>(i));
        of.owner = one.shared_by;
      }
      const std::int64_t count = (world + of.sharers - 1) / of.sharers;
      of.first_out = static_cast<std::int64_t>(capacities.size());
      of.first_in = one.full_duplex ? of.first_out + count : of.first_out;
      capacities.resize(capacities.size() + static_cast<std::size_t>(one.full_duplex ? 2 * count : count),
                        one.bandwidth * one.ports);
      level_ports_.push_back(of);
    }
    port_bytes_.resize(capacities.size());
    capacities_ = capacities;
    return capacities;
  }
  /// The innermost level in which two ranks are in one group.
  [[nodiscard]] int level_between(int a, int b) const noexcept {
    std::size_t l = 0;
    while (l + 1 < level_ports_.size() && a / level_ports_[l].group != b / level_ports_[l].group) ++l;
    return static_cast<int>(l);
  }

  /// Finds the receiver of each message: within a lane, each pair of ranks sends and receives in one order.
  void match(const std::vector<std::vector<std::int64_t>>& bytes) {
    struct half {
      int from, to, lane, rank, exchange;
      bool operator<(const half& o) const noexcept {
        return std::tie(from, to, lane, exchange) < std::tie(o.from, o.to, o.lane, o.exchange);
      }
    };
    std::vector<half> sent, received;
    int first = 0;
    for (const program& p : programs_) {
      rank_state& s = state(p.rank);
      s.first_exchange = first;
      s.open.assign(static_cast<std::size_t>(p.steps.size()) + 1, 0);
      for (int e = 0; e < p.exchanges.size(); ++e) {
        const exchange& x = p.exchanges[e];
        if (x.complete_before <= x.posted || x.complete_before > p.steps.size()) refuse_program(p.rank);
        if (x.sent.count > 0) sent.push_back({p.rank, x.to, x.lane, p.rank, e});
        if (x.received.count > 0) received.push_back({x.from, p.rank, x.lane, p.rank, e});
      }
      first += p.exchanges.size();
    }
    exchanges_.resize(static_cast<std::size_t>(first));
    std::sort(sent.begin(), sent.end());
    std::sort(received.begin(), received.end());
    if (sent.size() != received.size()) refuse_unmatched(sent.empty() ? received[0].rank : sent[0].rank);
    std::unordered_map<std::uint64_t, int> classes;
    for (std::size_t i = 0; i < sent.size(); ++i) {
      const half& s = sent[i];
      const half& r = received[i];
      if (s.from != r.from || s.to != r.to || s.lane != r.lane) refuse_unmatched(s.rank);
      if (s.to < 0 || s.to >= programs_.size() || s.to == s.from) refuse_unmatched(s.rank);
      const int level = level_between(s.from, s.to);
      const level_ports& of = level_ports_[static_cast<std::size_t>(level)];
      const auto out = static_cast<int>(of.first_out + s.from / of.sharers);
      const auto in = static_cast<int>(of.first_in + s.to / of.sharers);
      const std::uint64_t key = static_cast<std::uint64_t>(out) << 32 | static_cast<std::uint32_t>(in);
      const auto [known, is_new] = classes.try_emplace(key, 0);
      if (is_new) known->second = ports_.add_class(out, in, level_of(level).bandwidth);
      const int sender = state(s.from).first_exchange + s.exchange;
      const int receiver = state(s.to).first_exchange + r.exchange;
      exchange_of(sender).sends = exchange_of(receiver).receives = static_cast<int>(messages_.size());
      const std::int64_t size = bytes[static_cast<std::size_t>(s.from)][static_cast<std::size_t>(s.exchange)];
      messages_.push_back(
          {s.from, s.to, sender, receiver, s.lane, known->second, level, static_cast<double>(size), 0, 0, 0});
      level_bytes_.resize(machine_.levels.size());
      level_messages_.resize(machine_.levels.size());
      level_bytes_[static_cast<std::size_t>(level)] += size;
      ++level_messages_[static_cast<std::size_t>(level)];
      port_bytes_[static_cast<std::size_t>(out)] += static_cast<double>(size);
      port_bytes_[static_cast<std::size_t>(in)] += static_cast<double>(size);
    }
    for (const program& p : programs_) {
      rank_state& s = state(p.rank);
      for (int e = 0; e < p.exchanges.size(); ++e) {
        const exchange_state& x = exchange_of(s.first_exchange + e);
        if (x.sends >= 0 || x.receives >= 0) ++s.open[static_cast<std::size_t>(p.exchanges[e].complete_before)];
      }
    }
  }

  // 2. What happens.

  void push(double at, event::kind what, int which, std::uint32_t version = 0) {
    events_.push({at, order_++, what, which, version});
  }
  void share(double now) {
    ports_.share(
        now, [&](const shared_ports::completion& c) { push(c.at, event::kind::completion, c.of_class, c.version); });
  }
  void begin_rank(int rank) {
    const double begin = times(rank).begin;
    if (begin > 0) {
      use(rank, prediction::span::kind::host, 0, begin);
      state(rank).phase = rank_phase::computing;  // as of a step before the first one
      state(rank).step = -1;
      push(begin, event::kind::rank, rank);
    } else {
      go(0, rank);
    }
  }
  void handle(double now, const event& e) {
    switch (e.what) {
      case event::kind::rank: {
        rank_state& s = state(e.which);
        if (s.phase == rank_phase::merging) {
          post_and_compute(now, e.which);
          go(now, e.which);
        } else {
          ++s.step;
          s.phase = rank_phase::waiting;
          s.idle_since = now;
          go(now, e.which);
        }
        break;
      }
      case event::kind::completion: {
        const shared_ports::completion c{e.at, e.which, e.version};
        if (!ports_.is_valid(c)) break;
        ports_.complete(now, e.which, [&](int m) { push(now + latency(m), event::kind::arrival, m); });
        break;
      }
      case event::kind::arrival:
        arrive(now, e.which);
        break;
    }
  }
  [[nodiscard]] double latency(int m) { return level_of(message_of(m).level).latency; }

  void arrive(double now, int which) {
    const message& m = message_of(which);
    if (with_timeline_) {
      result_.timeline.push_back({prediction::span::kind::message, m.from, posted_step(m), m.begun_at, now, m.to,
                                  m.lane, static_cast<std::int64_t>(m.bytes), m.posted_at});
    }
    close(now, m.from, m.sender, m.to);
    close(now, m.to, m.receiver, m.from);
  }
  [[nodiscard]] int posted_step(const message& m) {
    return programs_[m.from].exchanges[m.sender - state(m.from).first_exchange].posted;
  }
  /// One end of an exchange is done.
  void close(double now, int rank, int exchange, int peer) {
    exchange_state& x = exchange_of(exchange);
    if (--x.open_ends > 0) return;
    rank_state& s = state(rank);
    const int before = programs_[rank].exchanges[exchange - s.first_exchange].complete_before;
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
        use(rank, prediction::span::kind::merge, now, merging);
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
      result_.timeline.push_back({prediction::span::kind::wait, rank, s.step, s.idle_since, now, s.last_peer});
    }
  }
  /// After what had to complete was merged: posts the step's exchanges, and computes its tile.
  void post_and_compute(double now, int rank) {
    rank_state& s = state(rank);
    const program& p = programs_[rank];
    if (s.step == p.steps.size()) {
      s.phase = rank_phase::done;
      result_.ranks[static_cast<std::size_t>(rank)].end = now;
      return;
    }
    for (const int e : p.steps[s.step].exchanges) {
      exchange_state& x = exchange_of(s.first_exchange + e);
      x.open_ends = (x.sends >= 0 ? 1 : 0) + (x.receives >= 0 ? 1 : 0);
    }
    for (const int e : p.steps[s.step].exchanges) {
      const exchange_state x = exchange_of(s.first_exchange + e);
      if (x.sends >= 0) post(now, x.sends, true);
      if (x.receives >= 0) post(now, x.receives, false);
    }
    const auto at = static_cast<std::size_t>(s.step);
    const double host = times(rank).host[at], tile = times(rank).tiles[at], merge = times(rank).merges[at];
    use(rank, prediction::span::kind::host, now, host);
    use(rank, prediction::span::kind::tile, now + host, tile);
    use(rank, prediction::span::kind::merge, now + host + tile, merge);
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
    message& m = message_of(which);
    if (by_sender) m.posted_at = now;
    if (++m.posted < 2) return;
    m.begun_at = now;
    if (m.bytes > 0) {
      ports_.begin(now, m.of_class, m.bytes, which);
    } else {
      push(now + latency(which), event::kind::arrival, which);
    }
  }
  /// The rank does something for some seconds.
  void use(int rank, prediction::span::kind what, double begin, double seconds) {
    if (seconds <= 0) return;
    prediction::rank_times& r = result_.ranks[static_cast<std::size_t>(rank)];
    using kind = prediction::span::kind;
    (what == kind::tile ? r.tiles : what == kind::merge ? r.merges : r.host) += seconds;
    if (with_timeline_) {
      result_.timeline.push_back({what, rank, (std::max)(state(rank).step, 0), begin, begin + seconds});
    }
  }

  // 3. The result.

  void finish() {
    for (const prediction::rank_times& r : result_.ranks) {
      result_.seconds = (std::max)(result_.seconds, r.end);
      result_.bound_compute = (std::max)(result_.bound_compute, r.tiles + r.merges + r.host);
    }
    level_bytes_.resize(machine_.levels.size());
    level_messages_.resize(machine_.levels.size());
    for (std::size_t l = 0; l < machine_.levels.size(); ++l) {
      prediction::level_use use;
      use.name = machine_.levels[l].name;
      use.bytes = level_bytes_[l];
      use.messages = level_messages_[l];
      const level_ports& of = level_ports_[l];
      const auto end = static_cast<std::size_t>(
          l + 1 < level_ports_.size() ? level_ports_[l + 1].first_out : static_cast<std::int64_t>(capacities_.size()));
      for (auto p = static_cast<std::size_t>(of.first_out); p < end; ++p) {
        if (port_bytes_[p] <= 0) continue;
        const double seconds = port_bytes_[p] / capacities_[p];
        if (seconds <= use.busiest_port) continue;
        use.busiest_port = seconds;
        const bool both = of.first_in == of.first_out;
        const bool out = static_cast<std::int64_t>(p) < of.first_in || both;
        use.port = std::string{"the links "} +
                   (both  ? "of "
                    : out ? "from "
                          : "to ") +
                   of.owner + " " + std::to_string(static_cast<std::int64_t>(p) - (out ? of.first_out : of.first_in));
      }
      result_.levels.push_back(std::move(use));
    }
    std::stable_sort(result_.timeline.begin(), result_.timeline.end(),
                     [](const prediction::span& a, const prediction::span& b) {
                       return std::tie(a.rank, a.begin) < std::tie(b.rank, b.begin);
                     });
  }

  [[noreturn]] static void refuse_program(int rank) {
    throw std::invalid_argument{"orrery: simulate: the program of rank " + std::to_string(rank) +
                                " has an exchange that completes before it is posted, or after its end; verify(...) "
                                "says what is wrong"};
  }
  [[noreturn]] static void refuse_unmatched(int rank) {
    throw std::invalid_argument{"orrery: simulate: a message of rank " + std::to_string(rank) +
                                " has no other end; verify(...) says what is wrong"};
  }
  [[noreturn]] void refuse_deadlock(int rank) {
    throw std::invalid_argument{"orrery: simulate: the schedule does not end: rank " + std::to_string(rank) +
                                " waits for ever before step " + std::to_string(state(rank).step) +
                                "; verify(...) says what is wrong"};
  }

  const list<program>& programs_;
  const machine& machine_;
  std::vector<step_times> times_;
  bool with_timeline_;
  std::vector<rank_state> ranks_;
  std::vector<level_ports> level_ports_;
  std::vector<double> capacities_, port_bytes_;
  std::vector<std::int64_t> level_bytes_, level_messages_;
  shared_ports ports_;
  std::vector<exchange_state> exchanges_;
  std::vector<message> messages_;
  std::priority_queue<event> events_;
  std::int64_t order_ = 0;
  prediction result_;
};

}  // namespace orrery::detail
