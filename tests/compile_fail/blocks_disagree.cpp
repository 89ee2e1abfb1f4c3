// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A ring whose ranks send their queries first, where keys are expected.
//
// EXPECT: the peer sends other blocks than this rank expects: name the same blocks, in the same order, at both ends
// EXPECT: invalid_schedule::rank<1>|sender_and_receiver_name_different_blocks\(&"key"\[0\], 0, &"query"\[0\], 0, 0, 0, 0, 1, 0\)
// EXPECT: invalid_schedule::key_shard<0>|sender_and_receiver_name_different_blocks\(&"key"\[0\], 0, &"query"\[0\], 0, 0, 0, 0, 1, 0\)
// EXPECT: invalid_schedule::its_query_shard<0>|sender_and_receiver_name_different_blocks\(&"key"\[0\], 0, &"query"\[0\], 0, 0, 0, 0, 1, 0\)

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr auto sent = orrery::schedule::side::key;
#else
constexpr auto sent = orrery::schedule::side::query;
#endif

struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) {
        schedule.begin_exchange((rank + 1) % world, (rank + world - 1) % world);
        schedule.send({hop == 0 ? sent : orrery::schedule::side::key, rank - hop});
        schedule.receive(orrery::key(rank - hop - 1));
      }
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(my_ring{}, 8));
