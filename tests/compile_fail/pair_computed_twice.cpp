// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A rank that computes a tile of its neighbour's as well.
//
// EXPECT: a pair of a query shard and a key shard is computed twice: leave out this rank's tile of this step, or the other one
// EXPECT: query_shard_meets_key_shard_twice
// EXPECT: invalid_schedule::query_shard<5>|query_shard_meets_key_shard_twice\(5, 5, 0, 5, 2\)
// EXPECT: invalid_schedule::key_shard<5>|query_shard_meets_key_shard_twice\(5, 5, 0, 5, 2\)
// EXPECT: invalid_schedule::rank<5>|query_shard_meets_key_shard_twice\(5, 5, 0, 5, 2\)
// EXPECT: invalid_schedule::step<2>|query_shard_meets_key_shard_twice\(5, 5, 0, 5, 2\)

#include "orrery/schedule/builder.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr int eager = -1;
#else
constexpr int eager = 5;
#endif

/// Rank 5 lets its own shards interact twice.
struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift(orrery::key(rank - hop), +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      if (rank == eager && hop == 2) schedule.add_to_tile(orrery::key(rank));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(my_ring{}, 8));
