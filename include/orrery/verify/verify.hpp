// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/schedule_digest.hpp"
#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/schedule/detail/symmetry.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/relation.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/verify/detail/message_proof.hpp"
#include "orrery/verify/detail/pair_coverage.hpp"
#include "orrery/verify/detail/proof_subject.hpp"
#include "orrery/verify/detail/rank_walk.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery::detail {

/// Proves the programs of a whole world. What is proven, and by what argument:
///
/// 1. Every rank alone, step by step (`walk`): each block that a tile or an exchange reads is in a slot, has arrived,
/// and
///    stays until the reading is done; each partial that is sent is held and given up; none remains at the end but at
///    home.
/// 2. All messages (`match`): the k-th message from rank a to rank b in a lane, and the k-th that b awaits from a, name
///    the same blocks. With 1, every operand is a true copy and every partial is merged exactly once.
/// 3. All tiles (`cover`): each visible pair of chunks is computed exactly once in each slice. (A shard that is not
///    cut is one chunk.) Others may be, any number of times: an interaction adds nothing for them.
/// 4. Progress (`advance`): all ranks reach their end even if no send completes before it is received.
///
/// It may be given the programs of the first ranks only, if those of all others are the same after all ranks and shards
/// (modulo the world) and slices (modulo their number) were counted on: rank r's is the one of rank r modulo `period`,
/// moved on by the rest. What is proven of a program holds for the moved one, and each message and each tile is proven
/// where it comes from. Of programs that are the same but for the names of shards and slices (`first_equivalent`), 1 is
/// proven for the first: only these need be finished.
///
/// Time: linear in the number of blocks that the given programs name, and slices × chunks² × period × world / 64 words.
class verification {
 public:
  /// All programs of a world, finished.
  constexpr explicit verification(const list<program>& programs)
      : subject_{programs, programs.count, programs.count, {}} {
    subject_.found.world = programs.count;
    subject_.found.chunks = programs.items[0].chunks;
  }
  /// Those of the first period, with what `first_equivalent` says of them; finished are those that it names.
  constexpr verification(const list<program>& programs, int world, list<int> alike)
      : subject_{programs, world, programs.count, {}}, alike_{static_cast<list<int>&&>(alike)} {
    subject_.found.world = world;
    subject_.found.chunks = programs.items[0].chunks;
  }

  /// For programs of the first period, `visible` must be `every_pair`.
  template <pair_relation Visible>
  constexpr verdict run(const Visible& visible) {
    rank_walk walk{subject_};
    for (int rank = 0; rank < subject_.period; ++rank) {
      if ((alike_.empty() || alike_.items[rank] == rank) && !walk.prove(subject_.programs.items[rank]))
        return subject_.found;
    }
    message_proof messages{subject_, walk.lanes()};
    if (!messages.match() || !pair_coverage{subject_}.prove(visible)) return subject_.found;
    // If each end posts before the other must be complete, counting steps orders all waits, and none is circular.
    in_step_ = messages.in_step();
    if (!in_step_ && alike_.empty()) messages.advance();
    return subject_.found;
  }

  /// True if all exchanges overlap, in steps, with their counterparts. Only then is progress proven without all
  /// programs.
  [[nodiscard]] constexpr bool in_step() const noexcept { return in_step_; }

 private:
  proof_subject subject_;
  list<int> alike_;
  bool in_step_ = true;
};

/// True if the topology may have meant to refuse the world, but does not say which worlds it refuses.
template <topology Topology>
[[nodiscard]] constexpr bool may_be_of_world(const verdict& v, const Topology& t) {
  if (v.found == fault::program_of_another || v.found == fault::lane_does_not_exist || v.found == fault::tensor_alone ||
      v.found == fault::block_outside_world || v.found == fault::exchange_takes_no_step ||
      v.found == fault::sides_confused || (v.found == fault::peer_outside_world && v.peer < v.world))
    return false;
  return !has_unsupported_reason(t);
}

