// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "orrery/orrery.hpp"

namespace bench {

/// Any topology, chosen at run time and placed on nodes: one operator serves them all.
struct candidate {
  std::string title;
  orrery::program (*write)(int rank, int world, orrery::pass p) = nullptr;
  const char* (*refused)(int world, orrery::pass p) = nullptr;
  int (*sliced)(int world) = nullptr;
  int (*of_team)(int world) = nullptr;
  std::string placement = "teams";
  int ranks_per_node = 1;
  double query_heads_per_key_head = 1;

  [[nodiscard]] std::string name() const { return title + " placed " + placement; }
  [[nodiscard]] const char* refuses(int world, orrery::pass p) const { return refused(world, p); }
  [[nodiscard]] int slices(int world) const { return sliced(world); }
  [[nodiscard]] int team(int world) const { return of_team(world); }
  [[nodiscard]] orrery::program program(int rank, int world, orrery::pass p) const {
    if (placement == "teams") return write(rank, world, p);
    return programs(world, p)[rank];
  }
  [[nodiscard]] orrery::list<orrery::program> programs(int world, orrery::pass p) const {
    orrery::list<orrery::program> all(world);
    for (int rank = 0; rank < world; ++rank) all[rank] = write(rank, world, p);
    if (placement == "teams") return all;
    candidate as_written = *this;
    as_written.placement = "teams";
    if (placement == "rings") return relabel(all, orrery::rings_in_nodes{}.ranks(as_written, world, p));
    return relabel(all, orrery::least_egress{ranks_per_node, query_heads_per_key_head}.ranks(as_written, world, p));
  }
};

template <class Topology>
candidate candidate_of() {
  return {orrery::name_of(Topology{}),
          [](int rank, int world, orrery::pass p) { return orrery::draft_of(Topology{}, rank, world, p); },
          [](int world, orrery::pass p) { return orrery::refuses(Topology{}, world, p); },
          [](int world) { return orrery::slices_of(Topology{}, world); },
          [](int world) { return Topology{}.team(world); }};
}

template <class... Topologies>
std::vector<candidate> candidates_of() {
  return {candidate_of<Topologies>()...};
}

inline std::vector<candidate> all_candidates() {
  using namespace orrery;
  return candidates_of<ring, all_gather, double_ring<2>, double_ring<3>, double_ring<4>, double_ring<8>, wallfacer<2>,
                       wallfacer<3>, wallfacer<4>, concentric<2>, concentric<3>, concentric<4>, concentric<8>,
                       concentric<2, 2>, concentric<2, 4>, concentric<3, 3>, concentric<4, 2>, concentric<4, 4>,
                       ulysses, usp<2>, usp<3>, usp<4>, usp<8>, all_to_all<2, concentric<2>>,
                       all_to_all<4, concentric<2>>>();
}

/// Empty, or the end of a sentence that says why a call cannot have this topology.
inline std::string refusal(const candidate& c, int world, int query_heads, const std::vector<orrery::pass>& passes) {
  for (const orrery::pass p : passes) {
    if (const char* reason = c.refuses(world, p)) return "over " + std::to_string(world) + " ranks " + reason;
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
