// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// The schedule behind `concentric`, `ring` and `all_gather`, with the grid's shape known at run time: rows of `A`
/// consecutive ranks that share one side's shards, columns in which the other side's shards circulate, `B` at a time.
/// A and B must be positive, and A·B must divide the world.
[[nodiscard]] constexpr program concentric_program(int rank, int world, int A, int B, pass p) {
  // What flies at the same time: operands of the travelling side, and the rest.
  enum lane { hops, column = hops, partial_hops, row = partial_hops };
  const side travelling = travelling_side(p);
  const side staying = other_side(travelling);
  const bool partials_travel = has_partials(p, travelling);
  const bool partials_stay = has_partials(p, staying);
  const int first_of_row = rank / A * A;
  const int turns = world / (A * B);  // stations of the ring in each column
  const int station = rank / A / B;
  const int next = +A * B;
  // The B shards that start at the station `back` hops behind, in this rank's column (its own first if it is the only).
  const auto bundle = [&](int back) {
    if (turns == 1) return blocks{travelling, rank, B, A};
    const int from = (station - back % turns + turns) % turns;
    return blocks{travelling, from * A * B + rank % A, B, A};
  };
  const rank_group row_group{first_of_row, A};
  const rank_group column_group{station * A * B + rank % A, B, A};
  const blocks staying_blocks{staying, first_of_row, A};
  builder schedule{rank, world, p};

  if (A > 1 || B > 1) {
    schedule.all_gather(row_group, staying, {row});
    schedule.all_gather(column_group, travelling, {column});
    schedule.next_step();
  }
  for (int hop = 0; hop < turns; ++hop) {
    if (hop + 1 < turns) schedule.shift(bundle(hop), next, {hops});
    // What was computed one step ago follows its operands. What was computed where the ring began stays there: the
    // bundle ends there, too.
    if (partials_travel && hop > 1) schedule.shift(bundle(hop - 1), next, {partial_hops}, payload::partial);
    schedule.interact(staying_blocks, bundle(hop));
    schedule.next_step();
  }
  if (partials_travel && turns > 1) {
    schedule.shift(bundle(turns - 1), next, {partial_hops}, payload::partial);  // the hop home
    if (B > 1) schedule.next_step();
  }
  if (partials_travel) schedule.reduce_scatter(column_group, travelling, {column});
  if (partials_stay) schedule.reduce_scatter(row_group, staying, {row});
  return schedule;
}

/// Rows, columns of a station, and stations.
[[nodiscard]] constexpr list<int> concentric_grid(int world, int A, int B) {
  list<int> extents;
  extents.push_back(A);
  extents.push_back(B);
  extents.push_back(world / (A * B));
  return extents;
}

/// Null, or why `concentric` refuses the world.
[[nodiscard]] constexpr const char* concentric_refusal(int world, int A, int B) {
  return world % (A * B) == 0 ? nullptr
                              : "needs a world that A*B divides: choose A and B from the world's divisors, or ring";
}

}  // namespace orrery::detail

namespace orrery {

/// Rows share queries, columns circulate keys: a grid with rows of A consecutive ranks and columns of P/A. Each row
/// gathers its A query shards and in the end reduce-scatters their outputs; in each column, B shards at a time
/// (gathered within the column first), keys travel a ring of P/(A·B) stations. B trades messages against exposed time.
///
/// Since queries are replicated along rows and keys along columns, no initial placement is needed, and the volume meets
/// the lower bound of all-pairs interactions (Driscoll et al., IPDPS 2013) at A = sqrt(P), or sqrt(P / g) with g query
/// heads per key head. Sends per rank, forward, in shard units: 2(A-1) + 2(P/A-1). Backward: 3(A-1) + 4(P/A-1) when
/// keys circulate, 4(A-1) + 3(P/A-1) when queries do. Messages: P/(AB)-1 hops, the collectives apart.
/// Slots, forward: A-1 query operands, 2(A-1) query partials (those going out and those arriving), and 2B keys (2B-1
/// where there are two stations, B-1 where there is no ring).
///
/// `concentric<1, 1>` is `ring`. A·B must divide P.
template <int A, int B = 1>
struct concentric {
  static_assert(A >= 1 && B >= 1, "orrery: concentric<A, B> needs rows of A >= 1 ranks and bundles of B >= 1 shards");

  [[nodiscard]] static std::string name() { return "concentric<" + std::to_string(A) + "," + std::to_string(B) + ">"; }
  [[nodiscard]] static constexpr const char* unsupported_reason(int world) {
    return detail::concentric_refusal(world, A, B);
  }
  [[nodiscard]] static constexpr int team(int) { return A; }
  [[nodiscard]] static constexpr schedule::list<int> symmetric_grid(int world) {
    return detail::concentric_grid(world, A, B);
  }
  [[nodiscard]] static constexpr orrery::schedule::program program(int rank, int world,
                                                                   schedule::pass p = schedule::pass::forward) {
    return detail::concentric_program(rank, world, A, B, p);
  }
};

}  // namespace orrery
