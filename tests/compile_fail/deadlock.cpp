// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Ranks that wait for their send before they receive.
//
// EXPECT: ranks wait for each other in a circle: post the exchange earlier, or let it complete later
// EXPECT: ranks_wait_for_each_other
// EXPECT: invalid_schedule::rank<0>|ranks_wait_for_each_other\(1, 0, 1\)
// EXPECT: invalid_schedule::step<1>|ranks_wait_for_each_other\(1, 0, 1\)
// EXPECT: invalid_schedule::peer<1>|ranks_wait_for_each_other\(1, 0, 1\)

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr bool waits_first = false;
#else
constexpr bool waits_first = true;
#endif

struct my_pair {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    schedule.begin_exchange(1 - rank, orrery::schedule::no_rank);
    schedule.send(orrery::key(rank));
    if (waits_first) schedule.next_step();
    schedule.begin_exchange(orrery::schedule::no_rank, 1 - rank);
    schedule.receive(orrery::key(1 - rank));
    schedule.next_step();
    schedule.interact(orrery::query(rank), orrery::keys(0, 2));
    return schedule;
  }
};
static_assert(orrery::verify(my_pair{}, 2));
