// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Teams of three do not divide eight ranks.
//
// EXPECT: this topology does not admit this number of ranks, and says why
// EXPECT: needs a world that C\*C divides: choose a smaller C, or concentric<C>, for which C need only divide it
// EXPECT: invalid_schedule::world<8>|world_is_not_admitted\(8,
// EXPECT: wallfacer<3>
// REJECT: invalid_schedule::(rank|step|query_shard|key_shard|peer)<

#include "orrery/topology/wallfacer.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
static_assert(orrery::verify(orrery::wallfacer<3>{}, 9));
#else
static_assert(orrery::verify(orrery::wallfacer<3>{}, 8));
#endif
