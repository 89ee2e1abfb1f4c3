// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/placed.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/tune/least_egress.hpp"

namespace bench {

/// A topology, placed on nodes.
struct candidate {
  orrery::any_topology as_written;
  std::string placement = "teams";
  int ranks_per_node = 1;
  double query_heads_per_key_head = 1;
  double sum_width = 1;

  [[nodiscard]] std::string title() const { return as_written.name(); }
  [[nodiscard]] std::string name() const { return title() + " placed " + placement; }
  [[nodiscard]] const char* unsupported_reason(int world, orrery::pass p) const {
    return as_written.unsupported_reason(world, p);
  }
  [[nodiscard]] int slices(int world) const { return as_written.slices(world); }
  [[nodiscard]] orrery::program program(int rank, int world, orrery::pass p) const {
    if (placement == "teams") return as_written.program(rank, world, p);
    return programs(world, p)[rank];
  }
  [[nodiscard]] orrery::schedule::list<orrery::program> programs(int world, orrery::pass p) const {
    if (placement == "teams") return as_written.programs(world, p);
    if (placement == "rings") return orrery::placed{as_written, orrery::rings_in_nodes{}}.programs(world, p);
    const orrery::least_egress placement_of{ranks_per_node, query_heads_per_key_head, sum_width};
    return orrery::placed{as_written, placement_of}.programs(world, p);
  }
};

inline std::vector<candidate> all_candidates() {
  using namespace orrery;
  using namespace orrery::schedule;
  std::vector<candidate> all;
  for (const any_topology& each : std::vector<any_topology>{ring{},
                                                            all_gather{},
                                                            double_ring<2>{},
                                                            double_ring<3>{},
                                                            double_ring<4>{},
                                                            double_ring<8>{},
                                                            wallfacer<2>{},
                                                            wallfacer<3>{},
                                                            wallfacer<4>{},
                                                            concentric<2>{},
                                                            concentric<3>{},
                                                            concentric<4>{},
                                                            concentric<8>{},
                                                            concentric<2, 2>{},
                                                            concentric<2, 4>{},
                                                            concentric<3, 3>{},
                                                            concentric<4, 2>{},
                                                            concentric<4, 4>{},
                                                            ulysses{},
                                                            usp<2>{},
                                                            usp<3>{},
                                                            usp<4>{},
                                                            usp<8>{},
                                                            all_to_all<2, concentric<2>>{},
                                                            all_to_all<4, concentric<2>>{}}) {
    all.push_back({each});
  }
  return all;
}

/// Empty, or the end of a message that says why a call cannot have this topology.
inline std::string refusal(const candidate& c, int world, int query_heads, const std::vector<orrery::pass>& passes) {
  for (const orrery::pass p : passes) {
    if (const char* reason = c.unsupported_reason(world, p))
      return "over " + orrery::detail::counted_ranks(world) + " " +
             orrery::detail::refusing_part_of(c.as_written, world, p).text() + reason;
  }
  if (c.slices(world) > query_heads) {
    return "cuts the heads into " + std::to_string(c.slices(world)) + " slices, but there are " +
           std::to_string(query_heads) + " query heads";
  }
  return "";
}

/// Do two topologies write the same programs?
inline bool same_schedule(const candidate& a, const candidate& b, int world, const std::vector<orrery::pass>& passes) {
  if (a.slices(world) != b.slices(world)) return false;
  for (const orrery::pass p : passes) {
    for (int rank = 0; rank < world; ++rank) {
      orrery::program one = a.program(rank, world, p);
      orrery::program other = b.program(rank, world, p);
      one.collectives = {};
      other.collectives = {};
      if (!(one == other)) return false;
    }
  }
  return true;
}

/// Those that the world admits, without those that are an earlier one under another name.
inline std::vector<candidate> admitted(int world, int query_heads, const std::vector<orrery::pass>& passes) {
  std::vector<candidate> chosen;
  for (const candidate& c : all_candidates()) {
    if (!refusal(c, world, query_heads, passes).empty()) continue;
    bool known = false;
    for (const candidate& earlier : chosen) known = known || same_schedule(c, earlier, world, passes);
    if (!known) chosen.push_back(c);
  }
  return chosen;
}

}  // namespace bench
