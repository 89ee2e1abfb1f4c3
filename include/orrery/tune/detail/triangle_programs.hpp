// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/tune/detail/triangle_search.hpp"

namespace orrery::detail {

/// Writes the forward in which ranks compute the pairs that a `triangle` gives them.
///
/// Blocks spread from rank to rank, so that no rank sends much more than others: each that has a block may send it on.
/// A rank meets in a step all queries that have the same keys, as soon as these are there. Outputs go home when they
/// are complete, some by way of another rank that adds to them, so that no rank receives much more than others. Costs
/// world³ operations at most, and few steps for each block.
class triangle_programs {
 public:
  constexpr explicit triangle_programs(const triangle& pairs)
      : pairs_{pairs},
        world_{pairs.world},
        delivery_to_(2 * world_ * world_),
        sent_(world_),
        received_(world_),
        return_to_(world_ * world_, no_rank) {}

  [[nodiscard]] constexpr list<program> run() {
    deliver();
    balance_sent();
    balance_received();
    for (delivery& one : deliveries_) one.level = level(one.side, one.shard, one.to);
    list<list<product>> products(world_);
    for (int rank = 0; rank < world_; ++rank) products[rank] = products_of(rank);
    list<int> steps_of_outputs(world_ * world_, -1);
    int steps = 0;
    for (int query = 0; query < world_; ++query) {
      for (int rank = 0; rank < world_; ++rank) {
        if (return_to_[query * world_ + rank] == no_rank) continue;
        const int step = return_step(products, query, rank);
        steps_of_outputs[query * world_ + rank] = step;
        steps = larger(steps, step + 1);
      }
    }
    for (const list<product>& of_rank : products) steps = larger(steps, of_rank.empty() ? 0 : of_rank.back().step + 1);
    list<program> all;
    for (int rank = 0; rank < world_; ++rank) all.push_back(write(rank, products, steps_of_outputs, steps));
    return all;
  }

 private:
  static constexpr int operand_lane = 0;
  static constexpr int partial_lane = 1;

  /// A block that a rank gets from another one. At level l it is sent in step l - 1 and there in step l.
  struct delivery {
    orrery::schedule::side side;
    int shard;
    int from;
    int to;
    int level;
  };
  /// Queries that meet the same keys, in one step.
  struct product {
    list<int> queries;
    list<int> keys;
    int step = 0;
  };

  [[nodiscard]] constexpr bool meets(int rank, int query, int key) const {
    return key <= query && pairs_.rank_of[triangle::at(query, key)] == rank;
  }
  [[nodiscard]] constexpr bool needs(int rank, side s, int shard) const {
    for (int other = 0; other < world_; ++other) {
      if (s == side::query ? meets(rank, shard, other) : meets(rank, other, shard)) return true;
    }
    return false;
  }
  /// 1 + the delivery of a block to a rank; 0: none.
  [[nodiscard]] constexpr int& delivery_of(side s, int shard, int rank) {
    return delivery_to_[(static_cast<int>(s) * world_ + shard) * world_ + rank];
  }
  /// K and V are two tensors.
  [[nodiscard]] static constexpr int weight(side s) { return s == side::key ? 2 : 1; }

  /// All that is needed, from its owner.
  constexpr void deliver() {
    for (const side s : {side::key, side::query}) {
      for (int shard = 0; shard < world_; ++shard) {
        for (int rank = 0; rank < world_; ++rank) {
          if (rank == shard || !needs(rank, s, shard)) continue;
          deliveries_.push_back({s, shard, shard, rank, 0});
          delivery_of(s, shard, rank) = deliveries_.count;
          sent_[shard] += weight(s);
          received_[rank] += weight(s);
          if (s == side::key) continue;
          return_to_[shard * world_ + rank] = shard;
          ++sent_[rank];
          ++received_[shard];
        }
      }
    }
  }

  /// True if the block comes to `rank` by way of `over`.
  [[nodiscard]] constexpr bool comes_over(side s, int shard, int rank, int over) {
    while (rank != shard && rank != over) rank = deliveries_[delivery_of(s, shard, rank) - 1].from;
    return rank == over;
  }
  [[nodiscard]] constexpr int level(side s, int shard, int rank) {
    int hops = 0;
    for (; rank != shard; ++hops) rank = deliveries_[delivery_of(s, shard, rank) - 1].from;
    return hops;
  }

  /// Lets others that have a block send it, who send less. The sum of the squares of loads falls with each change.
  constexpr void balance_sent() {
    for (bool changed = true; changed;) {
      changed = false;
      for (delivery& one : deliveries_) {
        for (int other = 0; other < world_; ++other) {
          const bool has = other == one.shard || delivery_of(one.side, one.shard, other) != 0;
          if (!has || other == one.from || sent_[other] + weight(one.side) >= sent_[one.from] ||
              comes_over(one.side, one.shard, other, one.to))
            continue;
          sent_[one.from] -= weight(one.side);
          sent_[other] += weight(one.side);
          one.from = other;
          changed = true;
        }
      }
    }
  }

