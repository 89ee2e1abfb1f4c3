// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A ring whose last hop is not sent, though its tile is computed.
//
// EXPECT: a tile or an exchange uses a block that has not arrived on this rank: receive it in an earlier step
// EXPECT: operand_is_not_on_this_rank
// EXPECT: invalid_schedule::shard<4>|operand_is_not_on_this_rank\(4, 0, 3, 7\)
// EXPECT: invalid_schedule::rank<3>|operand_is_not_on_this_rank\(4, 0, 3, 7\)
// EXPECT: invalid_schedule::step<7>|operand_is_not_on_this_rank\(4, 0, 3, 7\)

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr int forgetful = -1;
#else
constexpr int forgetful = 3;
#endif

/// Rank 3 forgets to take its last hop.
struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      const bool takes = !(rank == forgetful && hop + 2 == world);
      if (hop + 1 < world) {
        schedule.begin_exchange((rank + 1) % world, takes ? (rank + world - 1) % world : orrery::schedule::no_rank);
        schedule.send(orrery::key(rank - hop));
        schedule.receive(orrery::key(rank - hop - 1));
      }
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(my_ring{}, 8));
