// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/detail/refusing_part.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery::detail {

/// The place of an inner schedule in that of `all_to_all` (see `builder::repeat`): its rank g is the member of group g
/// that has this rank's index there, its shard G the U shards of group G.
struct place_in_groups {
  int own;  ///< this rank
  int world;
  int U;
  int inner_slices;

  [[nodiscard]] constexpr int rank(int group) const noexcept { return group * U + own % U; }
  /// A group that is the whole world begins with its rank's own shard, so that all ranks' programs are alike.
  [[nodiscard]] constexpr blocks blocks_of(const block& b) const noexcept {
    return {b.side, U == world ? own : b.shard * U, U, 1, own % U * inner_slices + b.slice};
  }
};

/// The schedule behind `all_to_all` and `ulysses`, with U known at run time; `within` is the inner topology's program
/// for this rank's group. U must divide the world.
[[nodiscard]] constexpr program all_to_all_program(const program& within, int rank, int world, int U) {
  const pass p = within.pass;
  const int group = rank / U;
  const int member = rank % U;
  const int first = group * U;
  const int inner_slices = within.slices;
  builder schedule{rank, world, p, U * inner_slices};

  // Member m of each group works on slices [m * inner_slices, (m + 1) * inner_slices) of the group's whole sequence.
  const auto slices_of_member = [&](side s, int shard, int m) {
    return blocks{s, shard, 1, 1, m * inner_slices, inner_slices};
  };

  if (U > 1) {
    for (int distance = 1; distance < U; ++distance) {
      const int to = (member + distance) % U;
      const int from = (member + U - distance) % U;
      schedule.begin_exchange(first + to, first + from);
      schedule.send(slices_of_member(side::query, rank, to));
      schedule.send(slices_of_member(side::key, rank, to));
      schedule.receive(slices_of_member(side::query, first + from, member));
      schedule.receive(slices_of_member(side::key, first + from, member));
    }
    schedule.mark_collective(collective_kind::all_to_all, {first, U}, 0);
    schedule.next_step();
  }

  const place_in_groups lifted{rank, world, U, inner_slices};
  for (int i = 0; i < within.steps.size(); ++i) {
    schedule.repeat(within, i, lifted);
    schedule.next_step();
  }

  if (U > 1) {
    const int transposition = schedule.exchanges_so_far();
    for (int distance = 1; distance < U; ++distance) {
      const int to = (member + distance) % U;
      const int from = (member + U - distance) % U;
      schedule.begin_exchange(first + to, first + from, {}, payload::partial);
      schedule.send(slices_of_member(side::query, first + to, member));
      schedule.receive(slices_of_member(side::query, rank, from));
      if (p == pass::forward) continue;
      schedule.send(slices_of_member(side::key, first + to, member));
      schedule.receive(slices_of_member(side::key, rank, from));
    }
    schedule.mark_collective(collective_kind::all_to_all, {first, U}, transposition);
  }
  return schedule;
}

/// Groups, and the grid across them; empty if that is.
[[nodiscard]] constexpr list<int> all_to_all_grid(int U, const list<int>& across) {
  list<int> extents;
  if (across.empty()) return extents;
  extents.push_back(U);
  for (const int extent : across) extents.push_back(extent);
  return extents;
}

/// Null, or why `all_to_all` refuses the world, whatever its inner topology says.
[[nodiscard]] constexpr const char* all_to_all_refusal(int world, int U) {
  return world % U == 0 ? nullptr : "needs a world that U divides: choose U from the world's divisors, or ring";
}

}  // namespace orrery::detail

