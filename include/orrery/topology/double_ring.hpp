// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// The schedule behind `double_ring`, with I known at run time. I must divide the world.
[[nodiscard]] constexpr schedule::program double_ring_program(int rank, int world, int I, schedule::pass p);

/// Inner rings, and the outer one.
[[nodiscard]] constexpr list<int> double_ring_grid(int world, int I) {
  list<int> extents;
  extents.push_back(I);
  extents.push_back(world / I);
  return extents;
}

/// Null, or why `double_ring` refuses the world.
[[nodiscard]] constexpr const char* double_ring_refusal(int world, int I) {
  return world % I == 0 ? nullptr : "needs a world that I divides: choose I from the world's divisors, or ring";
}

}  // namespace orrery::detail

namespace orrery {

/// Inner rings of I consecutive ranks inside an outer ring of P/I (arXiv 2406.18485): the keys of one outer group turn
/// once through the inner ring while the keys of the next group arrive behind that whole turn, so that the slow links
/// between groups have I steps for each hop. I must divide P. `double_ring<1>` and `double_ring<P>` are `ring`.
///
/// Sends per rank, forward, in shard units: 2(P-1), of which 2(P/I-1) between groups. Backward 4(P-1) or 3(P-1), as for
/// `ring`. Slots: 4 keys, one of them on its way out and one on its way in for a whole turn.
template <int I>
struct double_ring {
  static_assert(I >= 1, "orrery: double_ring<I> needs inner rings of I >= 1 ranks");

  [[nodiscard]] static std::string name() { return "double_ring<" + std::to_string(I) + ">"; }
  [[nodiscard]] static constexpr const char* unsupported_reason(int world) {
    return detail::double_ring_refusal(world, I);
  }
  [[nodiscard]] static constexpr int team(int) { return I; }
  [[nodiscard]] static constexpr schedule::list<int> symmetric_grid(int world) {
    return detail::double_ring_grid(world, I);
  }

  [[nodiscard]] static constexpr orrery::schedule::program program(int rank, int world,
                                                                   schedule::pass p = schedule::pass::forward) {
    return detail::double_ring_program(rank, world, I, p);
  }
};

}  // namespace orrery

namespace orrery::detail {

[[nodiscard]] constexpr schedule::program double_ring_program(int rank, int world, int I, schedule::pass p) {
  // With inner rings of one rank the outer ring is the ring; its lanes are then numbered alike.
  const int inner_hops = 0;
  const int inner_partials = 1;
  const int outer_hops = I > 1 ? 2 : 0;
  const int outer_partials = I > 1 ? 3 : 1;
  const schedule::side travelling = schedule::travelling_side(p);
  const bool partials_travel = schedule::has_partials(p, travelling);
  const int turns = world / I;
  const int group = rank / I;
  const int place = rank % I;
  const auto in_group = [&](int g, int i) { return (g % turns + turns) % turns * I + (i % I + I) % I; };
  const int inner_next = in_group(group, place + 1);
  const int inner_previous = in_group(group, place - 1);
  const int outer_next = in_group(group + 1, place);
  const int outer_previous = in_group(group - 1, place);
  schedule::builder schedule{rank, world, p};
  // What this rank holds in hop `hop` of turn `turn` goes on.
  const auto inner_hop = [&](int turn, int hop, int lane, schedule::payload what) {
    schedule.begin_exchange(inner_next, inner_previous, {lane}, what);
    schedule.send({travelling, in_group(group - turn, place - hop)});
    schedule.receive({travelling, in_group(group - turn, place - hop - 1)});
  };
  const auto outer_hop = [&](int turn, int lane, int steps, schedule::payload what) {
    schedule.begin_exchange(outer_next, outer_previous, {lane, steps}, what);
    schedule.send({travelling, in_group(group - turn, place)});
    schedule.receive({travelling, in_group(group - turn - 1, place)});
  };
  // The gradient of a shard gathers in the inner ring's turn and is complete there one hop after the turn's end (at
  // once in a ring of one); then it goes on to the next group, behind that group's turn.
  const int return_hops = I > 1 ? 1 : 0;

  const int steps = turns * I + return_hops + 1;
  for (int now = 0; now < steps; ++now) {
    const int turn = now / I;
    const int hop = now % I;
    if (hop == 0 && turn + 1 < turns) outer_hop(turn, outer_hops, I, schedule::payload::operand);
    if (turn < turns && hop + 1 < I) inner_hop(turn, hop, inner_hops, schedule::payload::operand);
    if (partials_travel) {
      const int before = now - 1;
      if (before >= 0 && before / I < turns && before % I > 0) {
        inner_hop(before / I, before % I, inner_partials, schedule::payload::partial);
      }
      const int complete = now - return_hops;
      if (complete > 0 && complete % I == 0 && complete / I > 1 && complete / I <= turns) {
        const int last_turn = complete / I == turns ? 1 : I;
        outer_hop(complete / I - 1, outer_partials, last_turn, schedule::payload::partial);
      }
    }
    if (turn < turns)
      schedule.interact({schedule::other_side(travelling), rank}, {travelling, in_group(group - turn, place - hop)});
    schedule.next_step();
  }
  return schedule;
}

}  // namespace orrery::detail
