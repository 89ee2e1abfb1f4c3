// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

#include "orrery/topology/topology.hpp"
#include "orrery/verify/verify.hpp"

namespace orrery {

/// What `verify(topology, world, p)` says, proven once in a process: a proof is one of all ranks' programs, which ranks
/// that are threads of one process need not repeat, nor the operators of several layers.
///
/// An answer serves equal values of one topology only, the same world and the same pass (see `comparable_by_value`; a
/// topology that is not is proven in every call). Whoever asks while another thread proves a topology of the same type
/// sleeps until that is done. What the topology throws goes to the caller, and nothing is remembered then. Keeps up to
/// 64 answers for each type, with copies of their topologies.
template <topology Topology>
[[nodiscard]] verdict verify_once(const Topology& t, int world, pass p = pass::forward) {
  if constexpr (comparable_by_value<Topology>) {
    struct answer {
      Topology topology;
      int world;
      orrery::pass pass;
      verdict found;
    };
    constexpr std::size_t most = 64;
    // Never destroyed: an object in static storage may ask later.
    static auto& mutex = *new std::mutex;
    static auto& answers = *new std::vector<answer>;

    const std::lock_guard lock{mutex};
    for (const answer& known : answers) {
      if (known.world == world && known.pass == p && is_same_value(known.topology, t)) return known.found;
    }
    const verdict found = verify(t, world, p);
    if (found.found == fault::world_refused) return found;  // its reason may live no longer than t, and costs nothing
    if (answers.size() == most) answers.clear();
    answers.push_back({t, world, p, found});
    return found;
  } else {
    return verify(t, world, p);
  }
}

}  // namespace orrery
