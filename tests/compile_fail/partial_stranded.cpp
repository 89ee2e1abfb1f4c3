// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A backward whose partial sums are not sent home.
//
// EXPECT: a partial ends on this rank, which is not its shard's home: send it on, with payload::partial
// EXPECT: partial_never_comes_home
// EXPECT: invalid_schedule::rank<0>|partial_never_comes_home\(&"key"\[0\], [1-3], 0, 0\)
// EXPECT: invalid_schedule::key_shard<[1-3]>|partial_never_comes_home\(&"key"\[0\], [1-3], 0, 0\)
// REJECT: invalid_schedule::(query_shard|step|peer)<

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr bool sends_them_home = true;
#else
constexpr bool sends_them_home = false;
#endif

struct my_gather {
  constexpr orrery::program program(int rank, int world, orrery::pass p) const {
    orrery::builder schedule{rank, world, p};
    schedule.all_gather({0, world}, orrery::schedule::side::key);
    schedule.next_step();
    schedule.interact(orrery::query(rank), orrery::keys(0, world));
    schedule.next_step();
    if (sends_them_home && p != orrery::pass::forward) schedule.reduce_scatter({0, world}, orrery::schedule::side::key);
    return schedule;
  }
};
static_assert(orrery::verify(my_gather{}, 4));
static_assert(orrery::verify(my_gather{}, 4, orrery::pass::circulate_keys));
