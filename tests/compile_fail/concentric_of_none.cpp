// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Bundles of no shards.
//
// EXPECT: orrery: concentric<A, B> needs rows of A >= 1 ranks and bundles of B >= 1 shards

#include "orrery/topology/concentric.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
static_assert(orrery::verify(orrery::concentric<2, 1>{}, 8));
#else
static_assert(orrery::verify(orrery::concentric<2, 0>{}, 8));
#endif
