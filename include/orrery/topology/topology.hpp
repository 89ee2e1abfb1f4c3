// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/derive_backward.hpp"
#include "orrery/schedule/detail/counted.hpp"
#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/detail/refusing_part.hpp"

namespace orrery {

/// A topology is a small, empty type that writes programs: `program(rank, world)` for the forward, or
/// `program(rank, world, pass)` for the forward and for backwards of its own. Both are ordinary constexpr functions:
/// what they write follows from their arguments and the topology's value.
///
/// A topology may also have
/// - `std::string name() const`, for messages, tables and the check that all ranks use the same one (which compares the
///   programs, too);
/// - `constexpr const char* unsupported_reason(int world) const`, or `unsupported_reason(world, pass)`: null, or the
/// end of a message that says why this world is
///   refused and what would work;
/// - `constexpr const char* pairs_left_out() const`: of a topology that is not for every pair of shards, the end of a
///   message that says which pairs it computes and what would work for others;
/// - `constexpr int slices(int world) const`: into how many slices it cuts the heads (1 without it);
/// - `constexpr int chunks() const`: into how many chunks its programs cut each shard (1 without it). Topologies in
///   closed form write whole shards, which operators cut where that pays;
/// - `constexpr list<program> programs(int world, pass) const`: the programs of all ranks, where writing them together
///   is cheaper;
/// - `constexpr list<int> symmetric_grid(int world) const`: the extents of a grid of ranks, the innermost first, in
/// which
///   all programs are alike. With {X, Y} rank r is at (r % X, r / X); counting a coordinate of all ranks and shards on
///   by one, modulo its extent, makes one rank's program another's, but for the order of blocks in a message or tile,
///   and for slices. `simulate` then needs few ranks of a large world. It is a promise, which
///   `schedule::is_symmetric` checks in a test.
template <class Topology>
concept topology = std::copy_constructible<Topology> &&(
    requires(const Topology& t) {
      { t.program(0, 1) } -> std::convertible_to<schedule::program>;
    } ||
    requires(const Topology& t) {
      { t.program(0, 1, schedule::pass::forward) } -> std::convertible_to<schedule::program>;
    });

/// True if the topology writes backward programs itself. Else they are derived from its forward.
template <class Topology>
concept topology_with_backward = requires(const Topology& t) {
  { t.program(0, 1, schedule::pass::forward) } -> std::convertible_to<schedule::program>;
};

/// True if two values of this type can be compared. All those of an empty type are equal; another type must have a
/// member `bool operator==(const T&) const` of its own (defaulted, as a rule). One that it inherits does not count: it
/// knows nothing of the members that were added.
template <class T>
concept comparable_by_value = std::is_empty_v<T> || requires {
  static_cast<bool (T::*)(const T&) const>(&T::operator==);
};

}  // namespace orrery

namespace orrery::detail {

/// True if two values of a topology, or a placement, are the same.
template <comparable_by_value T>
[[nodiscard]] constexpr bool is_same_value(const T& a, const T& b) {
  if constexpr (std::is_empty_v<T>) {
    return true;
  } else {
    return a == b;
  }
}

}  // namespace orrery::detail

namespace orrery {

/// The topology's name; "custom topology" if it has none.
template <topology Topology>
[[nodiscard]] std::string name_of(const Topology& t) {
  if constexpr (requires { std::string{t.name()}; }) {
    return t.name();
  } else {
    return "custom topology";
  }
}

/// Null if the topology admits the world; else the end of a message that says why not and what would work.
template <topology Topology>
[[nodiscard]] constexpr const char* unsupported_reason(const Topology& t, int world,
                                                       schedule::pass p = schedule::pass::forward) {
  if (world < 1) return "needs a world of at least one rank";
  if constexpr (requires { t.unsupported_reason(world, p); }) {
    return t.unsupported_reason(world, p);
  } else if constexpr (requires { t.unsupported_reason(world); }) {
    return t.unsupported_reason(world);
  } else {
    return nullptr;
  }
}

/// Into how many slices the topology cuts the heads.
template <topology Topology>
[[nodiscard]] constexpr int slices_of(const Topology& t, int world) {
  if constexpr (requires { t.slices(world); }) {
    return t.slices(world);
  } else {
    return 1;
  }
}

}  // namespace orrery

