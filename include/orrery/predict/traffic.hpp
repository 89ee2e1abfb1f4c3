// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery {

/// A function that says what moving one block costs, as an integer (bytes, say) or a floating-point number:
///
///     const auto blocks = [](schedule::side, schedule::payload, const schedule::block&) { return std::int64_t{1}; };
///     traffic(programs, blocks).sent;  // the blocks that the busiest rank sends
///
/// `attention_sizes` is one, of the bytes that an operator moves.
template <class Cost>
concept block_cost = requires(const Cost& cost, const schedule::block& b) {
  requires std::is_arithmetic_v<std::remove_cvref_t<decltype(cost(b.side, schedule::payload::operand, b))>>;
};

/// How many shard units one whole shard of each `slot_kind` weighs; as in the published formulas, a
/// unit is one tensor of batch × tokens of a shard × hidden size. What weighs little (log-sum-exp, delta) counts
/// nothing.
struct unit_weights {
  std::array<double, 4> of{};

  [[nodiscard]] constexpr double operator()(schedule::side s, schedule::payload c) const noexcept {
    return of[schedule::kind_of(s, c)];
  }
};

/// With as many key heads as query heads. Forward: Q is 1, K and V are 2, O is 1. Backward: Q and dO are 2, K and V are
/// 2, dQ is 1, dK and dV are 2. With g query heads to a key head, K, V, dK and dV weigh 1/g of that.
///
/// `sum_width` is the size of a number that is summed over that of one that is stored: 2 for bfloat16 and float16,
/// whose partials are float. A partial (O; dQ; dK and dV) weighs so many times as much.
[[nodiscard]] constexpr unit_weights weights_of(schedule::pass p, double query_heads_per_key_head = 1,
                                                double sum_width = 1) noexcept {
  const double keys = 2 / query_heads_per_key_head;
  return p == schedule::pass::forward ? unit_weights{{1, sum_width, keys, 0}}
                                      : unit_weights{{2, sum_width, keys, keys * sum_width}};
}

namespace detail {

/// What one rank sends, receives and holds in one call; `Amount` is the type of a block's cost.
template <class Amount>
struct basic_rank_traffic {
  std::array<std::int64_t, 4> blocks_sent{};      ///< of each `slot_kind`; a block is one slice of a chunk of a shard
  std::array<std::int64_t, 4> blocks_received{};  ///< likewise
  Amount sent{};                                  ///< what the blocks that it sends cost
  Amount received{};                              ///< what the blocks that it receives cost
  std::int64_t messages_sent = 0;                 ///< one for each exchange that sends
  std::int64_t messages_received = 0;
  std::int64_t tiles = 0;      ///< steps with a tile
  std::int64_t pairs = 0;      ///< (query chunk, key chunk, slice) computed
  int steps = 0;               ///< steps with a tile or an exchange
  std::array<int, 4> slots{};  ///< of each `slot_kind`: block buffers beside the rank's own shard

  /// As a designated initialiser: "{.blocks_sent = {0, 0, 3, 0}, ..., .slots = {0, 0, 2, 0}}".
  [[nodiscard]] friend std::string to_string(const basic_rank_traffic& t) {
    return initializer_text{}
        .member("blocks_sent", t.blocks_sent)
        .member("blocks_received", t.blocks_received)
        .member("sent", t.sent)
        .member("received", t.received)
        .member("messages_sent", t.messages_sent)
        .member("messages_received", t.messages_received)
        .member("tiles", t.tiles)
        .member("pairs", t.pairs)
        .member("steps", t.steps)
        .member("slots", t.slots)
        .text();
  }
};

/// What a schedule costs, before anything is run; `Amount` is the type of a block's cost.
template <class Amount>
struct basic_traffic_report {
  int world = 0;
  int slices = 1;
  int chunks = 1;  ///< of each shard, taken to be equally long
  orrery::schedule::pass pass = orrery::schedule::pass::forward;
  schedule::list<basic_rank_traffic<Amount>> ranks;
  schedule::list<Amount> between;  ///< what rank a sends to rank b, at [a * world + b]
  Amount total{};                  ///< what all ranks send

  // Each the largest of any rank:
  Amount sent{};
  Amount received{};
  std::int64_t messages_sent = 0;
  std::int64_t messages_received = 0;
  int steps = 0;
  int peak_slots = 0;  ///< block buffers of all kinds

  /// What the busiest node sends to other nodes, with `ranks_per_node` consecutive ranks on a node: the figure that
  /// decides where nodes share a network card. Throws `std::invalid_argument` if it is not a divisor of the world.
  [[nodiscard]] constexpr Amount node_egress(int ranks_per_node) const {
    return busiest_node("node_egress", ranks_per_node, world, 1);
  }
  /// What the busiest node receives from other nodes. Throws as `node_egress` does.
  [[nodiscard]] constexpr Amount node_ingress(int ranks_per_node) const {
    return busiest_node("node_ingress", ranks_per_node, 1, world);
  }

  /// As a designated initialiser, without the lists, which have a line for each rank or pair of ranks:
  /// "{.world = 4, .slices = 1, .pass = pass::forward, .total = 24, .sent = 6, ...}".
  [[nodiscard]] friend std::string to_string(const basic_traffic_report& t) {
    return initializer_text{}
        .member("world", t.world)
        .member("slices", t.slices)
        .member("pass", initializer_text::code{std::string{"pass::"} + name_of(t.pass)})
        .member("total", t.total)
        .member("sent", t.sent)
        .member("received", t.received)
        .member("messages_sent", t.messages_sent)
        .member("messages_received", t.messages_received)
        .member("steps", t.steps)
        .member("peak_slots", t.peak_slots)
        .text();
  }

