// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "orrery/predict/detail/rank_orbits.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// The messages of finished programs, with both their ends, and the ports of a machine that they take. Programs are
/// those of the representatives of orbits of ranks (see `rank_orbits`); a message then stands for those of all ranks of
/// its sender's orbit, and a port for all ports that these orbits take alike.
class message_routes {
 public:
  struct message {
    int from;       ///< index of the sender's program
    int to;         ///< index of the receiver's program
    int to_rank;    ///< the receiver, as the sender's program names it
    int from_rank;  ///< the sender, as the receiver's program names it
    int sender;     ///< exchange of program `from`, counted through all programs
    int receiver;   ///< likewise, of program `to`
    int lane;
    int pair;  ///< of ports
    int level;
    std::int64_t bytes;
  };
  /// Two ports that messages take.
  struct port_pair {
    int out;
    int in;
    double most;     ///< bytes per second of one message
    int out_weight;  ///< how many such messages are one port's: 1 unless ranks are folded
    int in_weight;   ///< likewise; of one port that is both, `out_weight` counts
  };
  /// The messages of an exchange; -1: none.
  struct ends {
    int sends = -1;
    int receives = -1;
  };

  /// `bytes` gives those that each exchange of each rank sends. The machine is right for the world. Throws
  /// `std::invalid_argument` if a message has no other end.
  message_routes(const list<program>& programs, const rank_orbits& orbits, const machine& m,
                 const std::vector<std::vector<std::int64_t>>& bytes)
      : programs_{programs}, orbits_{orbits}, machine_{m} {
    find_ports();
    match(bytes);
  }

  /// Bytes per second of each port.
  [[nodiscard]] const std::vector<double>& capacities() const noexcept { return capacities_; }
  [[nodiscard]] const std::vector<port_pair>& pairs() const noexcept { return pairs_; }
  [[nodiscard]] const std::vector<message>& messages() const noexcept { return messages_; }
  /// The number of a program's first exchange, counted through all programs.
  [[nodiscard]] int first_exchange(int of) const noexcept { return first_exchange_[static_cast<std::size_t>(of)]; }
  [[nodiscard]] const ends& ends_of(int exchange) const noexcept { return ends_[static_cast<std::size_t>(exchange)]; }

  /// What crosses each level of the machine.
  [[nodiscard]] std::vector<prediction::level_use> uses() const {
    std::vector<prediction::level_use> all(levels_.size());
    std::vector<double> of_port(capacities_.size());
    for (const message& m : messages_) {
      prediction::level_use& use = all[static_cast<std::size_t>(m.level)];
      use.bytes += m.bytes * orbits_.size();
      use.messages += orbits_.size();
      const port_pair& ports = pairs_[static_cast<std::size_t>(m.pair)];
      const auto bytes = static_cast<double>(m.bytes);
      of_port[static_cast<std::size_t>(ports.out)] += bytes * ports.out_weight;
      if (ports.in != ports.out) of_port[static_cast<std::size_t>(ports.in)] += bytes * ports.in_weight;
    }
    for (std::size_t l = 0; l < levels_.size(); ++l) {
      all[l].name = machine_.levels[l].name;
      const auto end =
          l + 1 < levels_.size() ? levels_[l + 1].first_out : static_cast<std::int64_t>(capacities_.size());
      for (std::int64_t p = levels_[l].first_out; p < end; ++p) {
        const double bytes = of_port[static_cast<std::size_t>(p)];
        if (bytes <= 0 || bytes / capacities_[static_cast<std::size_t>(p)] <= all[l].busiest_port) continue;
        all[l].busiest_port = bytes / capacities_[static_cast<std::size_t>(p)];
        all[l].port = name_of_port(levels_[l], p);
      }
    }
    return all;
  }

 private:
  /// The ports of a level: how many ranks share one, and where they are in the list of all.
  struct level_ports {
    std::int64_t group = 1;  ///< ranks of one of the level's groups
    std::int64_t sharers = 1;
    std::int64_t first_out = 0;
    std::int64_t first_in = 0;
    std::string owner;
    std::vector<int> port;   ///< of each group of sharers; empty: those of orbits, in their order
    std::vector<int> first;  ///< of each port, the first group that has it; likewise
    std::int64_t alike = 1;  ///< groups of sharers that one port stands for
  };
  struct half {
    std::uint64_t ends;  ///< the sender, as the receiver's program names it, and the receiver's orbit
    int lane;
    int of;  ///< index of the program
    int exchange;

