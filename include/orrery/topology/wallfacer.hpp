// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// The schedule behind `wallfacer`, with C known at run time. C*C must divide the world.
[[nodiscard]] constexpr schedule::program wallfacer_program(int rank, int world, int C, schedule::pass p);

/// Null, or why `wallfacer` refuses the world.
[[nodiscard]] constexpr const char* wallfacer_refusal(int world, int C) {
  return world % (C * C) == 0 ? nullptr
                              : "needs a world that C*C divides: choose a smaller C, or concentric<C>, for which C "
                                "need only divide it";
}

}  // namespace orrery::detail

namespace orrery {

/// WallFacer's multi-ring (arXiv 2407.00611, algorithms 1 and 2; later versions call it StarTrail), as published.
///
/// Teams of C consecutive ranks gather Q, K and V. With r_t the team of a rank, r_a its place in the team and
/// G = P/C², each rank then sends its team's K/V to its starting place, member r_t mod C of team r_a·G + r_t div C; C²
/// sub-rings of G ranks turn (team t's neighbours are those of the same member in its group of G teams); the teams
/// reduce-scatter the partial outputs. Backward with `circulate_queries` is the published one: K, V, dK and dV stay, Q,
/// dO, lse, delta and dQ travel, and the teams reduce. `circulate_keys` is the same with the sides exchanged.
///
/// The one difference to the paper: what a travelling shard's starting place adds to its gradient waits there for the
/// rest instead of travelling, which saves one hop in each sub-ring; a gradient that passes its home stays there; and a
/// rank that is its own starting place sends nothing.
///
/// Sends per rank, forward, in shard units: 4(C-1) in collectives, 2(P/C - C) in the rings, 2C for the placement.
/// Messages: P/C² - 1 hops, one placement, the collectives apart. C² must divide P. `wallfacer<1>` is `ring`.
template <int C>
struct wallfacer {
  static_assert(C >= 1, "orrery: wallfacer<C> needs teams of C >= 1 ranks");

  [[nodiscard]] static std::string name() { return "wallfacer<" + std::to_string(C) + ">"; }
  [[nodiscard]] static constexpr const char* unsupported_reason(int world) {
    return detail::wallfacer_refusal(world, C);
  }
  [[nodiscard]] static constexpr int team(int) { return C; }

  [[nodiscard]] static constexpr orrery::schedule::program program(int rank, int world,
                                                                   schedule::pass p = schedule::pass::forward) {
    return detail::wallfacer_program(rank, world, C, p);
  }
};

}  // namespace orrery

namespace orrery::detail {

[[nodiscard]] constexpr schedule::program wallfacer_program(int rank, int world, int C, schedule::pass p) {
  // What flies at the same time: operands of the travelling side, and the rest.
  enum lane { hops, placement = hops, travelling_team = hops, partial_hops, staying_team = partial_hops };
  const schedule::side travelling = schedule::travelling_side(p);
  const schedule::side staying = schedule::other_side(travelling);
  const bool partials_travel = schedule::has_partials(p, travelling);
  const int turns = world / (C * C);  // G, the length of a sub-ring
  const int team = rank / C;
  const int member = rank % C;
  const int group = team / turns;
  const int place_in_ring = team % turns;
  const schedule::rank_group mates{team * C, C};
  const auto rank_of = [C](int t, int m) { return t * C + m; };
  const auto team_blocks = [C](schedule::side s, int t) { return schedule::blocks{s, t * C, C}; };
  // The team whose blocks start at the place `back` hops behind in this rank's sub-ring.
  const auto started = [&](int back) { return (place_in_ring - back % turns + turns) % turns * C + member; };
  const auto start_of = [&](int r) { return rank_of(r % C * turns + r / C / C, r / C % C); };
  const int start = start_of(rank);
  const int starts_here = rank_of(started(0), group);  // whose team's blocks start here
  const int next = rank_of(group * turns + (place_in_ring + 1) % turns, member);
  const int previous = rank_of(group * turns + (place_in_ring + turns - 1) % turns, member);
  schedule::builder schedule{rank, world, p};
  // A bundle's gradient may pass the home of one of its shards: that shard's part is home then, and travels no
  // further.
  const auto exchange_bundle = [&](int to, int sent_team, int from, int received_team, int lane,
                                   schedule::payload what) {
    schedule.begin_exchange(to, from, {lane}, what);
    if (what == schedule::payload::operand) {
      schedule.send(team_blocks(travelling, sent_team));
      schedule.receive(team_blocks(travelling, received_team));
      return;
    }
    for (int m = 0; m < C; ++m) {
      if (sent_team * C + m != rank) schedule.send({travelling, sent_team * C + m});
      if (received_team * C + m != from) schedule.receive({travelling, received_team * C + m});
    }
  };
  const auto hop_on = [&](int back, int lane, schedule::payload what) {
    exchange_bundle(next, started(back), previous, started(back + 1), lane, what);
  };

  if (C > 1) {
    // The queries' gather has until the first tile, behind the placement.
    schedule.all_gather(mates, staying, {staying_team, 2});
    schedule.all_gather(mates, travelling, {travelling_team});
    schedule.next_step();
    exchange_bundle(start, team, starts_here, started(0), placement, schedule::payload::operand);
    schedule.next_step();
  }
  for (int hop = 0; hop < turns; ++hop) {
    if (hop + 1 < turns) hop_on(hop, hops, schedule::payload::operand);
    if (partials_travel && hop > 1) hop_on(hop - 1, partial_hops, schedule::payload::partial);
    schedule.interact(team_blocks(staying, team), team_blocks(travelling, started(hop)));
    schedule.next_step();
  }
  if (partials_travel && turns > 1) {
    hop_on(turns - 1, partial_hops, schedule::payload::partial);  // back to the starting place
    schedule.next_step();
  }
  if (partials_travel && C > 1) {
    exchange_bundle(starts_here, started(0), start, team, placement,
                    schedule::payload::partial);  // the placement, undone
    schedule.next_step();
  }
  if (partials_travel) {
    // Where a starting place is the home of one of the shards, that shard's part has not come back from there.
    schedule.reduce_scatter(mates, travelling, {travelling_team},
                            [&](int from, int to) { return start_of(from) != to; });
  }
  if (schedule::has_partials(p, staying)) schedule.reduce_scatter(mates, staying, {staying_team});
  return schedule;
}

}  // namespace orrery::detail