 private:
  /// The number for a rank of the node and a rank outside is at [inside * of_inside + outside * of_outside].
  [[nodiscard]] constexpr Amount busiest_node(const char* asked, int ranks_per_node, int of_inside,
                                              int of_outside) const {
    if (ranks_per_node < 1 || world % ranks_per_node != 0) {
      throw std::invalid_argument{std::string{"orrery: "} + asked + ": ranks_per_node is " +
                                  std::to_string(ranks_per_node) + ", expected a divisor of the world, " +
                                  std::to_string(world)};
    }
    Amount most{};
    for (int node = 0; node < world / ranks_per_node; ++node) {
      Amount sum{};
      for (int inside = node * ranks_per_node; inside < (node + 1) * ranks_per_node; ++inside) {
        for (int outside = 0; outside < world; ++outside) {
          if (outside / ranks_per_node != node) sum += between[inside * of_inside + outside * of_outside];
        }
      }
      if (sum > most) most = sum;
    }
    return most;
  }
};

/// The weights of whole shards, for blocks that are one of `slices` slices of one of `chunks` chunks of them.
struct units_of_blocks {
  std::array<double, 4> of_block{};

  constexpr units_of_blocks(const unit_weights& of_shard, int slices, int chunks) noexcept {
    for (unsigned kind = 0; kind < 4; ++kind) of_block[kind] = of_shard.of[kind] / slices / chunks;
  }
  constexpr double operator()(schedule::side s, schedule::payload c, const schedule::block&) const noexcept {
    return of_block[schedule::kind_of(s, c)];
  }
};

template <class T>
constexpr void raise(T& largest, const T& value) {
  if (value > largest) largest = value;
}

}  // namespace detail

/// A report in shard units.
using traffic_report = detail::basic_traffic_report<double>;
/// What one rank of a report in shard units sends, receives and holds.
using rank_traffic = detail::basic_rank_traffic<double>;
/// A report in bytes.
using byte_report = detail::basic_traffic_report<std::int64_t>;

/// The costs of the finished programs of all ranks, in the unit of `cost`, a function of (side, payload, block).
///
///     const auto bytes = attention_sizes::of<flash<bfloat16>>(shape, pass::forward, world);
///     traffic(programs_of(ring{}, world), bytes).sent;  // the bytes that the busiest rank sends
///
/// Linear in the programs' size, and world² numbers.
template <block_cost Cost>
[[nodiscard]] constexpr auto traffic(const schedule::list<schedule::program>& programs, const Cost& cost) {
  using amount =
      std::remove_cvref_t<decltype(cost(schedule::side::query, schedule::payload::operand, schedule::block{}))>;
  detail::basic_traffic_report<amount> report;
  report.world = programs.size();
  report.ranks = schedule::list<detail::basic_rank_traffic<amount>>(report.world);
  report.between = schedule::list<amount>(report.world * report.world);
  for (const schedule::program& p : programs) {
    report.slices = p.slices;
    report.chunks = p.chunks;
    report.pass = p.pass;
    detail::basic_rank_traffic<amount>& local = report.ranks[p.rank];
    local.slots = p.slots;
    int slots = 0;
    for (const int of_kind : p.slots) slots += of_kind;
    for (const schedule::step& now : p.steps) {
      local.steps += now.exchanges.count > 0 || !now.tile.empty() ? 1 : 0;
      local.tiles += now.tile.empty() ? 0 : 1;
      local.pairs += std::int64_t{now.tile.queries.count} * now.tile.keys.count;
    }
    for (const schedule::exchange& x : p.exchanges) {
      local.messages_sent += x.sent.count > 0 ? 1 : 0;
      local.messages_received += x.received.count > 0 ? 1 : 0;
      for (const schedule::block& b : p.sent_by(x)) {
        const amount costs = cost(b.side, x.payload, b);
        ++local.blocks_sent[kind_of(b.side, x.payload)];
        local.sent += costs;
        report.between[p.rank * report.world + x.to] += costs;
      }
      for (const schedule::held_block& arriving : p.received_by(x)) {
        const schedule::block& b = arriving.block;
        ++local.blocks_received[kind_of(b.side, x.payload)];
        local.received += cost(b.side, x.payload, b);
      }
    }
    report.total += local.sent;
    detail::raise(report.sent, local.sent);
    detail::raise(report.received, local.received);
    detail::raise(report.messages_sent, local.messages_sent);
    detail::raise(report.messages_received, local.messages_received);
    detail::raise(report.steps, local.steps);
    detail::raise(report.peak_slots, slots);
  }
  return report;
}

/// The costs in shard units: a block is one slice of a shard and weighs that part of it.
[[nodiscard]] constexpr traffic_report traffic(const schedule::list<schedule::program>& programs,
                                               const unit_weights& weights) {
  if (programs.empty()) return traffic(programs, detail::units_of_blocks{weights, 1, 1});
  return traffic(programs, detail::units_of_blocks{weights, programs[0].slices, programs[0].chunks});
}

/// The costs of a topology's schedule in shard units, with `query_heads_per_key_head` query heads to each key head and
/// sums `sum_width` times as wide as what is stored (2 for bfloat16 and float16; see `weights_of`). Throws
/// `std::invalid_argument` if the world is refused.
///
///     static_assert(orrery::traffic(orrery::ring{}, 16).sent == 30);
template <topology Topology>
[[nodiscard]] constexpr traffic_report traffic(const Topology& t, int world, schedule::pass p = schedule::pass::forward,
                                               double query_heads_per_key_head = 1, double sum_width = 1) {
  detail::require_admitted(t, world, p);
  return traffic(programs_of(t, world, p), weights_of(p, query_heads_per_key_head, sum_width));
}

}  // namespace orrery