/// A fault, with what is known of the topology that wrote the programs. `ranks_differ`: its ranks are not all alike.
template <topology Topology>
[[nodiscard]] constexpr verdict of_topology(verdict v, const Topology& t, bool ranks_differ) {
  if (v.found == fault::pair_missing) v.reason = pairs_left_out(t);
  v.any_world = ranks_differ && v.reason == nullptr && may_be_of_world(v, t);
  return v;
}

/// The verdict that a world is refused.
[[nodiscard]] constexpr verdict refused_world(int world, const char* reason) {
  verdict refusal;
  refusal.found = fault::world_refused;
  refusal.world = world;
  refusal.reason = reason;
  return refusal;
}

/// The verdict that a rank's program is another one's.
[[nodiscard]] constexpr verdict program_of_other(int world, int rank) {
  verdict refusal;
  refusal.found = fault::program_of_another;
  refusal.world = world;
  refusal.rank = rank;
  return refusal;
}

/// True if the relation is one of this world, with as many chunks a shard. Functions are of any number.
template <pair_relation Visible>
[[nodiscard]] constexpr bool is_of_world(const Visible& visible, int world, int chunks) {
  if constexpr (std::same_as<Visible, schedule::relation>) {
    return visible.world() == world && visible.chunks() == chunks;
  } else {
    return true;
  }
}

}  // namespace orrery::detail