namespace orrery {

/// Head parallelism (DeepSpeed-Ulysses, arXiv 2309.14509) around any topology: within groups of U consecutive ranks,
/// shards × heads are transposed, so that each rank owns 1/U of the heads over the group's whole sequence; `Inner` runs
/// across the P/U groups; the outputs are transposed back. U must divide P, and Inner must admit P/U. All-to-alls nest.
///
/// Sends per rank, forward, in shard units: 4(U-1)/U and, for each unit that Inner sends, that unit (its shards are U
/// times as long and 1/U as wide). The heads need not divide by U: slices are then uneven, and a key head goes to every
/// slice that has one of its query heads. `all_to_all<1, Inner>` is Inner.
template <int U, topology Inner = ring>
struct all_to_all {
  static_assert(U >= 1, "orrery: all_to_all<U, Inner> needs groups of U >= 1 ranks");

  [[nodiscard]] static std::string name() { return "all_to_all<" + std::to_string(U) + "," + name_of(Inner{}) + ">"; }
  [[nodiscard]] static constexpr const char* unsupported_reason(int world, schedule::pass p = schedule::pass::forward) {
    if (const char* reason = detail::all_to_all_refusal(world, U)) return reason;
    return orrery::unsupported_reason(Inner{}, world / U, p);
  }
  [[nodiscard]] static constexpr const char* pairs_left_out() { return detail::pairs_left_out(Inner{}); }
  [[nodiscard]] static constexpr bool has_unsupported_reason() {
    return U > 1 || detail::has_unsupported_reason(Inner{});
  }
  [[nodiscard]] static constexpr detail::refusing_part refusing_part(int world, schedule::pass p) {
    if (world < 1 || world % U != 0) return {};
    const detail::refusing_part inner = detail::refusing_part_of(Inner{}, world / U, p);
    if (inner.name != nullptr) return inner;
    return {&detail::name_of_type<Inner>, world / U};
  }
  [[nodiscard]] static constexpr int slices(int world) { return U * slices_of(Inner{}, world / U); }
  [[nodiscard]] static constexpr schedule::list<int> symmetric_grid(int world) {
    return detail::all_to_all_grid(U, detail::symmetric_grid_of(Inner{}, world / U));
  }
  [[nodiscard]] static constexpr int team(int world) requires(requires { Inner{}.team(1); }) {
    return U * Inner{}.team(world / U);
  }
  [[nodiscard]] static constexpr orrery::schedule::program program(int rank, int world,
                                                                   schedule::pass p = schedule::pass::forward) {
    return detail::all_to_all_program(detail::unallocated_program(Inner{}, rank / U, world / U, p), rank, world, U);
  }
  [[nodiscard]] static constexpr schedule::list<orrery::schedule::program> programs(
      int world, schedule::pass p) requires(!detail::writes_each_rank_alone<Inner>(schedule::pass::circulate_keys)) {
    const schedule::list<orrery::schedule::program> within = detail::unallocated_programs(Inner{}, world / U, p);
    schedule::list<orrery::schedule::program> all(world);
    for (int rank = 0; rank < world; ++rank) all[rank] = detail::all_to_all_program(within[rank / U], rank, world, U);
    return all;
  }
};

/// DeepSpeed-Ulysses (arXiv 2309.14509): all_to_all over the whole world. Sends per rank, forward, in shard units:
/// 4(P-1)/P, less than any other topology, but it needs at least as many query heads as ranks.
struct ulysses {
  [[nodiscard]] static std::string name() { return "ulysses"; }
  [[nodiscard]] static constexpr int slices(int world) { return world; }
  [[nodiscard]] static constexpr int team(int world) { return world; }
  [[nodiscard]] static constexpr schedule::list<int> symmetric_grid(int world) {
    return detail::concentric_grid(world, 1, world);
  }
  [[nodiscard]] static constexpr orrery::schedule::program program(int rank, int world,
                                                                   schedule::pass p = schedule::pass::forward) {
    return detail::all_to_all_program(ring::program(0, 1, p), rank, world, world);
  }
};

/// USP (arXiv 2405.07719): Ulysses within groups of U ranks, a ring across the groups.
template <int U>
struct usp : all_to_all<U, ring> {
  [[nodiscard]] static std::string name() { return "usp<" + std::to_string(U) + ">"; }
};

}  // namespace orrery
