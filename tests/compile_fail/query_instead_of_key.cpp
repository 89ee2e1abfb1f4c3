// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A ring that sends queries on, but computes with the keys that it believes to have.
//
// EXPECT: a tile or an exchange uses a block that has not arrived on this rank: receive it in an earlier step
// EXPECT: invalid_schedule::rank<0>|operand_is_not_on_this_rank\(&"key"\[0\], 7, 0, 0, 1\)
// EXPECT: invalid_schedule::step<1>|operand_is_not_on_this_rank\(&"key"\[0\], 7, 0, 0, 1\)
// EXPECT: invalid_schedule::key_shard<7>|operand_is_not_on_this_rank\(&"key"\[0\], 7, 0, 0, 1\)
// REJECT: invalid_schedule::(query_shard|peer)<

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr auto travelling = orrery::schedule::side::key;
#else
constexpr auto travelling = orrery::schedule::side::query;
#endif

struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift({travelling, rank - hop}, +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(my_ring{}, 8));
