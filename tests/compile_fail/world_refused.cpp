// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Teams of three do not divide eight ranks.
//
// EXPECT: this topology does not admit this number of ranks: its unsupported_reason\(world\) says why, and what would work
// EXPECT: world_is_not_admitted
// EXPECT: wallfacer<3>

#include "orrery/topology/wallfacer.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
static_assert(orrery::verify(orrery::wallfacer<3>{}, 9));
#else
static_assert(orrery::verify(orrery::wallfacer<3>{}, 8));
#endif
