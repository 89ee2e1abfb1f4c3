// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <mutex>
#include <vector>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/schedule_digest.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/verify/verdict.hpp"
#include "orrery/verify/verify.hpp"

namespace orrery::detail {

/// What a proof says, and of which schedule.
struct proven_schedule {
  verdict found;
  schedule_digest digest;
};

/// What `verify(topology, world, p)` says, and the schedule's digest, proven once in a process: a proof is one of all
/// ranks' programs, which ranks that are threads of one process need not repeat, nor the operators of several layers.
///
/// An answer serves equal values of one topology only, the same world and the same pass (see `comparable_by_value`; a
/// topology that is not is proven in every call, unless it is one shared `any_topology`). Whoever asks while another
/// thread proves a topology sleeps until that is done. What the topology throws goes to the caller, and nothing is
/// remembered then. Keeps up to 64 answers, with copies of their topologies.
[[nodiscard]] inline proven_schedule prove_once(const any_topology& t, int world, pass p = pass::forward) {
  struct answer {
    any_topology topology;
    int world = 0;
    orrery::schedule::pass pass = orrery::schedule::pass::forward;
    proven_schedule proven;
  };
  constexpr std::size_t most = 64;
  // Never destroyed: an object in static storage may ask later.
  static auto& mutex = *new std::mutex;
  static auto& answers = *new std::vector<answer>;

  proven_schedule proven;
  if (!t.may_equal_another()) {
    proven.found = verify(t, world, p, &proven.digest);
    return proven;
  }
  const std::lock_guard lock{mutex};
  for (const answer& known : answers) {
    if (known.world == world && known.pass == p && known.topology == t) return known.proven;
  }
  proven.found = verify(t, world, p, &proven.digest);
  if (proven.found.reason != nullptr) return proven;  // it may live no longer than t: not kept
  if (answers.size() == most) answers.clear();
  answers.push_back({t, world, p, proven});
  return proven;
}

/// What `verify(topology, world, p)` says, proven once in a process (see `prove_once`).
[[nodiscard]] inline verdict verify_once(const any_topology& t, int world, pass p = pass::forward) {
  return prove_once(t, world, p).found;
}

}  // namespace orrery::detail
