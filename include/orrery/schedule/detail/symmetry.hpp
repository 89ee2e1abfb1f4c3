// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// True if two programs of one world differ in nothing but the names of peers, shards and slices. Compares what
/// topologies write, not what `finish` adds. Costs time linear in the number of exchanges and steps.
[[nodiscard]] constexpr bool have_one_structure(const program& a, const program& b) {
  if (b.world != a.world || b.slices != a.slices || b.chunks != a.chunks || b.pass != a.pass ||
      a.steps.count != b.steps.count || a.exchanges.count != b.exchanges.count || a.sent.count != b.sent.count ||
      a.received.count != b.received.count || a.queries.count != b.queries.count || a.keys.count != b.keys.count) {
    return false;
  }
  const exchange* const end = a.exchanges.items + a.exchanges.count;
  for (const exchange *x = a.exchanges.items, *y = b.exchanges.items; x != end; ++x, ++y)
    if (x->lane != y->lane || x->payload != y->payload || x->posted != y->posted ||
        x->complete_before != y->complete_before || x->sent.first != y->sent.first || x->sent.count != y->sent.count ||
        x->received.first != y->received.first || x->received.count != y->received.count || x->tensor != y->tensor ||
        (x->to == no_rank) != (y->to == no_rank) || (x->from == no_rank) != (y->from == no_rank))
      return false;
  for (int i = 0; i < a.steps.count; ++i) {
    if (!(a.steps.items[i].exchanges == b.steps.items[i].exchanges) ||
        !(a.steps.items[i].tile == b.steps.items[i].tile))
      return false;
  }
  return true;
}

/// True if `agree(block of a, block of b)` holds for all blocks of two programs of one structure, place by place.
template <class Agree>
[[nodiscard]] constexpr bool all_blocks(const program& a, const program& b, const Agree& agree) {
  for (int s = 0; s < a.sent.count; ++s)
    if (!agree(a.sent.items[s], b.sent.items[s])) return false;
  for (int r = 0; r < a.received.count; ++r)
    if (!agree(a.received.items[r].block, b.received.items[r].block)) return false;
  for (int q = 0; q < a.queries.count; ++q)
    if (!agree(a.queries.items[q].block, b.queries.items[q].block)) return false;
  for (int k = 0; k < a.keys.count; ++k)
    if (!agree(a.keys.items[k].block, b.keys.items[k].block)) return false;
  return true;
}

/// True if `b` is what `a` becomes when all ranks and shards are counted on by `distance` (modulo the world), and all
/// slices (modulo their number), with the same chunks. Such programs do the same in different places; what is true of
/// one is true of the other. Costs time linear in the programs.
[[nodiscard]] constexpr bool is_rotation(const program& a, const program& b, int distance) {
  if (b.rank != (a.rank + distance) % a.world || !have_one_structure(a, b)) return false;
  const int world = a.world;
  const int slices = a.slices;
  const auto moved = [&](const block& from, const block& to) {
    return (from.shard + distance == to.shard || from.shard + distance == to.shard + world) && to.shard < world &&
           from.side == to.side && from.chunk == to.chunk &&
           (slices == 1 ? from.slice : (from.slice + distance) % slices) == to.slice;
  };
  const exchange* const end = a.exchanges.items + a.exchanges.count;
  for (const exchange *x = a.exchanges.items, *y = b.exchanges.items; x != end; ++x, ++y)
    if ((x->to != no_rank && (x->to + distance) % world != y->to) ||
        (x->from != no_rank && (x->from + distance) % world != y->from))
      return false;
  return all_blocks(a, b, moved);
}

