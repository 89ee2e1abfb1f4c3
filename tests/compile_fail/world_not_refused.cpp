// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A topology of rows of three that forgets to refuse four ranks.
//
// EXPECT: an exchange names a peer outside the world: refuse such a world with unsupported_reason\(world\), or correct the peer
// EXPECT: invalid_schedule::world<4>|world_does_not_suit_the_topology_or_a_peer_is_wrong\(4, 4, 3, 0\)
// EXPECT: invalid_schedule::peer<4>|world_does_not_suit_the_topology_or_a_peer_is_wrong\(4, 4, 3, 0\)

#include "orrery/topology/concentric.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
constexpr int world = 6;
#else
constexpr int world = 4;
#endif

struct my_rows {
  constexpr orrery::program program(int rank, int ranks) const { return orrery::concentric<3>::program(rank, ranks); }
};
static_assert(orrery::verify(my_rows{}, world));
