// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "orrery/topology/topology.hpp"

namespace orrery {

/// How many shard units one whole shard of each kind weighs, at [2 * side + payload]; as in the published formulas, a
/// unit is one tensor of batch × tokens of a shard × hidden size. What weighs little (log-sum-exp, delta) counts
/// nothing.
struct unit_weights {
  std::array<double, 4> of{};

  [[nodiscard]] constexpr double operator()(schedule::side s, schedule::payload c) const noexcept {
    return of[2 * static_cast<unsigned>(s) + static_cast<unsigned>(c)];
  }
};

/// With as many key heads as query heads. Forward: Q is 1, K and V are 2, O is 1. Backward: Q and dO are 2, K and V are
/// 2, dQ is 1, dK and dV are 2. With g query heads to a key head, K, V, dK and dV weigh 1/g of that.
[[nodiscard]] constexpr unit_weights weights_of(schedule::pass p, double query_heads_per_key_head = 1) noexcept {
  const double keys = 2 / query_heads_per_key_head;
  return p == schedule::pass::forward ? unit_weights{{1, 1, keys, 0}} : unit_weights{{2, 1, keys, keys}};
}

/// What one rank sends and holds in one call.
struct rank_traffic {
  std::array<std::int64_t, 4> blocks_sent{};  ///< at [2 * side + payload]; a block is one slice of a chunk of a shard
  std::int64_t messages_sent = 0;
  std::int64_t tiles = 0;      ///< steps with a tile
  std::int64_t pairs = 0;      ///< (query chunk, key chunk, slice) computed
  int steps = 0;               ///< steps with a tile or an exchange
  int chunks = 1;              ///< of each shard
  std::array<int, 4> slots{};  ///< at [2 * side + payload]: block buffers beside the rank's own shard

  /// Volume sent in shard units.
  [[nodiscard]] constexpr double units_sent(const unit_weights& weights, int slices) const {
    double sum = 0;
    for (unsigned kind = 0; kind < 4; ++kind) sum += static_cast<double>(blocks_sent[kind]) * weights.of[kind];
    return sum / (slices * chunks);
  }
};

/// What a schedule costs, before anything is run.
struct traffic_report {
  int world = 0;
  int slices = 1;
  int chunks = 1;  ///< of each shard, taken to be equally long
  orrery::schedule::pass pass = orrery::schedule::pass::forward;
  unit_weights weights;
  schedule::list<rank_traffic> ranks;
  schedule::list<double> units_between;  ///< shard units from rank a to rank b, at [a * world + b]

  // The busiest rank's figures:
  double units_sent = 0;           ///< in shard units
  std::int64_t messages_sent = 0;  ///< one for each exchange that sends
  int steps = 0;                   ///< the longest program's
  int peak_slots = 0;              ///< block buffers of all kinds

  /// Shard units that the busiest node sends to other nodes, with `ranks_per_node` consecutive ranks on a node: the
  /// figure that decides where nodes share a network card. Throws if it is not a divisor of the world.
  [[nodiscard]] constexpr double node_egress(int ranks_per_node) const {
    if (ranks_per_node < 1 || world % ranks_per_node != 0) {
      throw std::invalid_argument{"orrery: node_egress: ranks_per_node is " + std::to_string(ranks_per_node) +
                                  ", expected a divisor of the world, " + std::to_string(world)};
    }
    double most = 0;
    for (int node = 0; node < world / ranks_per_node; ++node) {
      double sum = 0;
      for (int a = node * ranks_per_node; a < (node + 1) * ranks_per_node; ++a) {
        for (int b = 0; b < world; ++b) {
          if (b / ranks_per_node != node) sum += units_between[a * world + b];
        }
      }
      if (sum > most) most = sum;
    }
    return most;
  }
};

/// The costs of the finished programs of all ranks. Linear in their size, and world² numbers.
[[nodiscard]] constexpr traffic_report traffic(const schedule::list<schedule::program>& programs,
                                               const unit_weights& weights) {
  traffic_report report;
  report.world = programs.size();
  report.weights = weights;
  report.ranks = schedule::list<rank_traffic>(report.world);
  report.units_between = schedule::list<double>(report.world * report.world);
  for (const schedule::program& p : programs) {
    report.slices = p.slices;
    report.chunks = p.chunks;
    report.pass = p.pass;
    rank_traffic& mine = report.ranks[p.rank];
    mine.slots = p.slots;
    mine.chunks = p.chunks;
    int slots = 0;
    for (const int of_kind : p.slots) slots += of_kind;
    for (const schedule::step& now : p.steps) {
      mine.steps += now.exchanges.count > 0 || !now.tile.empty() ? 1 : 0;
      mine.tiles += now.tile.empty() ? 0 : 1;
      mine.pairs += std::int64_t{now.tile.queries.count} * now.tile.keys.count;
    }
    for (const schedule::exchange& x : p.exchanges) {
      mine.messages_sent += x.sent.count > 0 ? 1 : 0;
      for (int s = x.sent.first; s < x.sent.end(); ++s) {
        const schedule::side which = p.sent[s].side;
        ++mine.blocks_sent[2 * static_cast<unsigned>(which) + static_cast<unsigned>(x.payload)];
        report.units_between[p.rank * report.world + x.to] += weights(which, x.payload) / (p.slices * p.chunks);
      }
    }
    const double units = mine.units_sent(weights, p.slices);
    if (units > report.units_sent) report.units_sent = units;
    if (mine.messages_sent > report.messages_sent) report.messages_sent = mine.messages_sent;
    if (mine.steps > report.steps) report.steps = mine.steps;
    if (slots > report.peak_slots) report.peak_slots = slots;
  }
  return report;
}

/// The costs of a topology's schedule, with `query_heads_per_key_head` query heads to each key head. Throws
/// `std::invalid_argument` if the world is refused.
template <topology Topology>
[[nodiscard]] constexpr traffic_report traffic(const Topology& t, int world, schedule::pass p = schedule::pass::forward,
                                               double query_heads_per_key_head = 1) {
  detail::require_admitted(t, world, p);
  return traffic(programs_of(t, world, p), weights_of(p, query_heads_per_key_head));
}

}  // namespace orrery
