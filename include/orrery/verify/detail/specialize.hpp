// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/schedule_digest.hpp"
#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/prune.hpp"
#include "orrery/schedule/refine.hpp"
#include "orrery/schedule/relation.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/detail/refined.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/verify/detail/verify_once.hpp"
#include "orrery/verify/verdict.hpp"
#include "orrery/verify/verify.hpp"

namespace orrery::detail {

/// What became of a schedule that was to be specialized.
enum class specialization : std::uint8_t {
  pruned,     ///< it computes the visible pairs, and moves what these need
  unchanged,  ///< it is as the topology writes it, since what pruning made of it could not be proven
  too_many    ///< it is as the topology writes it, since its programs name too many blocks to prune them
};

/// The schedule of a world for a relation, and its proof.
struct specialized_schedule {
  list<program> programs;  ///< of all ranks, finished; none if there are too many blocks
  verdict found;           ///< of `programs`, for the relation; if there are too many blocks: of all pairs
  specialization outcome = specialization::pruned;
  schedule_digest digest;        ///< for ranks to compare
  std::int64_t block_names = 0;  ///< that the programs of all ranks had before, as far as they were counted
};

/// The most blocks that the unpruned programs of all ranks may name: twice what those of a ring of 1024 ranks do. It
/// bounds time and memory at plan time, on every process: about a second and 500 MB for a ring of 1024 ranks.
inline constexpr std::int64_t most_pruned_blocks = std::int64_t{1} << 23;

/// How many blocks a program names: in its messages and in its tiles.
[[nodiscard]] constexpr std::int64_t block_names(const program& p) noexcept {
  return std::int64_t{p.sent.count} + p.received.count + p.queries.count + p.keys.count;
}

/// Into how many chunks shards that are not cut must be cut for a relation; 1 if the relation is one of the programs.
[[nodiscard]] constexpr int chunks_to_cut(const list<program>& unpruned, int world, const relation& visible) noexcept {
  return !unpruned.empty() && unpruned[0].chunks == 1 && visible.world() == world ? visible.chunks() : 1;
}

/// Prunes the programs of all ranks for a relation, allocates their slots and proves them. `unpruned` is as topologies
/// write it. If the relation is one of chunks, shards are cut into these (see `refine`), after they were pruned whole,
/// which costs less.
///
/// Where the proof of what was pruned fails, tries without shortcuts, then without pruning: what is not right is
/// refused in the terms of its author, and a mistake of the pass costs traffic alone. With more blocks than `ceiling`,
/// returns no programs and no proof.
[[nodiscard]] constexpr specialized_schedule specialize(const list<program>& unpruned, const relation& visible,
                                                        std::int64_t ceiling = most_pruned_blocks) {
  specialized_schedule made;
  for (const program& p : unpruned) made.block_names += block_names(p);
  if (made.block_names > ceiling) {
    made.outcome = specialization::too_many;
    return made;
  }
  const int chunks = chunks_to_cut(unpruned, unpruned.count, visible);
  list<program> whole;  // pruned for whole shards
  if (chunks > 1) {
    whole = prune(unpruned, visible.coarse());
    std::int64_t names = 0;
    for (const program& p : whole) names += block_names(p);
    if (names > ceiling / chunks) {
      made.outcome = specialization::too_many;
      return made;
    }
  }
  const auto is_right = [&](list<program> programs) {
    for (program& p : programs) finish(p);
    made.programs = static_cast<list<program>&&>(programs);
    made.found = verify(made.programs, visible);
    return made.found.ok();
  };
  if (chunks > 1) {
    if (!is_right(prune(refine(whole, chunks), visible)) &&
        !is_right(prune(refine(unpruned, chunks), visible, shortcuts::no))) {
      is_right(refine(unpruned, chunks));
      made.outcome = specialization::unchanged;
    }
  } else if (unpruned.empty() || !is_of_world(visible, unpruned.count, unpruned[0].chunks) ||
             (!is_right(prune(unpruned, visible)) && !is_right(prune(unpruned, visible, shortcuts::no)))) {
    is_right(unpruned);
    made.outcome = specialization::unchanged;
  }
  for (const program& p : made.programs) made.digest.add_remarks(p);
  for (const program& p : made.programs) made.digest.add(p);
  return made;
}

/// The same of a topology's schedule. Writes the programs of no more ranks than the ceiling admits, unless the topology
/// writes all ranks together. With too many blocks, proves the schedule for every pair, as `verify(t, world, p)` does:
/// then each rank runs `program_of(t, rank, world, p)`, or that of `refined{t, visible.chunks()}`.
[[nodiscard]] inline specialized_schedule specialize(const any_topology& t, int world, pass p, const relation& visible,
                                                     std::int64_t ceiling = most_pruned_blocks) {
  specialized_schedule made;
  if (const char* reason = unsupported_reason(t, world, p)) {
    made.found = refused_world(world, reason);
    made.found.refused_part = refusing_part_of(t, world, p);
    return made;
  }
  list<program> unpruned;
  if (writes_each_rank_alone(t, p)) {
    unpruned.reserve(world);
    std::int64_t names = 0;
    for (int rank = 0; rank < world && names <= ceiling; ++rank) {
      unpruned.push_back(unallocated_program(t, rank, world, p));
      names += block_names(unpruned.back());
    }
  } else {
    unpruned = unallocated_programs(t, world, p);
  }
  const int written = unpruned.count;
  for (int rank = 0; rank < written; ++rank) {
    const program& one = unpruned[rank];
    if (one.rank == rank && one.world == world && one.pass == p && one.slices == slices_of(t, world) &&
        one.chunks == t.chunks())
      continue;
    made.found = program_of_other(world, rank);
    return made;
  }
  made = specialize(unpruned, visible, ceiling);
  if (made.outcome == specialization::too_many) {
    const int chunks = chunks_to_cut(unpruned, world, visible);
    const proven_schedule whole =
        chunks == 1 ? prove_once(t, world, p) : prove_once(refined<any_topology>{t, chunks}, world, p);
    made.found = whole.found;
    made.digest = whole.digest;
  } else if (!made.found.ok()) {
    made.found = of_topology(made.found, t, true);
  }
  return made;
}

/// The same, once in a process: for ranks that are threads of it, and for the operators of several layers. See
/// `prove_once`. Keeps up to 16 schedules, and no more than 2 * `most_pruned_blocks` block names in them; the oldest go
/// first.
[[nodiscard]] inline std::shared_ptr<const specialized_schedule> specialize_once(const any_topology& t, int world,
                                                                                 pass p, const relation& visible) {
  struct answer {
    any_topology topology;
    int world;
    orrery::schedule::pass pass;
    relation visible;
    std::shared_ptr<const specialized_schedule> made;
  };
  constexpr std::size_t most = 16;
  // Never destroyed: an object in static storage may ask later.
  static auto& mutex = *new std::mutex;
  static auto& answers = *new std::vector<answer>;

  if (!t.may_equal_another()) return std::make_shared<const specialized_schedule>(specialize(t, world, p, visible));
  const std::lock_guard lock{mutex};
  for (const answer& known : answers) {
    if (known.world == world && known.pass == p && known.topology == t && known.visible == visible) return known.made;
  }
  auto made = std::make_shared<const specialized_schedule>(specialize(t, world, p, visible));
  if (made->found.reason != nullptr) return made;  // it may live no longer than t: not kept
  answers.push_back({t, world, p, visible, made});
  std::int64_t names = 0;
  for (std::size_t i = answers.size(); i-- > 0;) {
    for (const program& one : answers[i].made->programs) names += block_names(one);
    if (answers.size() - i <= most && (names <= 2 * most_pruned_blocks || i + 1 == answers.size())) continue;
    answers.erase(answers.begin(), answers.begin() + static_cast<std::ptrdiff_t>(i + 1));
    break;
  }
  return made;
}

/// The schedule that an operator runs for the visible pairs of chunks: as the topology writes it, with its shards cut
/// likewise, where all pairs are visible (see `prove_once`); else what `specialize` makes of it. The world must be
/// admitted.
class operator_schedule {
 public:
  operator_schedule() = default;
  operator_schedule(const any_topology& t, int world, pass p, const relation& visible)
      : written_{visible.chunks() == t.chunks() ? t : any_topology{refined<any_topology>{t, visible.chunks()}}},
        world_{world},
        pass_{p} {
    if (visible.is_full()) {
      const proven_schedule proven = prove_once(*written_, world, p);
      found_ = proven.found;
      digest_ = proven.digest;
      return;
    }
    special_ = specialize_once(t, world, p, visible);
    found_ = special_->found;
    digest_ = special_->digest;
  }

