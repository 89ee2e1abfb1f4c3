// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// The schedule behind `half_ring`, seen from all ranks: who meets whom in which step, and what goes where then.
struct half_ring_steps {
  int world;
  orrery::schedule::pass pass;

  static constexpr int operand_lane = 0;
  static constexpr int partial_lane = 1;
  static constexpr int return_lane = 2;

  /// The shard that `rank` meets in step t.
  [[nodiscard]] constexpr int met(int rank, int t) const { return ((rank - t) % world + world) % world; }
  /// True if a rank meets its shard in step t. The farthest pairs of an even world would be met twice: from both sides.
  [[nodiscard]] constexpr bool meets(int rank, int t) const {
    const int half = world / 2;
    return t >= 0 && t <= (world % 2 == 1 || met(rank, t) < half ? half : half - 1);
  }
  /// By its query, since it comes after the rank's own shard; else by its key.
  [[nodiscard]] static constexpr bool by_query(int rank, int t) { return rank < t; }
  [[nodiscard]] constexpr block met_block(int rank, int t) const {
    return {by_query(rank, t) ? side::query : side::key, 0, met(rank, t), 0};
  }
  [[nodiscard]] constexpr bool leaves_partial(int rank, int t) const {
    return t > 0 && meets(rank, t) && has_partials(pass, met_block(rank, t).side);
  }
  /// True if the next rank does not go on with what this rank met in step t.
  [[nodiscard]] constexpr bool is_last(int rank, int t) const {
    const int next = (rank + 1) % world;
    return !meets(next, t + 1) || by_query(next, t + 1) != by_query(rank, t);
  }
  /// Where the block that `rank` meets in step t, t > 0, comes from: the rank before; a query first from its owner.
  [[nodiscard]] constexpr int sender(int rank, int t) const {
    return by_query(rank, t) && rank == 0 ? met(rank, t) : (rank + world - 1) % world;
  }

  [[nodiscard]] constexpr program of(int rank) const {
    const int next = (rank + 1) % world;
    const int previous = (rank + world - 1) % world;
    builder schedule{rank, world, pass};
    const auto sends = [&](int to, int lane, payload what, const block& b) {
      schedule.begin_exchange(to, no_rank, {lane}, what);
      schedule.send(b);
    };
    const auto receives = [&](int from, int lane, payload what, const block& b) {
      schedule.begin_exchange(no_rank, from, {lane}, what);
      schedule.receive(b);
    };
    for (int t = 0; t <= world / 2 + 2; ++t) {
      // Operands of the next step.
      if (meets(next, t + 1) && sender(next, t + 1) == rank)
        sends(next, operand_lane, payload::operand, met_block(next, t + 1));
      if (next != 0 && meets(0, t + 1) && sender(0, t + 1) == rank)
        sends(0, operand_lane, payload::operand, met_block(0, t + 1));
      if (meets(rank, t + 1)) receives(sender(rank, t + 1), operand_lane, payload::operand, met_block(rank, t + 1));
      // Partials of the step before: on behind their operand, or to their owner.
      const int done = t - 1;
      if (leaves_partial(rank, done)) {
        const bool last = is_last(rank, done);
        sends(last ? met(rank, done) : next, last ? return_lane : partial_lane, payload::partial,
              met_block(rank, done));
      }
      if (leaves_partial(previous, done) && !is_last(previous, done))
        receives(previous, partial_lane, payload::partial, met_block(previous, done));
      if (const int farthest = ((rank + done) % world + world) % world;
          farthest != rank && leaves_partial(farthest, done) && is_last(farthest, done)) {
        receives(farthest, return_lane, payload::partial, met_block(farthest, done));
      }
      // The tile.
      if (meets(rank, t)) {
        schedule.add_to_tile(by_query(rank, t) ? met_block(rank, t) : block{side::query, 0, rank, 0});
        schedule.add_to_tile(by_query(rank, t) ? block{side::key, 0, rank, 0} : met_block(rank, t));
      }
      schedule.next_step();
    }
    return schedule;
  }
};

}  // namespace orrery::detail

namespace orrery {

/// For masks in which no query sees a later shard: `causal`, and what is causal and more, under the layout
/// `contiguous`. Half as many steps as `ring`, with the same work in each for all ranks: in step t rank r meets shard
/// r - t, by its key; or, where r - t is past the beginning, shard r - t + P, by its query. So what a ring would
/// compute of pairs that no query sees is left out, and no rank waits for another.
///
/// It computes the pairs (query shard, key shard <= query shard), and no others: an operator whose mask and layout ask
/// for more refuses it, and
///
///     static_assert(orrery::verify(orrery::half_ring{}, 16, orrery::pass::forward, orrery::below_diagonal{}));
///
/// Sends, in shard units with as many key heads as query heads: P = 16: 15 on average, 17 the busiest rank, and 19 the
/// busiest node of 4 ranks (a ring: 30; 30; 30). Backward, where both sides travel whatever the pass is called: 28.25
/// on average, 34 the busiest rank (60 or 45). P/2 + 1 steps with a tile. With more query heads than key heads a
/// query's way home costs more than a key's: from about four query heads to a key head on, `ring` sends less.
struct half_ring {
  [[nodiscard]] static std::string name() { return "half_ring"; }
  [[nodiscard]] static constexpr const char* pairs_left_out() {
    return "computes only pairs whose key shard is not after the query shard: use it with a causal mask and the layout "
           "contiguous, or take ring";
  }

  [[nodiscard]] static constexpr orrery::schedule::program program(int rank, int world,
                                                                   schedule::pass p = schedule::pass::forward) {
    return detail::half_ring_steps{world, p}.of(rank);
  }
};

}  // namespace orrery
