// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// Every topology, for tests that hold for all of them; and topologies as a user writes them.

#include <string>
#include <vector>

#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/detail/refined.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/verify/verify.hpp"

#include "support/topologies.hpp"

namespace topologies {

inline constexpr orrery::pass every_pass[] = {orrery::pass::forward, orrery::pass::circulate_keys,
                                              orrery::pass::circulate_queries};

using ::my_ring;

/// Everyone gathers the keys, but every other rank begins with a tile of its own, and so is a step late.
struct my_staggered_gather {
  [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
    const int late = rank % 2;
    orrery::builder schedule{rank, world};
    if (late == 1) {
      schedule.interact(orrery::query(rank), orrery::key(rank));
      schedule.next_step();
    }
    if (world > 1) {
      schedule.all_gather({0, world}, orrery::schedule::side::key);
      schedule.next_step();
    }
    if (world > late) schedule.interact(orrery::query(rank), orrery::keys(rank + late, world - late));
    return schedule;
  }
};

/// Rings of A ranks in rings of B in a ring of world / (A * B): a hop of an outer ring hides behind an inner one's
/// turn.
template <int A, int B>
struct my_three_rings {
  [[nodiscard]] constexpr const char* unsupported_reason(int world) const {
    return world % (A * B) == 0 ? nullptr : "needs a world that A*B divides";
  }
  [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
    const int C = world / A / B;
    const auto at = [&](int a, int b, int c) {
      return ((rank / A / B - c + C) % C * B + (rank / A - b + B) % B) * A + (rank - a + A) % A;
    };
    orrery::builder schedule{rank, world};
    const auto hop = [&](int to, int from, int lane, int steps, int sent, int received) {
      schedule.begin_exchange(to, from, {lane, steps});
      schedule.send(orrery::key(sent));
      schedule.receive(orrery::key(received));
    };
    for (int c = 0; c < C; ++c) {
      for (int b = 0; b < B; ++b) {
        for (int a = 0; a < A; ++a) {
          const int here = at(a, b, c);
          if (a == 0 && b == 0 && c + 1 < C) hop(at(0, 0, -1), at(0, 0, 1), 2, A * B, here, at(0, 0, c + 1));
          if (a == 0 && b + 1 < B) hop(at(0, -1, 0), at(0, 1, 0), 1, A, here, at(0, b + 1, c));
          if (a + 1 < A) hop(at(-1, 0, 0), at(1, 0, 0), 0, 1, here, at(a + 1, b, c));
          schedule.interact(orrery::query(rank), orrery::key(here));
          schedule.next_step();
        }
      }
    }
    return schedule;
  }
};

/// A topology whose shards are cut into chunks.
template <class Topology, int Chunks>
struct in_chunks : orrery::detail::refined<Topology> {
  constexpr in_chunks() : orrery::detail::refined<Topology>{{}, Chunks} {}
};

struct entry {
  std::string name;
  int divisor;  ///< the worlds that are admitted are its multiples
  orrery::verdict (*verify)(int world, orrery::pass p);
  orrery::schedule::list<orrery::program> (*programs)(int world, orrery::pass p);

  [[nodiscard]] bool admits(int world, orrery::pass) const { return world % divisor == 0; }
};

template <class Topology>
[[nodiscard]] entry entry_of(int divisor, const char* name = nullptr) {
  return {name != nullptr ? name : orrery::name_of(Topology{}), divisor,
          +[](int world, orrery::pass p) { return orrery::verify(Topology{}, world, p); },
          +[](int world, orrery::pass p) { return orrery::programs_of(Topology{}, world, p); }};
}

/// All topologies, with the worlds that they are documented to admit.
[[nodiscard]] inline const std::vector<entry>& all() {
  using namespace orrery;
  using namespace orrery::schedule;
  static const std::vector<entry> entries{
      entry_of<ring>(1),
      entry_of<wallfacer<1>>(1),
      entry_of<wallfacer<2>>(4),
      entry_of<wallfacer<3>>(9),
      entry_of<wallfacer<4>>(16),
      entry_of<concentric<1, 1>>(1),
      entry_of<concentric<2>>(2),
      entry_of<concentric<3>>(3),
      entry_of<concentric<4>>(4),
      entry_of<concentric<5>>(5),
      entry_of<concentric<8>>(8),
      entry_of<concentric<1, 2>>(2),
      entry_of<concentric<1, 3>>(3),
      entry_of<concentric<2, 2>>(4),
      entry_of<concentric<2, 3>>(6),
      entry_of<concentric<3, 2>>(6),
      entry_of<concentric<2, 4>>(8),
      entry_of<concentric<3, 3>>(9),
      entry_of<concentric<3, 4>>(12),
      entry_of<concentric<5, 3>>(15),
      entry_of<concentric<4, 4>>(16),
      entry_of<concentric<9, 9>>(81),
      entry_of<all_gather>(1),
      entry_of<ulysses>(1),
      entry_of<usp<2>>(2),
      entry_of<usp<4>>(4),
      entry_of<all_to_all<3>>(3),
      entry_of<all_to_all<2, wallfacer<2>>>(8),
      entry_of<all_to_all<2, all_to_all<3, concentric<2>>>>(12),
      entry_of<all_to_all<3, double_ring<3>>>(9),
      entry_of<double_ring<1>>(1),
      entry_of<double_ring<2>>(2),
      entry_of<double_ring<3>>(3),
      entry_of<double_ring<4>>(4),
      entry_of<double_ring<5>>(5),
      entry_of<double_ring<6>>(6),
      entry_of<double_ring<7>>(7),
      entry_of<double_ring<8>>(8),
      entry_of<my_ring>(1, "my_ring"),
      entry_of<all_to_all<2, my_ring>>(2, "all_to_all<2,my_ring>"),
      entry_of<my_staggered_gather>(1, "my_staggered_gather"),
      entry_of<my_three_rings<2, 2>>(4, "my_three_rings<2,2>"),
  };
  return entries;
}

/// The same, and some whose shards are cut into chunks.
[[nodiscard]] inline const std::vector<entry>& all_and_in_chunks() {
  using namespace orrery;
  static const std::vector<entry> entries = [] {
    std::vector<entry> some = all();
    some.push_back(entry_of<in_chunks<ring, 2>>(1));
    some.push_back(entry_of<in_chunks<usp<2>, 3>>(2));
    some.push_back(entry_of<in_chunks<my_ring, 2>>(1, "my_ring in 2 chunks"));
    return some;
  }();
  return entries;
}

}  // namespace topologies