/// What a program becomes when all ranks and shards are counted on by `distance` (modulo the world), and all slices
/// (modulo their number): `is_rotation(p, rotated(p, distance), distance)`.
[[nodiscard]] constexpr program rotated(program p, int distance) {
  const int world = p.world;
  const int slices = p.slices;
  const auto moved = [world, distance](int rank) {
    return rank < 0 ? rank : rank + distance < world ? rank + distance : (rank + distance) % world;
  };
  const auto move = [&](block& b) {
    b.shard = moved(b.shard);
    if (slices > 1) b.slice = (b.slice + distance) % slices;
  };
  if (distance == 0) return p;
  p.rank = moved(p.rank);
  for (exchange& x : p.exchanges) {
    x.to = moved(x.to);
    x.from = moved(x.from);
  }
  for (block& b : p.sent) move(b);
  for (list<held_block>* held : {&p.received, &p.queries, &p.keys}) {
    for (held_block& h : *held) move(h.block);
  }
  for (collective& c : p.collectives) c.first_rank = moved(c.first_rank);
  return p;
}

/// The smallest number of first ranks whose programs, rotated, are those of all; the world, if there is no smaller one.
/// Costs time linear in the programs.
[[nodiscard]] constexpr int rotation_period(const list<program>& all) {
  int period = 0;
  for (int rank = 1; rank < all.count; ++rank) {
    if (period == 0) {
      if (all.count % rank == 0 && is_rotation(all.items[0], all.items[rank], rank)) period = rank;
    } else if (!is_rotation(all.items[rank % period], all.items[rank], rank - rank % period)) {
      return all.count;
    }
  }
  return period == 0 ? all.count : period;
}

/// True if `b` is what `a` becomes when its shards and its slices are given other names, one to one, and its rank's own
/// shard the other rank's own, with the same chunks. Such programs need the same slots, and hold the same in them in
/// each step: they differ only in what they exchange with whom. Costs time linear in the programs, and memory in the
/// world.
[[nodiscard]] constexpr bool is_relabeling(const program& a, const program& b) {
  if (!have_one_structure(a, b)) return false;
  const int world = a.world;
  const int slices = a.slices;
  // 1 + the other name of each shard, then of each slice; and the way back. Zero: not named yet.
  list<int> names(2 * (world + slices));
  int* const to = names.items;
  int* const back = names.items + world + slices;
  to[a.rank] = b.rank + 1;
  back[b.rank] = a.rank + 1;
  const auto name = [&](int x, int y) {
    return to[x] == 0 && back[y] == 0 ? (to[x] = y + 1, back[y] = x + 1, true) : to[x] == y + 1;
  };
  const auto named = [&](const block& x, const block& y) {
    return x.side == y.side && x.chunk == y.chunk && y.shard >= 0 && y.shard < world && x.shard >= 0 &&
           x.shard < world && y.slice >= 0 && y.slice < slices && x.slice >= 0 && x.slice < slices &&
           (to[x.shard] == y.shard + 1 || name(x.shard, y.shard)) &&
           (to[world + x.slice] == world + y.slice + 1 || name(world + x.slice, world + y.slice));
  };
  for (int e = 0; e < a.exchanges.count; ++e) {
    const exchange& y = b.exchanges.items[e];
    if (y.to < no_rank || y.to >= world || y.to == b.rank || y.from < no_rank || y.from >= world || y.from == b.rank)
      return false;
  }
  return all_blocks(a, b, named);
}

/// For each program the first one that it is a renaming of, often itself; few are tried. Costs time linear in the
/// programs.
[[nodiscard]] constexpr list<int> first_equivalent(const list<program>& programs) {
  constexpr int most_tried = 4;
  list<int> first(programs.count);
  list<int> different;
  for (int rank = 0; rank < programs.count; ++rank) {
    first.items[rank] = rank;
    for (int d = 0; d < different.count && d < most_tried; ++d) {
      if (!is_relabeling(programs.items[different.items[d]], programs.items[rank])) continue;
      first.items[rank] = different.items[d];
      break;
    }
    if (first.items[rank] == rank) different.push_back(rank);
  }
  return first;
}

}  // namespace orrery::schedule
