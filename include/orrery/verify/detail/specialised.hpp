// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "orrery/schedule/detail/schedule_digest.hpp"
#include "orrery/schedule/relation.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/verify/detail/verify_once.hpp"
#include "orrery/verify/verify.hpp"

namespace orrery::detail {

/// A topology's schedule for the pairs of a relation.
struct specialised_schedule {
  verdict found;
  schedule_digest digest;
  /// The finished programs of all ranks. Null: those that the topology writes.
  std::shared_ptr<const list<program>> programs;
};

/// Writes the schedule for these pairs, and proves it.
[[nodiscard]] inline specialised_schedule specialise(const any_topology& t, int world, pass p,
                                                     const schedule::relation& visible) {
  specialised_schedule made;
  auto programs = std::make_shared<list<program>>(programs_of(t, world, p));
  made.found = verify(*programs, visible);
  if (!made.found.ok()) made.found = of_topology(made.found, t, true);
  for (const program& one : *programs) made.digest.add_remarks(one), made.digest.add(one);
  made.programs = std::move(programs);
  return made;
}

/// The schedule that an operator runs for these pairs: the topology's own where all pairs are visible (see
/// `prove_once`), else the one that `specialise` makes of it, once in a process for equal arguments. The world must be
/// admitted.
///
/// Ranks that are threads share the programs. Whoever asks while another thread makes a schedule sleeps until that is
/// done. Keeps up to 16 schedules.
[[nodiscard]] inline specialised_schedule specialise_once(const any_topology& t, int world, pass p,
                                                          const schedule::relation& visible) {
  if (visible.chunks() == 1 && visible.is_full()) {
    const proven_schedule proven = prove_once(t, world, p);
    return {proven.found, proven.digest, nullptr};
  }
  struct answer {
    any_topology topology;
    orrery::schedule::pass pass;
    schedule::relation visible;
    specialised_schedule made;
  };
  constexpr std::size_t most = 16;
  // Never destroyed: an object in static storage may ask later.
  static auto& mutex = *new std::mutex;
  static auto& answers = *new std::vector<answer>;

  if (!t.may_equal_another()) return specialise(t, world, p, visible);
  const std::lock_guard lock{mutex};
  for (const answer& known : answers) {
    if (known.pass == p && known.topology == t && known.visible == visible) return known.made;
  }
  specialised_schedule made = specialise(t, world, p, visible);
  if (made.found.reason != nullptr) return made;  // it may live no longer than t: not kept
  if (answers.size() == most) answers.erase(answers.begin());
  answers.push_back({t, p, visible, made});
  return made;
}

}  // namespace orrery::detail
