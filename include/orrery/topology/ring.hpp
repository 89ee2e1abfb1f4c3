// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/concentric.hpp"

namespace orrery {

/// Ring attention (arXiv 2310.01889): each rank keeps its queries, and keys travel from neighbour to neighbour behind
/// the computation. Any world.
///
/// Sends per rank, forward, in shard units: 2(P-1) in P-1 messages. Backward: 4(P-1) when keys and their gradients
/// circulate, 3(P-1) when queries do (arXiv 2403.09347). The gradient of a shard visits P-1 neighbours and then comes
/// home; its home adds its own part there, which saves one hop of the usual P. Slots: 2 keys, whatever P is.
struct ring {
  [[nodiscard]] static std::string name() { return "ring"; }
  [[nodiscard]] static constexpr int team(int) { return 1; }
  [[nodiscard]] static constexpr schedule::list<int> symmetric_grid(int world) {
    return detail::concentric_grid(world, 1, 1);
  }
  [[nodiscard]] static constexpr orrery::schedule::program program(int rank, int world,
                                                                   schedule::pass p = schedule::pass::forward) {
    return detail::concentric_program(rank, world, 1, 1, p);
  }
};

}  // namespace orrery
