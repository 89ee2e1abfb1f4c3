// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <stdexcept>
#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/counted.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/relabel.hpp"
#include "orrery/topology/detail/refusing_part.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery {

/// A placement says which rank does what: `ranks(topology, world, pass)` is a permutation, `ranks(...)[r]` the rank
/// that does what the topology wrote for rank r. Like a topology it is a small value; it has a `name()`, and may have
/// `const char* unsupported_reason(int world) const` (null, or the end of a message).
template <class Placement, class Topology>
concept placement = topology<Topology> && std::copy_constructible<Placement> &&
    requires(const Placement& p, const Topology& t) {
  { p.ranks(t, 1, schedule::pass::forward) } -> std::convertible_to<schedule::list<int>>;
  { p.name() } -> std::convertible_to<std::string>;
};

/// How many consecutive ranks the topology, as written, calls a team; see `rings_in_nodes`.
template <class Topology>
concept topology_of_teams = requires(const Topology& t) {
  { t.team(1) } -> std::convertible_to<int>;
};

/// Leaves ranks as the topology numbers them. All topologies here write teams (WallFacer's teams, rows, groups of an
/// all-to-all, inner rings) as consecutive ranks, which are on one node where ranks are numbered node by node: their
/// collectives stay inside nodes, and their rings go from node to node.
struct teams_in_nodes {
  [[nodiscard]] static std::string name() { return "teams_in_nodes"; }
  template <topology Topology>
  [[nodiscard]] static constexpr schedule::list<int> ranks(const Topology&, int world,
                                                           schedule::pass = schedule::pass::forward) {
    schedule::list<int> to(world);
    for (int rank = 0; rank < world; ++rank) to[rank] = rank;
    return to;
  }
};

/// The other way round: the members of the same number of all teams are consecutive ranks, so that rings stay inside
/// nodes and collectives go from node to node. With teams of T ranks, member m of team t is rank m·P/T + t.
///
/// The topology must say by `static constexpr int team(int world)` how large its teams are.
struct rings_in_nodes {
  [[nodiscard]] static std::string name() { return "rings_in_nodes"; }
  template <topology Topology>
  [[nodiscard]] static constexpr schedule::list<int> ranks(const Topology& t, int world,
                                                           schedule::pass = schedule::pass::forward) {
    static_assert(topology_of_teams<Topology>,
                  "orrery: rings_in_nodes must know how large this topology's teams are: give it `static constexpr int "
                  "team(int world)`, or place it by least_egress, which need not know");
    const int size = t.team(world);
    const int teams = world / size;
    schedule::list<int> to(world);
    for (int rank = 0; rank < world; ++rank) to[rank] = rank % size * teams + rank / size;
    return to;
  }
};

/// A topology whose ranks are placed otherwise on the machine: a topology again, with everything that topologies have.
///
///     using rings_inside = orrery::placed<orrery::wallfacer<2>, orrery::rings_in_nodes>;
///     static_assert(orrery::verify(rings_inside{}, 16));
///
///     const orrery::placed best{orrery::wallfacer<2>{}, orrery::least_egress{.ranks_per_node = ranks_per_node}};
///     orrery::traffic(best, 16).node_egress(ranks_per_node);
///     orrery::attention<std::remove_const_t<decltype(best)>, orrery::flash<float>> attend{world, shape, mask, layout,
///     best};
///
/// Relabelling ranks (see `relabel`) preserves the verdict, volumes, messages, steps and slots; what changes is which
/// of the messages leave a node. Programs take as long to write, and `Placement` its own time.
///
/// Throws `std::invalid_argument` with a message, or does not compile, where the placement is not a permutation.
template <topology Topology, class Placement>
struct placed {
  static_assert(orrery::placement<Placement, Topology>,
                "orrery: placed<Topology, Placement> needs a placement: a type with name() and ranks(topology, world, "
                "pass), which returns a list<int>; see teams_in_nodes");

  [[no_unique_address]] Topology topology{};
  [[no_unique_address]] Placement placement{};

