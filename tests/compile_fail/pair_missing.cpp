// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A ring that stops one hop too early.
//
// EXPECT: a pair of a query shard and a key shard is computed by no rank: this rank has the query shard
// EXPECT: query_shard_never_meets_key_shard
// EXPECT: invalid_schedule::query_shard<0>|query_shard_never_meets_key_shard\(0, 1, 0, 0\)
// EXPECT: invalid_schedule::key_shard<1>|query_shard_never_meets_key_shard\(0, 1, 0, 0\)
// EXPECT: invalid_schedule::rank<0>|query_shard_never_meets_key_shard\(0, 1, 0, 0\)

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr int forgotten = 0;
#else
constexpr int forgotten = 1;
#endif

struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world - forgotten; ++hop) {
      if (hop + 1 < world - forgotten) schedule.shift(orrery::key(rank - hop), +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(my_ring{}, 8));
