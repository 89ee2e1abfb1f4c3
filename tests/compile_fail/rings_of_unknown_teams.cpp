// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Rings inside nodes, of a topology that does not say how large its teams are.
//
// EXPECT: orrery: rings_in_nodes must know how large this topology's teams are: give it `static constexpr int team

#include "orrery/topology/placed.hpp"
#include "orrery/verify/verify.hpp"

struct my_ring {
#ifdef ORRERY_CONTROL
  static constexpr int team(int) { return 1; }
#endif
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift(orrery::key(rank - hop), +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(orrery::placed<my_ring, orrery::rings_in_nodes>{}, 8));
