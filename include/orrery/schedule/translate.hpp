// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/schedule/program.hpp"

namespace orrery {

/// Is `b` what `a` becomes when all ranks and shards are counted on by `distance` (modulo the world), and all slices
/// (modulo their number)? Such programs do the same in different places; what is true of one is true of the other.
/// Compares what topologies write, not what `finish` adds. Costs time linear in the programs.
[[nodiscard]] constexpr bool is_translate(const program& a, const program& b, int distance) {
  const int world = a.world;
  const int slices = a.slices;
  const auto moved = [&](const block& from, const block& to) {
    return (from.shard + distance == to.shard || from.shard + distance == to.shard + world) && to.shard < world &&
           from.side == to.side && (slices == 1 ? from.slice : (from.slice + distance) % slices) == to.slice;
  };
  const auto moved_peer = [&](int from, int to) {
    return from < 0 || to < 0 ? from == to : (from + distance) % world == to;
  };
  if (b.rank != (a.rank + distance) % world || b.world != world || b.slices != slices || b.pass != a.pass ||
      a.steps.count != b.steps.count || a.exchanges.count != b.exchanges.count || a.sent.count != b.sent.count ||
      a.received.count != b.received.count || a.queries.count != b.queries.count || a.keys.count != b.keys.count) {
    return false;
  }
  for (int i = 0; i < a.steps.count; ++i) {
    if (!(a.steps.items[i].exchanges == b.steps.items[i].exchanges) ||
        !(a.steps.items[i].tile == b.steps.items[i].tile))
      return false;
  }
  for (int e = 0; e < a.exchanges.count; ++e) {
    const exchange& x = a.exchanges.items[e];
    const exchange& y = b.exchanges.items[e];
    if (!moved_peer(x.to, y.to) || !moved_peer(x.from, y.from) || x.lane != y.lane || x.cargo != y.cargo ||
        x.posted != y.posted || x.complete_before != y.complete_before || x.sent.first != y.sent.first ||
        x.sent.count != y.sent.count || x.received.first != y.received.first || x.received.count != y.received.count) {
      return false;
    }
  }
  for (int s = 0; s < a.sent.count; ++s)
    if (!moved(a.sent.items[s], b.sent.items[s])) return false;
  for (int r = 0; r < a.received.count; ++r)
    if (!moved(a.received.items[r].block, b.received.items[r].block)) return false;
  for (int q = 0; q < a.queries.count; ++q)
    if (!moved(a.queries.items[q].block, b.queries.items[q].block)) return false;
  for (int k = 0; k < a.keys.count; ++k)
    if (!moved(a.keys.items[k].block, b.keys.items[k].block)) return false;
  return true;
}

}  // namespace orrery
