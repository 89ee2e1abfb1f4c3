// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/refine.hpp"
#include "orrery/topology/detail/refusing_part.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery::detail {

/// A topology whose shards are cut into chunks: a topology again. Its programs keep their symmetry, so that a proof
/// looks at the first period alone, as one of the topology itself does:
///
///     static_assert(orrery::verify(orrery::detail::refined{orrery::ring{}, 2}, 64));
template <topology Topology>
struct refined {
  [[no_unique_address]] Topology topology{};
  int into = 1;

  [[nodiscard]] constexpr int chunks() const { return into * chunks_of(topology); }
  [[nodiscard]] std::string name() const {
    return name_of(topology) + " in " + std::to_string(into) + (into == 1 ? " chunk" : " chunks");
  }
  [[nodiscard]] constexpr const char* unsupported_reason(int world, pass p = pass::forward) const {
    return orrery::unsupported_reason(topology, world, p);
  }
  [[nodiscard]] constexpr bool has_unsupported_reason() const { return detail::has_unsupported_reason(topology); }
  [[nodiscard]] constexpr detail::refusing_part refusing_part(int world, pass p) const {
    return detail::refusing_part_of(topology, world, p);
  }
  [[nodiscard]] constexpr int slices(int world) const { return slices_of(topology, world); }

  [[nodiscard]] constexpr orrery::program program(int rank, int world) const
      requires(!topology_with_backward<Topology>) {
    if (into == 1) return topology.program(rank, world);
    return refine(topology.program(rank, world), into);
  }
  [[nodiscard]] constexpr orrery::program program(int rank, int world,
                                                  pass p) const requires topology_with_backward<Topology> {
    if (into == 1) return topology.program(rank, world, p);
    return refine(topology.program(rank, world, p), into);
  }
  [[nodiscard]] constexpr list<orrery::program> programs(int world, pass p) const
      requires(!writes_each_rank_alone<Topology>(pass::circulate_keys)) {
    if (into == 1) return unallocated_programs(topology, world, p);
    return refine(unallocated_programs(topology, world, p), into);
  }
  [[nodiscard]] constexpr bool operator==(const refined& other) const requires(comparable_by_value<Topology>) {
    return into == other.into && is_same_value(topology, other.topology);
  }
};

template <topology Topology>
refined(Topology, int) -> refined<Topology>;

}  // namespace orrery::detail
