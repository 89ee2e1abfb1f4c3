// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/detail/lockstep.hpp"
#include "orrery/schedule/detail/return_routes.hpp"
#include "orrery/schedule/detail/symmetry.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// Exchanges the two sides of a program: what was done with queries is done with keys.
constexpr void exchange_sides(program& p) {
  for (block& b : p.sent) b.side = other_side(b.side);
  for (list<held_block>* held : {&p.received, &p.queries, &p.keys}) {
    for (held_block& h : *held) h.block.side = other_side(h.block.side);
  }
  list<held_block> queries = static_cast<list<held_block>&&>(p.keys);
  p.keys = static_cast<list<held_block>&&>(p.queries);
  p.queries = static_cast<list<held_block>&&>(queries);
  for (step& now : p.steps) now.tile = {now.tile.keys, now.tile.queries};
}

/// A backward of the ranks of one period; those of the others are rotations of them.
struct derived_backward {
  list<program> period;

  /// The program of any rank.
  [[nodiscard]] constexpr program of(int rank) const {
    const int first = rank % period.count;
    return rotated(period.items[first], rank - first);
  }
};

/// Derives a backward from the forward of all ranks, as a topology writes it.
///
/// `circulate_keys`: operands and query partials travel exactly as they do forward (with Q go dO, log-sum-exp and
/// delta; dQ comes home as the output did). What ranks add up of dK and dV goes home along the way on which the keys
/// came to them, see `return_routes`: between the same ranks, as often, and so with the same locality. It is merged on
/// the way: a rank sends at most one partial of each shard.
///
/// `circulate_queries`: the same with the two sides exchanged, where the forward computes all pairs, so that queries
/// and dQ travel as keys and dK, dV would. A forward that leaves out pairs that no mask asks for cannot be turned
/// round; there, the backward is that of `circulate_keys` by another name.
///
/// The backward of a proven forward is proven. Volume: that of the forward, with dO beside Q and dQ for O, and one
/// partial for each shard that a rank has met and is not its own. Where every rank's program is the same, as in rings,
/// costs time linear in the forward; else up to its number of blocks times the length of the way of one.
[[nodiscard]] constexpr derived_backward derive_backward_of_period(list<program> forward, pass p) {
  const int world = forward.count;
  int period = rotation_period(forward);
  if (!in_lockstep(forward, period)) {
    bring_into_lockstep(forward);
    period = world;
  }
  std::int64_t pairs = 0;
  for (int rank = 0; rank < period; ++rank) {
    for (const step& now : forward[rank].steps) pairs += std::int64_t{now.tile.queries.count} * now.tile.keys.count;
  }
  const std::int64_t blocks = std::int64_t{world} * forward[0].chunks;
  const bool exchanged =
      p == pass::circulate_queries && pairs * (world / period) == blocks * blocks * forward[0].slices;
  if (exchanged) {
    for (int rank = 0; rank < period; ++rank) exchange_sides(forward[rank]);
  }

  const return_routes routes{forward, period, exchanged ? side::query : side::key};
  derived_backward backward;
  for (int rank = 0; rank < period; ++rank) {
    const program& repeated = forward.items[rank];
    builder schedule{rank, world, p, repeated.slices, repeated.chunks};
    for (int i = 0; i < repeated.steps.count || i < routes.steps(); ++i) {
      if (i > 0) schedule.next_step();
      if (i < repeated.steps.count) schedule.repeat(repeated, i);
      routes.write(schedule, rank, i);
    }
    backward.period.push_back(schedule);
  }
  return backward;
}

/// The derived backward of all ranks, see `derive_backward_of_period`.
[[nodiscard]] constexpr list<program> derive_backward(const list<program>& forward, pass p = pass::circulate_keys) {
  const derived_backward backward = derive_backward_of_period(forward, p);
  list<program> all(forward.count);
  for (int rank = 0; rank < forward.count; ++rank) all[rank] = backward.of(rank);
  return all;
}

}  // namespace orrery::schedule
