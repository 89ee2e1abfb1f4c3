// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A ring in which one rank sends to nobody who knows.
//
// EXPECT: this rank sends a message to a peer that does not receive it: let the peer name it in the same lane and order
// EXPECT: block_is_sent_but_not_received
// EXPECT: invalid_schedule::rank<2>|block_is_sent_but_not_received\(&"key"\[0\], 2, 4, 0, 2, 0\)
// EXPECT: invalid_schedule::peer<4>|block_is_sent_but_not_received\(&"key"\[0\], 2, 4, 0, 2, 0\)
// EXPECT: invalid_schedule::key_shard<2>|block_is_sent_but_not_received\(&"key"\[0\], 2, 4, 0, 2, 0\)
// EXPECT: invalid_schedule::other_rank<3>|and_there_is_this_exchange_instead\(3, &"key"\[0\], 2, 0, 0,

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr int confused = -1;
#else
constexpr int confused = 2;
#endif

/// Rank 2 takes the rank after its neighbour for its neighbour.
struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) {
        schedule.begin_exchange((rank + (rank == confused ? 2 : 1)) % world, (rank + world - 1) % world);
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