  /// Lets others that have an output of a query add to it what a rank sends, who receive less.
  constexpr void balance_received() {
    const auto passes = [&](int query, int rank, int over) {
      while (rank != query && rank != over) rank = return_to_[query * world_ + rank];
      return rank == over;
    };
    for (bool changed = true; changed;) {
      changed = false;
      for (int query = 0; query < world_; ++query) {
        for (int rank = 0; rank < world_; ++rank) {
          int& to = return_to_[query * world_ + rank];
          for (int other = 0; to != no_rank && other < world_; ++other) {
            if ((other != query && return_to_[query * world_ + other] == no_rank) ||
                received_[other] + 1 >= received_[to] || passes(query, other, rank))
              continue;
            --received_[to];
            ++received_[other];
            to = other;
            changed = true;
          }
        }
      }
    }
  }

  [[nodiscard]] constexpr int arrival(side s, int shard, int rank) {
    return rank == shard ? 0 : deliveries_[delivery_of(s, shard, rank) - 1].level;
  }

  [[nodiscard]] constexpr list<product> products_of(int rank) {
    list<product> all;
    for (int q = 0; q < world_; ++q) {
      product one{{}, {}, 0};
      for (int k = 0; k <= q; ++k) {
        if (meets(rank, q, k)) one.keys.push_back(k);
      }
      if (one.keys.empty()) continue;
      int same = 0;
      while (same < all.count && !(all[same].keys == one.keys)) ++same;
      if (same == all.count) all.push_back(one);
      all[same].queries.push_back(q);
    }
    for (product& one : all) {
      for (const int q : one.queries) one.step = larger(one.step, arrival(side::query, q, rank));
      for (const int k : one.keys) one.step = larger(one.step, arrival(side::key, k, rank));
    }
    // By the step in which their blocks are there, one in a step.
    list<product> ordered;
    for (int step = 0; ordered.count < all.count; ++step) {
      for (product& one : all) {
        if (one.step < 0 || one.step > step) continue;
        ordered.push_back({one.queries, one.keys, step});
        one.step = -1;
        break;
      }
    }
    return ordered;
  }
  [[nodiscard]] static constexpr int larger(int a, int b) { return a > b ? a : b; }

  /// The step in which a rank sends its output of a query shard, when all is added to it.
  [[nodiscard]] constexpr int return_step(const list<list<product>>& products, int query, int rank) const {
    int step = 0;
    for (const product& one : products[rank]) {
      for (const int q : one.queries) step = q == query ? one.step + 1 : step;
    }
    for (int other = 0; other < world_; ++other) {
      if (return_to_[query * world_ + other] == rank) step = larger(step, return_step(products, query, other) + 1);
    }
    return step;
  }

  [[nodiscard]] constexpr program write(int rank, const list<list<product>>& products,
                                        const list<int>& steps_of_outputs, int steps) {
    builder schedule{rank, world_};
    for (int step = 0; step < steps; ++step) {
      for (int peer = 0; peer < world_; ++peer) {
        if (peer == rank) continue;
        exchange_operands(schedule, rank, peer, step, true);
        exchange_operands(schedule, rank, peer, step, false);
        exchange_outputs(schedule, rank, peer, steps_of_outputs, step, true);
        exchange_outputs(schedule, rank, peer, steps_of_outputs, step, false);
      }
      for (const product& one : products[rank]) {
        if (one.step != step) continue;
        for (const int q : one.queries) schedule.add_to_tile(query(q));
        for (const int k : one.keys) schedule.add_to_tile(key(k));
      }
      schedule.next_step();
    }
    return schedule;
  }

  /// All blocks from one rank to another in a step are one message.
  constexpr void exchange_operands(builder& schedule, int rank, int peer, int step, bool sends) {
    bool begun = false;
    for (const delivery& one : deliveries_) {
      if (one.from != (sends ? rank : peer) || one.to != (sends ? peer : rank) || one.level != step + 1) continue;
      if (!begun) schedule.begin_exchange(sends ? peer : no_rank, sends ? no_rank : peer, {operand_lane});
      begun = true;
      sends ? schedule.send({one.side, one.shard}) : schedule.receive({one.side, one.shard});
    }
  }

  constexpr void exchange_outputs(builder& schedule, int rank, int peer, const list<int>& steps_of_outputs, int step,
                                  bool sends) {
    const int from = sends ? rank : peer;
    const int to = sends ? peer : rank;
    bool begun = false;
    for (int q = 0; q < world_; ++q) {
      if (return_to_[q * world_ + from] != to || steps_of_outputs[q * world_ + from] != step) continue;
      if (!begun)
        schedule.begin_exchange(sends ? peer : no_rank, sends ? no_rank : peer, {partial_lane}, payload::partial);
      begun = true;
      sends ? schedule.send(query(q)) : schedule.receive(query(q));
    }
  }

  const triangle& pairs_;
  int world_;
  list<delivery> deliveries_;
  list<int> delivery_to_;
  list<int> sent_;       // by each rank, in units
  list<int> received_;   // likewise
  list<int> return_to_;  // to whom a rank sends its output of a query shard, at [query * world + rank]
};

}  // namespace orrery::detail