namespace orrery {

/// Proves the finished programs of all ranks, in the order of the ranks; see `verification` for what and how.
///
/// `visible(query, key)` says which pairs must be computed, and that exactly once; others may be, any number of times,
/// since an interaction adds nothing for a pair that its mask hides. It is given the numbers of two chunks, s * chunks
/// + c of chunk c of shard s: of two shards, where these are not cut. It is a function, or a `schedule::relation`, with
/// which a proof takes least time.
template <pair_relation Visible = every_pair>
[[nodiscard]] constexpr verdict verify(const schedule::list<schedule::program>& programs, const Visible& visible = {}) {
  if (programs.empty()) return detail::refused_world(0, "needs a world of at least one rank");
  if (!detail::is_of_world(visible, programs.size(), programs[0].chunks)) {
    return detail::refused_world(programs.size(),
                                 "is asked for the pairs of another world; make the relation for this number of ranks "
                                 "and of chunks");
  }
  for (int rank = 0; rank < programs.size(); ++rank) {
    const schedule::program& p = programs[rank];
    if (p.rank == rank && p.world == programs.size() && p.pass == programs[0].pass && p.slices == programs[0].slices &&
        p.chunks == programs[0].chunks && p.chunks >= 1 && p.chunks <= schedule::most_chunks)
      continue;
    return detail::program_of_other(programs.size(), rank);
  }
  return detail::verification{programs}.run(visible);
}

/// Proves a topology's schedule for a world: forward, or a backward.
///
///     static_assert(orrery::verify(my_ring{}, 8));
///     std::cout << orrery::verify(my_ring{}, 1000, orrery::pass::circulate_keys) << '\n';
///
/// Every rank's program is written and looked at. Where the programs repeat from rank to rank, which is checked block
/// by block (`is_rotation`), those of the first period are proven for all.
///
/// `digest`, unless it is null, becomes that of the proven schedule, whatever the type that wrote it: of the remarks of
/// all ranks and the programs of the first period, from which those of the other ranks follow.
template <topology Topology>
[[nodiscard]] constexpr verdict verify(const Topology& t, int world, schedule::pass p = schedule::pass::forward,
                                       schedule::schedule_digest* digest = nullptr) {
  if (const char* reason = unsupported_reason(t, world, p)) {
    verdict refusal = detail::refused_world(world, reason);
    refusal.refused_part = detail::refusing_part_of(t, world, p);
    return refusal;
  }
  schedule::list<schedule::program> all;  // of all ranks, where they are written together
  int written = world;                    // ranks; the programs of the others are rotations of theirs
  if constexpr (detail::derives_backwards<Topology>) {
    if (p != schedule::pass::forward) {
      all = detail::derived_pass(t, world, p).period;
      written = all.count;
    }
  }
  if (all.empty() && !detail::writes_each_rank_alone(t, p)) all = detail::unallocated_programs(t, world, p);
  schedule::list<schedule::program> first;  // of the first period, as far as it is known
  first.reserve(world);
  if (digest != nullptr) *digest = {};
  const int chunks = detail::chunks_of(t);
  int period = 0;
  for (int rank = 0; rank < written; ++rank) {
    schedule::program one;
    if (all.empty()) {
      one = detail::unallocated_program(t, rank, world, p);
    } else {
      one = static_cast<schedule::program&&>(all[rank]);
    }
    if (one.rank != rank || one.world != world || one.pass != p || one.slices != slices_of(t, world) ||
        one.chunks != chunks || chunks < 1 || chunks > schedule::most_chunks)
      return detail::program_of_other(world, rank);
    if (digest != nullptr) digest->add_remarks(one);
    if (period == 0 && rank > 0 && written == world && world % rank == 0 && schedule::is_rotation(first[0], one, rank))
      period = rank;
    if (period == 0) {
      if (digest != nullptr) digest->add(one);
      first.items[first.count++] = static_cast<schedule::program&&>(one);
    } else if (rank % period != 0 && !schedule::is_rotation(first[rank % period], one, rank - rank % period)) {
      period = -1;
    } else if (rank % period == 0 && rank != period && !schedule::is_rotation(first[0], one, rank)) {
      period = -1;
    }
    if (period == -1) break;
  }
  if (written < world) period = written;
  for (int rank = written; digest != nullptr && rank < world; ++rank)
    digest->add_remarks(schedule::rotated(first[rank % written], rank - rank % written));
  if (period != -1) {
    schedule::list<int> alike = schedule::first_equivalent(first);
    for (int rank = 0; rank < first.count; ++rank) {
      if (alike.items[rank] == rank) schedule::finish(first.items[rank]);
    }
    detail::verification proof{first, world, static_cast<schedule::list<int>&&>(alike)};
    verdict found = proof.run(every_pair{});
    if (!found.ok()) found = detail::of_topology(found, t, period != 1);
    if (!found.ok() || proof.in_step()) return found;
  }
  // The first ranks' programs do not speak for all.
  const schedule::list<schedule::program> programs = programs_of(t, world, p);
  if (digest != nullptr) *digest = {};
  for (int rank = 0; digest != nullptr && rank < world; ++rank) {
    digest->add_remarks(programs.items[rank]);
    digest->add(programs.items[rank]);
  }
  verdict found = verify(programs);
  return found.ok() ? found : detail::of_topology(found, t, period != 1);
}

/// Proves a topology's schedule, as it is written, for the pairs that `visible(query shard, key shard)` asks for: what
/// a mask and a layout leave of all pairs.
///
///     static_assert(orrery::verify(orrery::half_ring{}, 16, orrery::pass::forward, orrery::below_diagonal{}));
///
/// All ranks' programs are written and proven, since what is visible differs from rank to rank; up to some 32 ranks
/// within the default limits of compilers.
template <topology Topology, pair_relation Visible>
[[nodiscard]] constexpr verdict verify(const Topology& t, int world, schedule::pass p, const Visible& visible) {
  if constexpr (std::same_as<Visible, every_pair>) {
    return verify(t, world, p);
  } else {
    if (const char* reason = unsupported_reason(t, world, p)) {
      verdict refusal = detail::refused_world(world, reason);
      refusal.refused_part = detail::refusing_part_of(t, world, p);
      return refusal;
    }
    const schedule::list<schedule::program> programs = programs_of(t, world, p);
    for (int rank = 0; rank < world; ++rank) {
      if (programs.count != world || programs.items[rank].pass != p ||
          programs.items[rank].slices != slices_of(t, world) || programs.items[rank].chunks != detail::chunks_of(t))
        return detail::program_of_other(world, rank);
    }
    const verdict found = verify(programs, visible);
    return found.ok() ? found : detail::of_topology(found, t, true);
  }
}

}  // namespace orrery