    bool operator<(const half& o) const noexcept {
      return std::tie(ends, lane, exchange) < std::tie(o.ends, o.lane, o.exchange);
    }
  };
  [[nodiscard]] static std::uint64_t ends_key(int from, int to) noexcept {
    return static_cast<std::uint64_t>(from) << 32 | static_cast<std::uint32_t>(to);
  }

  [[nodiscard]] std::string name_of_port(const level_ports& of, std::int64_t port) const {
    const bool both = of.first_in == of.first_out;
    const bool out = port < of.first_in || both;
    return std::string{"the links "} +
           (both  ? "of "
            : out ? "from "
                  : "to ") +
           of.owner + " " +
           std::to_string(first_owner(of, static_cast<int>(port - (out ? of.first_out : of.first_in))));
  }

  [[nodiscard]] int first_owner(const level_ports& of, int port) const noexcept {
    return of.first.empty() ? orbits_.representative(port) : of.first[static_cast<std::size_t>(port)];
  }
  /// Which of the level's ports a rank's messages take, of those of one direction.
  [[nodiscard]] std::int64_t port_of(const level_ports& of, int rank) const noexcept {
    return of.port.empty() ? orbits_.orbit_of(rank) : of.port[static_cast<std::size_t>(rank / of.sharers)];
  }

  /// Groups of ranks whose orbits are the same take their ports alike.
  void find_shared_ports(level_ports& of) const {
    std::vector<int> port_of_orbit(static_cast<std::size_t>(orbits_.count()), -1);
    for (std::int64_t first = 0; first < orbits_.world(); first += of.sharers) {
      int& port = port_of_orbit[static_cast<std::size_t>(orbits_.orbit_of(static_cast<int>(first)))];
      if (port < 0) {
        port = static_cast<int>(of.first.size());
        of.first.push_back(static_cast<int>(first / of.sharers));
        for (std::int64_t rank = first; rank < first + of.sharers && rank < orbits_.world(); ++rank)
          port_of_orbit[static_cast<std::size_t>(orbits_.orbit_of(static_cast<int>(rank)))] = port;
      }
      of.port.push_back(port);
    }
    of.alike = static_cast<std::int64_t>(of.port.size() / of.first.size());
  }

