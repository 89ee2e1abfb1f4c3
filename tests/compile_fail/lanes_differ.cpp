// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A ring in which one rank receives in another lane.
//
// EXPECT: the two ends of a message are in different lanes: name one lane at both ends
// EXPECT: invalid_schedule::rank<2>|sender_and_receiver_name_different_lanes\(&"key"\[0\], 2, 3, 0, 5, 0, 2, 0\)
// EXPECT: invalid_schedule::lane<0>|sender_and_receiver_name_different_lanes\(&"key"\[0\], 2, 3, 0, 5, 0, 2, 0\)
// EXPECT: invalid_schedule::peer<3>|sender_and_receiver_name_different_lanes\(&"key"\[0\], 2, 3, 0, 5, 0, 2, 0\)
// EXPECT: invalid_schedule::its_lane<5>|sender_and_receiver_name_different_lanes\(&"key"\[0\], 2, 3, 0, 5, 0, 2, 0\)

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr int confused = -1;
#else
constexpr int confused = 3;
#endif

struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) {
        schedule.begin_exchange((rank + 1) % world, orrery::schedule::no_rank);
        schedule.send(orrery::key(rank - hop));
        schedule.begin_exchange(orrery::schedule::no_rank, (rank + world - 1) % world, {rank == confused ? 5 : 0});
        schedule.receive(orrery::key(rank - hop - 1));
      }
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(my_ring{}, 8));
