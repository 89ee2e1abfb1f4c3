// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A topology that forgets which rank it is asked for.
//
// EXPECT: a program must be for the rank, world, pass and number of slices that it was asked for: pass them on to the builder
// EXPECT: invalid_schedule::rank<1>|program_says_it_is_for_another_rank_or_world\(1\)

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr bool forgets = false;
#else
constexpr bool forgets = true;
#endif

struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    if (forgets) rank = 0;
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift(orrery::key(rank - hop), +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(my_ring{}, 8));