  void find_ports() {
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
      std::int64_t count = orbits_.count();
      of.alike = orbits_.size();
      if (of.sharers > 1 && orbits_.world() > 0) {
        find_shared_ports(of);
        count = static_cast<std::int64_t>(of.first.size());
      }
      of.first_out = static_cast<std::int64_t>(capacities_.size());
      of.first_in = one.full_duplex ? of.first_out + count : of.first_out;
      capacities_.resize(capacities_.size() + static_cast<std::size_t>(one.full_duplex ? 2 * count : count),
                         one.bandwidth * one.ports);
      levels_.push_back(std::move(of));
    }
  }
  /// The innermost level in which two ranks are in one group.
  [[nodiscard]] int level_between(int a, int b) const noexcept {
    std::size_t l = 0;
    while (l + 1 < levels_.size() && a / levels_[l].group != b / levels_[l].group) ++l;
    return static_cast<int>(l);
  }

  /// Finds the receiver of each message: within a lane, each pair of ranks sends and receives in one order.
  void match(const std::vector<std::vector<std::int64_t>>& bytes) {
    std::vector<half> sent, received;
    const int world = orbits_.world();
    int exchanges = 0;
    for (int of = 0; of < programs_.size(); ++of) {
      const program& p = programs_[of];
      const int rank = orbits_.representative(of);
      first_exchange_.push_back(exchanges);
      for (int e = 0; e < p.exchanges.size(); ++e) {
        const exchange& x = p.exchanges[e];
        if (p.rank != rank || x.complete_before <= x.posted || x.complete_before > p.steps.size()) refuse_program(rank);
        if (x.sent.count > 0) {
          if (x.to < 0 || x.to >= world || x.to == rank) refuse_unmatched(rank);
          sent.push_back({ends_key(orbits_.moved_with(x.to, rank), orbits_.orbit_of(x.to)), x.lane, of, e});
        }
        if (x.received.count > 0) {
          if (x.from < 0 || x.from >= world) refuse_unmatched(rank);
          received.push_back({ends_key(x.from, of), x.lane, of, e});
        }
      }
      exchanges += p.exchanges.size();
    }
    ends_.resize(static_cast<std::size_t>(exchanges));
    std::sort(sent.begin(), sent.end());
    std::sort(received.begin(), received.end());
    messages_.reserve(sent.size());
    for (std::size_t i = 0; i < sent.size() || i < received.size(); ++i) {
      if (i >= sent.size() || i >= received.size() || sent[i].ends != received[i].ends ||
          sent[i].lane != received[i].lane) {
        const bool has_more_sends = i < sent.size() && (i >= received.size() || sent[i] < received[i]);
        refuse_unmatched(orbits_.representative(has_more_sends ? sent[i].of : received[i].of));
      }
      const half& s = sent[i];
      const half& r = received[i];
      const int rank = orbits_.representative(s.of);
      const int to = programs_[s.of].exchanges[s.exchange].to;
      const int level = level_between(rank, to);
      const int sender = first_exchange(s.of) + s.exchange;
      const int receiver = first_exchange(r.of) + r.exchange;
      ends_[static_cast<std::size_t>(sender)].sends = static_cast<int>(messages_.size());
      ends_[static_cast<std::size_t>(receiver)].receives = static_cast<int>(messages_.size());
      messages_.push_back({s.of, r.of, to, static_cast<int>(s.ends >> 32), sender, receiver, s.lane,
                           pair_of(rank, to, level), level,
                           bytes[static_cast<std::size_t>(s.of)][static_cast<std::size_t>(s.exchange)]});
    }
  }
  /// The ports of a message.
  [[nodiscard]] int pair_of(int from, int to, int level) {
    const level_ports& of = levels_[static_cast<std::size_t>(level)];
    const std::int64_t out = of.first_out + port_of(of, from), in = of.first_in + port_of(of, to);
    int weight = static_cast<int>(orbits_.size() / of.alike);
    const int in_weight = weight;
    // Two ports that are alike, each of which has such messages in both directions; or one bus.
    const bool is_bus = out == in && from / of.sharers == to / of.sharers;
    if (out == in && !is_bus) weight *= 2;
    if (!messages_.empty()) {  // as most are where each rank has its own ports: of a pair that was not there before
      const message& last = messages_.back();
      const port_pair& known = pairs_[static_cast<std::size_t>(last.pair)];
      if (last.level == level && known.out == out && known.in == in && known.out_weight == weight) return last.pair;
    }
    const std::uint64_t key = static_cast<std::uint64_t>(out) << 33 | static_cast<std::uint64_t>(in) << 1 |
                              static_cast<std::uint64_t>(is_bus);
    const auto [known, is_new] = known_pairs_.try_emplace(key, static_cast<int>(pairs_.size()));
    if (is_new) {
      pairs_.push_back({static_cast<int>(out), static_cast<int>(in),
                        machine_.levels[static_cast<std::size_t>(level)].bandwidth, weight, in_weight});
    }
    return known->second;
  }

  [[noreturn]] static void refuse_program(int rank) {
    throw std::invalid_argument{"orrery: simulate: the program of rank " + std::to_string(rank) +
                                " is of another rank, or has an exchange that completes before it is posted or after "
                                "the program's end; verify(...) says what is wrong"};
  }
  [[noreturn]] static void refuse_unmatched(int rank) {
    throw std::invalid_argument{"orrery: simulate: a message of rank " + std::to_string(rank) +
                                " has no other end; verify(...) says what is wrong"};
  }

  const list<program>& programs_;
  const rank_orbits& orbits_;
  const machine& machine_;
  std::vector<level_ports> levels_;
  std::vector<double> capacities_;
  std::vector<port_pair> pairs_;
  std::unordered_map<std::uint64_t, int> known_pairs_;
  std::vector<message> messages_;
  std::vector<ends> ends_;
  std::vector<int> first_exchange_;
};

}  // namespace orrery::detail