  [[nodiscard]] std::string name() const { return "placed<" + name_of(topology) + "," + placement.name() + ">"; }
  [[nodiscard]] constexpr const char* unsupported_reason(int world, schedule::pass p = schedule::pass::forward) const {
    if (const char* reason = orrery::unsupported_reason(topology, world, p)) return reason;
    if constexpr (requires { placement.unsupported_reason(world); }) return placement.unsupported_reason(world);
    return nullptr;
  }
  [[nodiscard]] constexpr const char* pairs_left_out() const { return detail::pairs_left_out(topology); }
  [[nodiscard]] constexpr bool has_unsupported_reason() const { return detail::has_unsupported_reason(topology); }
  [[nodiscard]] constexpr detail::refusing_part refusing_part(int world, schedule::pass p) const {
    if (orrery::unsupported_reason(topology, world, p) == nullptr) return {};  // it is the placement that refuses
    return detail::refusing_part_of(topology, world, p);
  }
  [[nodiscard]] constexpr int slices(int world) const { return slices_of(topology, world); }
  [[nodiscard]] constexpr int chunks() const { return detail::chunks_of(topology); }

  /// The topology's, its coordinates in the other order where rings are in nodes.
  [[nodiscard]] constexpr schedule::list<int> symmetric_grid(int world) const {
    schedule::list<int> extents;
    if constexpr (std::same_as<Placement, teams_in_nodes> || std::same_as<Placement, rings_in_nodes>) {
      const schedule::list<int> written = detail::symmetric_grid_of(topology, world);
      int team = 1;
      if constexpr (std::same_as<Placement, rings_in_nodes>) team = topology.team(world);
      int in_team = 0, ranks = 1;
      while (in_team < written.size() && ranks < team) ranks *= written[in_team++];
      if (ranks != team) return extents;
      for (int i = in_team; i < written.size(); ++i) extents.push_back(written[i]);
      for (int i = 0; i < in_team; ++i) extents.push_back(written[i]);
    }
    return extents;
  }
  /// Where each rank of the topology goes. The world must be admitted.
  [[nodiscard]] constexpr schedule::list<int> ranks(int world, schedule::pass p = schedule::pass::forward) const {
    schedule::list<int> to = placement.ranks(topology, world, p);
    schedule::list<int> taken(world);
    bool all = to.size() == world;
    for (int rank = 0; all && rank < world; ++rank) all = to[rank] >= 0 && to[rank] < world && ++taken[to[rank]] == 1;
    if (!all) {
      throw std::invalid_argument{"orrery: " + name() + " over " + detail::counted_ranks(world) +
                                  ": the placement is not a permutation; it must give every rank from 0 to " +
                                  std::to_string(world - 1) + " once"};
    }
    return to;
  }

  [[nodiscard]] constexpr orrery::schedule::program program(int rank, int world) const
      requires(!topology_with_backward<Topology>) {
    return written(rank, world, schedule::pass::forward);
  }
  [[nodiscard]] constexpr orrery::schedule::program program(int rank, int world, schedule::pass p) const requires
      topology_with_backward<Topology> {
    return written(rank, world, p);
  }
  [[nodiscard]] constexpr bool operator==(const placed& other) const
      requires(comparable_by_value<Topology>&& comparable_by_value<Placement>) {
    return detail::is_same_value(topology, other.topology) && detail::is_same_value(placement, other.placement);
  }
  [[nodiscard]] constexpr schedule::list<orrery::schedule::program> programs(int world, schedule::pass p) const {
    return schedule::relabel(detail::unallocated_programs(topology, world, p), ranks(world, p));
  }

 private:
  [[nodiscard]] constexpr orrery::schedule::program written(int rank, int world, schedule::pass p) const {
    const schedule::list<int> to = ranks(world, p);
    int role = 0;
    while (to[role] != rank) ++role;
    return schedule::relabel(detail::unallocated_program(topology, role, world, p), to);
  }
};

template <topology Topology, class Placement>
placed(Topology, Placement) -> placed<Topology, Placement>;

}  // namespace orrery
