// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A ring whose hops take two steps, but are used after one.
//
// EXPECT: a tile or an exchange uses a block before it arrives: use it in a later step, or let its exchange take fewer steps
// EXPECT: invalid_schedule::rank<0>|operand_is_in_flight\(&"key"\[0\], 7, 0, 2, 0, 1\)
// EXPECT: invalid_schedule::step<1>|operand_is_in_flight\(&"key"\[0\], 7, 0, 2, 0, 1\)
// EXPECT: invalid_schedule::key_shard<7>|operand_is_in_flight\(&"key"\[0\], 7, 0, 2, 0, 1\)
// EXPECT: invalid_schedule::usable_in_step<2>|operand_is_in_flight\(&"key"\[0\], 7, 0, 2, 0, 1\)
// REJECT: invalid_schedule::(query_shard|peer)<

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr int steps = 1;
#else
constexpr int steps = 2;
#endif

struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift(orrery::key(rank - hop), +1, {0, steps});
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(my_ring{}, 8));
