// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A ring whose last hop is not sent, though its tile is computed.
//
// EXPECT: a tile or an exchange uses a block that is sent to this rank, but not received: receive it in that lane and order
// EXPECT: operand_is_sent_but_not_received
// EXPECT: invalid_schedule::key_shard<4>|operand_is_sent_but_not_received\(&"key"\[0\], 4, 2, 0, 6, 3, 7\)
// EXPECT: invalid_schedule::rank<3>|operand_is_sent_but_not_received\(&"key"\[0\], 4, 2, 0, 6, 3, 7\)
// EXPECT: invalid_schedule::step<7>|operand_is_sent_but_not_received\(&"key"\[0\], 4, 2, 0, 6, 3, 7\)
// EXPECT: invalid_schedule::other_rank<2>|operand_is_sent_but_not_received\(&"key"\[0\], 4, 2, 0, 6, 3, 7\)
// EXPECT: invalid_schedule::its_step<6>|operand_is_sent_but_not_received\(&"key"\[0\], 4, 2, 0, 6, 3, 7\)
// EXPECT: unless_the_topology_refuses_this_world_by_unsupported_reason
// REJECT: invalid_schedule::(query_shard|peer)<

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
