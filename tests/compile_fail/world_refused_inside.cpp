// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Teams of two do not divide a world of two, which is what a head-parallel group of two leaves of four ranks.
//
// EXPECT: a topology inside this one does not admit its number of ranks, and says why
// EXPECT: needs a world that C\*C divides: choose a smaller C, or concentric<C>, for which C need only divide it
// EXPECT: invalid_schedule::world<4>|inner_topology_does_not_admit_its_world\(2, 4,
// EXPECT: invalid_schedule::inner_world<2>|inner_topology_does_not_admit_its_world\(2, 4,
// REJECT: invalid_schedule::(rank|step|query_shard|key_shard|peer)<

#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr int world = 8;
#else
constexpr int world = 4;
#endif

static_assert(orrery::verify(orrery::all_to_all<2, orrery::wallfacer<2>>{}, world));
