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

#include "orrery/predict/machine.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// The messages of finished programs, with both their ends, and the ports of a machine that they take.
class message_routes {
 public:
  struct message {
    int from;
    int to;
    int sender;    ///< exchange of rank `from`, counted through all ranks
    int receiver;  ///< likewise, of rank `to`
    int lane;
    int pair;  ///< of ports
    int level;
    std::int64_t bytes;
  };
  /// Two ports that messages take.
  struct port_pair {
    int out;
    int in;
    double most;  ///< bytes per second of one message
  };
  /// The messages of an exchange; -1: none.
  struct ends {
    int sends = -1;
    int receives = -1;
  };

  /// `bytes` gives those that each exchange of each rank sends. The machine is right for the world. Throws
  /// `std::invalid_argument` if a message has no other end.
  message_routes(const list<program>& programs, const machine& m, const std::vector<std::vector<std::int64_t>>& bytes)
      : programs_{programs}, machine_{m} {
    find_ports();
    match(bytes);
  }

  /// Bytes per second of each port.
  [[nodiscard]] const std::vector<double>& capacities() const noexcept { return capacities_; }
  [[nodiscard]] const std::vector<port_pair>& pairs() const noexcept { return pairs_; }
  [[nodiscard]] const std::vector<message>& messages() const noexcept { return messages_; }
  /// The number of a rank's first exchange, counted through all ranks.
  [[nodiscard]] int first_exchange(int rank) const noexcept { return first_exchange_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] const ends& ends_of(int exchange) const noexcept { return ends_[static_cast<std::size_t>(exchange)]; }

  /// What crosses each level of the machine.
  [[nodiscard]] std::vector<prediction::level_use> uses() const {
    std::vector<prediction::level_use> all(levels_.size());
    std::vector<double> of_port(capacities_.size());
    for (const message& m : messages_) {
      prediction::level_use& use = all[static_cast<std::size_t>(m.level)];
      use.bytes += m.bytes;
      ++use.messages;
      const port_pair& ports = pairs_[static_cast<std::size_t>(m.pair)];
      of_port[static_cast<std::size_t>(ports.out)] += static_cast<double>(m.bytes);
      of_port[static_cast<std::size_t>(ports.in)] += static_cast<double>(m.bytes);
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
  };
  struct half {
    int from;
    int to;
    int lane;
    int rank;
    int exchange;

    bool operator<(const half& o) const noexcept {
      return std::tie(from, to, lane, exchange) < std::tie(o.from, o.to, o.lane, o.exchange);
    }
  };

  [[nodiscard]] static std::string name_of_port(const level_ports& of, std::int64_t port) {
    const bool both = of.first_in == of.first_out;
    const bool out = port < of.first_in || both;
    return std::string{"the links "} +
           (both  ? "of "
            : out ? "from "
                  : "to ") +
           of.owner + " " + std::to_string(port - (out ? of.first_out : of.first_in));
  }

  void find_ports() {
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
      of.first_out = static_cast<std::int64_t>(capacities_.size());
      of.first_in = one.full_duplex ? of.first_out + count : of.first_out;
      capacities_.resize(capacities_.size() + static_cast<std::size_t>(one.full_duplex ? 2 * count : count),
                         one.bandwidth * one.ports);
      levels_.push_back(of);
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
    int exchanges = 0;
    for (int rank = 0; rank < programs_.size(); ++rank) {
      const program& p = programs_[rank];
      first_exchange_.push_back(exchanges);
      for (int e = 0; e < p.exchanges.size(); ++e) {
        const exchange& x = p.exchanges[e];
        if (p.rank != rank || x.complete_before <= x.posted || x.complete_before > p.steps.size()) refuse_program(rank);
        if (x.sent.count > 0) sent.push_back({rank, x.to, x.lane, rank, e});
        if (x.received.count > 0) received.push_back({x.from, rank, x.lane, rank, e});
      }
      exchanges += p.exchanges.size();
    }
    ends_.resize(static_cast<std::size_t>(exchanges));
    std::sort(sent.begin(), sent.end());
    std::sort(received.begin(), received.end());
    if (sent.size() != received.size()) refuse_unmatched(sent.empty() ? received[0].rank : sent[0].rank);
    std::unordered_map<std::uint64_t, int> known_pairs;
    for (std::size_t i = 0; i < sent.size(); ++i) {
      const half& s = sent[i];
      const half& r = received[i];
      if (s.from != r.from || s.to != r.to || s.lane != r.lane) refuse_unmatched(s.rank);
      if (s.to < 0 || s.to >= programs_.size() || s.to == s.from) refuse_unmatched(s.rank);
      const int level = level_between(s.from, s.to);
      const level_ports& of = levels_[static_cast<std::size_t>(level)];
      const auto out = static_cast<int>(of.first_out + s.from / of.sharers);
      const auto in = static_cast<int>(of.first_in + s.to / of.sharers);
      const std::uint64_t key = static_cast<std::uint64_t>(out) << 32 | static_cast<std::uint32_t>(in);
      const auto [known, is_new] = known_pairs.try_emplace(key, static_cast<int>(pairs_.size()));
      if (is_new) pairs_.push_back({out, in, machine_.levels[static_cast<std::size_t>(level)].bandwidth});
      const int sender = first_exchange(s.from) + s.exchange;
      const int receiver = first_exchange(s.to) + r.exchange;
      ends_[static_cast<std::size_t>(sender)].sends = static_cast<int>(messages_.size());
      ends_[static_cast<std::size_t>(receiver)].receives = static_cast<int>(messages_.size());
      messages_.push_back({s.from, s.to, sender, receiver, s.lane, known->second, level,
                           bytes[static_cast<std::size_t>(s.from)][static_cast<std::size_t>(s.exchange)]});
    }
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
  const machine& machine_;
  std::vector<level_ports> levels_;
  std::vector<double> capacities_;
  std::vector<port_pair> pairs_;
  std::vector<message> messages_;
  std::vector<ends> ends_;
  std::vector<int> first_exchange_;
};

}  // namespace orrery::detail
