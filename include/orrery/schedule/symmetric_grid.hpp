// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/symmetry.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// Where a rank or shard comes to be when the coordinate with this stride and extent is counted on by one.
[[nodiscard]] constexpr int counted_on(int rank, int stride, int extent) noexcept {
  return rank / stride % extent + 1 < extent ? rank + stride : rank - (extent - 1) * stride;
}

/// True if two groups of blocks, those of `a` counted on, are the same in some order. `counts` are those of shards of
/// both sides, all zero, and left so.
template <class A, class B, class Block>
[[nodiscard]] constexpr bool same_shards(const A& a, const B& b, int stride, int extent, list<int>& counts, int world,
                                         const Block& block_of) {
  bool same = a.size() == b.size();
  const auto at = [&](side s, int shard) -> int& { return counts[(s == side::key ? world : 0) + shard]; };
  for (const auto& x : a) ++at(block_of(x).side, counted_on(block_of(x).shard, stride, extent));
  for (const auto& y : b) same = --at(block_of(y).side, block_of(y).shard) >= 0 && same;
  for (const auto& x : a) at(block_of(x).side, counted_on(block_of(x).shard, stride, extent)) = 0;
  for (const auto& y : b) at(block_of(y).side, block_of(y).shard) = 0;
  return same;
}

}  // namespace orrery::detail

namespace orrery::schedule {

/// True if the programs of all ranks are alike in a grid of ranks with these extents, the innermost first: the promise
/// of a topology's `symmetric_grid`. Costs time linear in the programs, for each coordinate, and memory in the world.
///
///     CHECK(orrery::schedule::is_symmetric(orrery::programs_of(my_torus{}, 16), my_torus{}.symmetric_grid(16)));
[[nodiscard]] constexpr bool is_symmetric(const list<program>& programs, const list<int>& extents) {
  const int world = programs.size();
  int ranks = 1;
  for (const int extent : extents) {
    if (extent < 1 || extent > world) return false;
    ranks *= extent;
    if (ranks > world) return false;
  }
  if (extents.empty() || ranks != world) return false;
  list<int> counts(2 * world);
  const auto of_block = [](const block& b) -> const block& { return b; };
  const auto of_held = [](const held_block& b) -> const block& { return b.block; };
  int stride = 1;
  for (const int extent : extents) {
    for (const program& a : programs) {
      const program& b = programs[detail::counted_on(a.rank, stride, extent)];
      if (!have_one_structure(a, b)) return false;
      const auto moved = [&](int rank) { return rank == no_rank ? no_rank : detail::counted_on(rank, stride, extent); };
      for (int e = 0; e < a.exchanges.size(); ++e) {
        const exchange& x = a.exchanges[e];
        const exchange& y = b.exchanges[e];
        if (moved(x.to) != y.to || moved(x.from) != y.from ||
            !detail::same_shards(a.sent_by(x), b.sent_by(y), stride, extent, counts, world, of_block) ||
            !detail::same_shards(a.received_by(x), b.received_by(y), stride, extent, counts, world, of_held))
          return false;
      }
      for (int s = 0; s < a.steps.size(); ++s) {
        const tile& x = a.steps[s].tile;
        const tile& y = b.steps[s].tile;
        if (!detail::same_shards(a.queries_of(x), b.queries_of(y), stride, extent, counts, world, of_held) ||
            !detail::same_shards(a.keys_of(x), b.keys_of(y), stride, extent, counts, world, of_held))
          return false;
      }
    }
    stride *= extent;
  }
  return true;
}

}  // namespace orrery::schedule
