// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/names.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/topology/wallfacer.hpp"

namespace orrery::detail {

/// `double_ring<I>`, with I as a value: the same name, refusals and programs. Likewise those below.
struct named_double_ring {
  int inner;

  [[nodiscard]] std::string name() const { return "double_ring<" + std::to_string(inner) + ">"; }
  [[nodiscard]] const char* unsupported_reason(int world) const { return double_ring_refusal(world, inner); }
  [[nodiscard]] int team(int) const { return inner; }
  [[nodiscard]] list<int> symmetric_grid(int world) const { return double_ring_grid(world, inner); }
  [[nodiscard]] orrery::schedule::program program(int rank, int world, pass p = pass::forward) const {
    return double_ring_program(rank, world, inner, p);
  }
  bool operator==(const named_double_ring&) const = default;
};

struct named_wallfacer {
  int team_size;

  [[nodiscard]] std::string name() const { return "wallfacer<" + std::to_string(team_size) + ">"; }
  [[nodiscard]] const char* unsupported_reason(int world) const { return wallfacer_refusal(world, team_size); }
  [[nodiscard]] int team(int) const { return team_size; }
  [[nodiscard]] orrery::schedule::program program(int rank, int world, pass p = pass::forward) const {
    return wallfacer_program(rank, world, team_size, p);
  }
  bool operator==(const named_wallfacer&) const = default;
};

struct named_concentric {
  int row;
  int bundle;

  [[nodiscard]] std::string name() const {
    return "concentric<" + std::to_string(row) + "," + std::to_string(bundle) + ">";
  }
  [[nodiscard]] const char* unsupported_reason(int world) const { return concentric_refusal(world, row, bundle); }
  [[nodiscard]] int team(int) const { return row; }
  [[nodiscard]] list<int> symmetric_grid(int world) const { return concentric_grid(world, row, bundle); }
  [[nodiscard]] orrery::schedule::program program(int rank, int world, pass p = pass::forward) const {
    return concentric_program(rank, world, row, bundle, p);
  }
  bool operator==(const named_concentric&) const = default;
};

/// `all_to_all`, and `usp`, which is it by another name.
struct named_all_to_all {
  int group;
  any_topology inner;
  bool is_usp;

  [[nodiscard]] std::string name() const {
    return is_usp ? "usp<" + std::to_string(group) + ">"
                  : "all_to_all<" + std::to_string(group) + "," + inner.name() + ">";
  }
  [[nodiscard]] const char* unsupported_reason(int world, pass p = pass::forward) const {
    if (const char* reason = all_to_all_refusal(world, group)) return reason;
    return orrery::unsupported_reason(inner, world / group, p);
  }
  [[nodiscard]] const char* pairs_left_out() const { return inner.pairs_left_out(); }
  /// For a world that is refused, some number that does not overflow.
  [[nodiscard]] int slices(int world) const { return world % group == 0 ? group * inner.slices(world / group) : 1; }
  [[nodiscard]] int team(int world) const { return world % group == 0 ? group * inner.team(world / group) : 1; }
  [[nodiscard]] list<int> symmetric_grid(int world) const {
    return all_to_all_grid(group, inner.symmetric_grid(world / group));
  }
  [[nodiscard]] orrery::schedule::program program(int rank, int world, pass p = pass::forward) const {
    return all_to_all_program(inner.program(rank / group, world / group, p), rank, world, group);
  }
  bool operator==(const named_all_to_all&) const = default;
};

}  // namespace orrery::detail

namespace orrery {

/// The topology of this name, as `name()` writes it: for a trainer's flag.
///
///     orrery::attention<orrery::any_topology, orrery::flash<float>> attend{
///         world, shape, mask, layout, orrery::topology_named("concentric<2,2>")};
///
/// There are `ring`, `half_ring`, `all_gather`, `double_ring<I>`, `wallfacer<C>`, `concentric<A>`, `concentric<A,B>`,
/// `ulysses`, `usp<U>`, `all_to_all<U>` and `all_to_all<U,Inner>`, with numbers from 1 to 32768; Inner is any of these
/// names, and all-to-alls nest 16 deep. The numbers are values, not template arguments: naming a topology compiles
/// none. It has the name, the refusals and the programs of the type that is written so; ranks may use the one and the
/// other.
///
/// Throws `std::invalid_argument` for another name, with the nearest one and all that there are.
[[nodiscard]] inline any_topology topology_named(std::string_view name) {
  static constexpr const char* known[] = {"ring",          "half_ring",          "all_gather", "double_ring<I>",
                                          "wallfacer<C>",  "concentric<A,B>",    "ulysses",    "usp<U>",
                                          "all_to_all<U>", "all_to_all<U,Inner>"};
  static constexpr detail::nameable topologies{"topology_named", "topology", known};
  constexpr std::int64_t most = 1 << 15;  // A * B and C * C are ints
  constexpr int most_nested = 16;
  struct maker {
    static any_topology make(std::string_view text, int depth) {
      const detail::parsed_name parsed{text, topologies};
      const auto number = [&](std::size_t i) { return static_cast<int>(parsed.number(i, most)); };
      if (parsed.is("ring")) return ring{};
      if (parsed.is("half_ring")) return half_ring{};
      if (parsed.is("all_gather")) return all_gather{};
      if (parsed.is("ulysses")) return ulysses{};
      if (parsed.is("double_ring", 1, 1)) return detail::named_double_ring{number(0)};
      if (parsed.is("wallfacer", 1, 1)) return detail::named_wallfacer{number(0)};
      if (parsed.is("concentric", 1, 2)) {
        return detail::named_concentric{number(0), parsed.arguments() > 1 ? number(1) : 1};
      }
      if (parsed.is("usp", 1, 1)) return detail::named_all_to_all{number(0), ring{}, true};
      if (parsed.is("all_to_all", 1, 2)) {
        const int group = number(0);
        if (parsed.arguments() == 1) return detail::named_all_to_all{group, ring{}, false};
        if (depth > most_nested) parsed.refuse("is nested too deeply, expected at most 16 all_to_all");
        return detail::named_all_to_all{group, make(parsed.argument(1), depth + 1), false};
      }
      parsed.refuse_unknown();
    }
  };
  return maker::make(name, 1);
}

}  // namespace orrery