  [[nodiscard]] const verdict& found() const noexcept { return found_; }
  /// For ranks to compare.
  [[nodiscard]] const schedule_digest& digest() const noexcept { return digest_; }
  /// `unchanged` where all pairs are visible.
  [[nodiscard]] specialization outcome() const noexcept {
    return special_ == nullptr ? specialization::unchanged : special_->outcome;
  }
  /// Says what became of the topology's schedule, for the operator's report.
  [[nodiscard]] std::string note() const {
    if (special_ == nullptr) return "for all pairs of shards, as the topology writes it";
    if (special_->outcome == specialization::pruned) return "pruned to the pairs that the mask lets be seen";
    if (special_->outcome == specialization::too_many) {
      return "not pruned: the programs of all ranks name more than " + std::to_string(most_pruned_blocks) + " blocks";
    }
    return "as the topology writes it: what pruning made of it could not be proven";
  }
  /// The finished program of one rank.
  [[nodiscard]] program of_rank(int rank) const {
    return is_written() ? program_of(*written_, rank, world_, pass_) : special_->programs[rank];
  }
  /// Those of all ranks.
  [[nodiscard]] list<program> of_all() const {
    return is_written() ? programs_of(*written_, world_, pass_) : special_->programs;
  }

 private:
  /// True if the programs are those that the topology writes.
  [[nodiscard]] bool is_written() const noexcept {
    return special_ == nullptr || special_->outcome == specialization::too_many;
  }

  std::optional<any_topology> written_;
  int world_ = 1;
  orrery::schedule::pass pass_ = pass::forward;
  verdict found_;
  schedule_digest digest_;
  std::shared_ptr<const specialized_schedule> special_;  // none: all pairs
};

}  // namespace orrery::detail