namespace orrery::detail {

/// Into how many chunks the topology's programs cut each shard.
template <topology Topology>
[[nodiscard]] constexpr int chunks_of(const Topology& t) {
  if constexpr (requires { t.chunks(); }) {
    return t.chunks();
  } else {
    return 1;
  }
}

/// The grid in which all programs are alike; empty if the topology names none.
template <topology Topology>
[[nodiscard]] constexpr list<int> symmetric_grid_of(const Topology& t, int world) {
  if constexpr (requires { t.symmetric_grid(world); }) {
    return t.symmetric_grid(world);
  } else {
    return {};
  }
}

/// True if a rank's program can be written cheaply without those of the others.
template <topology Topology>
[[nodiscard]] constexpr bool writes_each_rank_alone(pass p) {
  if constexpr (requires(const Topology& t) { t.programs(1, p); }) {
    return false;
  } else {
    return topology_with_backward<Topology> || p == pass::forward;
  }
}

/// The same of a value, for topologies of which only the value knows.
template <topology Topology>
[[nodiscard]] constexpr bool writes_each_rank_alone(const Topology& t, pass p) {
  if constexpr (requires { t.writes_each_rank_alone(p); }) {
    return t.writes_each_rank_alone(p);
  } else {
    return writes_each_rank_alone<Topology>(p);
  }
}

/// True if the topology's backwards are derived from its forward.
template <topology Topology>
inline constexpr bool derives_backwards = !topology_with_backward<Topology> && !requires(const Topology& t) {
  t.programs(1, pass::forward);
};

/// A backward that is derived. The world must be admitted.
template <topology Topology>
  requires derives_backwards<Topology>
[[nodiscard]] constexpr derived_backward derived_pass(const Topology& t, int world, pass p) {
  list<program> forward(world);
  for (int rank = 0; rank < world; ++rank) forward[rank] = t.program(rank, world);
  return derive_backward_of_period(static_cast<list<program>&&>(forward), p);
}

/// The programs of all ranks as the topology writes them, not yet finished. Where it has no backward of its own, that
/// is derived from its forward (see `derive_backward`). The world must be admitted.
template <topology Topology>
[[nodiscard]] constexpr list<program> unallocated_programs(const Topology& t, int world, pass p = pass::forward) {
  if constexpr (requires { t.programs(world, p); }) {
    return t.programs(world, p);
  } else if constexpr (topology_with_backward<Topology>) {
    list<program> all(world);
    for (int rank = 0; rank < world; ++rank) all[rank] = t.program(rank, world, p);
    return all;
  } else {
    list<program> all(world);
    if (p != pass::forward) {
      const derived_backward derived = derived_pass(t, world, p);
      for (int rank = 0; rank < world; ++rank) all[rank] = derived.of(rank);
    } else {
      for (int rank = 0; rank < world; ++rank) all[rank] = t.program(rank, world);
    }
    return all;
  }
}

/// One rank's program as the topology writes it, not yet finished. The world must be admitted.
template <topology Topology>
[[nodiscard]] constexpr program unallocated_program(const Topology& t, int rank, int world, pass p = pass::forward) {
  if constexpr (topology_with_backward<Topology>) {
    return t.program(rank, world, p);
  } else {
    if (p == pass::forward) return t.program(rank, world);
    if constexpr (derives_backwards<Topology>) {
      return derived_pass(t, world, p).of(rank);
    } else {
      return t.programs(world, p)[rank];
    }
  }
}

}  // namespace orrery::detail

namespace orrery {

/// The finished programs of all ranks. Linear in their total size. The world must be admitted.
template <topology Topology>
[[nodiscard]] constexpr schedule::list<schedule::program> programs_of(const Topology& t, int world,
                                                                      schedule::pass p = schedule::pass::forward) {
  schedule::list<schedule::program> all = detail::unallocated_programs(t, world, p);
  for (schedule::program& one : all) schedule::finish(one);
  return all;
}

}  // namespace orrery

namespace orrery::detail {

/// True if the topology says itself which worlds it refuses. Those that hold other topologies ask them.
template <topology Topology>
[[nodiscard]] constexpr bool has_unsupported_reason(const Topology& t) {
  if constexpr (requires { t.has_unsupported_reason(); }) {
    return t.has_unsupported_reason();
  } else {
    return requires { t.unsupported_reason(1, pass::forward); }
    || requires { t.unsupported_reason(1); };
  }
}

/// Null; or, of a topology that does not compute all pairs of shards, the end of a message that says which it computes.
template <topology Topology>
[[nodiscard]] constexpr const char* pairs_left_out(const Topology& t) {
  if constexpr (requires { t.pairs_left_out(); }) {
    return t.pairs_left_out();
  } else {
    return nullptr;
  }
}

/// The topology inside this one that refuses its part of a world which is refused; empty if that is the whole one.
/// Topologies that hold others have a member `refusing_part(world, pass)`.
template <topology Topology>
[[nodiscard]] constexpr detail::refusing_part refusing_part_of(const Topology& t, int world, pass p) {
  if constexpr (requires { t.refusing_part(world, p); }) {
    return t.refusing_part(world, p);
  } else {
    return {};
  }
}

/// The name of a topology without a value.
template <topology Topology>
[[nodiscard]] std::string name_of_type() {
  return name_of(Topology{});
}

/// What to say of a topology that refuses this world, for `reason`.
template <topology Topology>
[[nodiscard]] std::string refusal_message(const Topology& t, int world, pass p, const char* reason) {
  return "topology " + name_of(t) + " over " + counted_ranks(world) + " " + refusing_part_of(t, world, p).text() +
         reason;
}

/// Throws `std::invalid_argument` with a message if the topology refuses the world.
template <topology Topology>
constexpr void require_admitted(const Topology& t, int world, pass p) {
  if (const char* reason = unsupported_reason(t, world, p))
    throw std::invalid_argument{"orrery: " + refusal_message(t, world, p, reason)};
}

}  // namespace orrery::detail

namespace orrery {

/// One rank's finished program; what an operator runs. Throws `std::invalid_argument` with a message if the world is
/// refused.
template <topology Topology>
[[nodiscard]] constexpr schedule::program program_of(const Topology& t, int rank, int world,
                                                     schedule::pass p = schedule::pass::forward) {
  detail::require_admitted(t, world, p);
  schedule::program one = detail::unallocated_program(t, rank, world, p);
  schedule::finish(one);
  return one;
}

}  // namespace orrery
