// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Teams of no ranks.
//
// EXPECT: orrery: wallfacer<C> needs teams of C >= 1 ranks

#include "orrery/topology/wallfacer.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
static_assert(orrery::verify(orrery::wallfacer<1>{}, 8));
#else
static_assert(orrery::verify(orrery::wallfacer<0>{}, 8));
#endif
