// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Inner rings of no ranks.
//
// EXPECT: orrery: double_ring<I> needs inner rings of I >= 1 ranks

#include "orrery/topology/double_ring.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
static_assert(orrery::verify(orrery::double_ring<4>{}, 8));
#else
static_assert(orrery::verify(orrery::double_ring<0>{}, 8));
#endif
