// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/concentric.hpp"

namespace orrery {

/// The baseline: everyone gathers all keys, then computes its queries' rows at once. Any world. Best for short
/// sequences, where latency counts and memory does not.
///
/// Sends per rank, forward, in shard units: 2(P-1) in P-1 direct messages of one step. Backward: 4(P-1), or 3(P-1) when
/// queries are gathered instead. Slots: P-1 keys.
struct all_gather {
  [[nodiscard]] static std::string name() { return "all_gather"; }
  [[nodiscard]] static constexpr int team(int) { return 1; }
  [[nodiscard]] static constexpr schedule::list<int> symmetric_grid(int world) {
    return detail::concentric_grid(world, 1, world);
  }
  [[nodiscard]] static constexpr orrery::schedule::program program(int rank, int world,
                                                                   schedule::pass p = schedule::pass::forward) {
    return detail::concentric_program(rank, world, 1, world, p);
  }
};

}  // namespace orrery
