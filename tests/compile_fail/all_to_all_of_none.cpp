// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Groups of less than no ranks.
//
// EXPECT: orrery: all_to_all<U, Inner> needs groups of U >= 1 ranks

#include "orrery/topology/all_to_all.hpp"
#include "orrery/verify/verify.hpp"

#ifdef ORRERY_CONTROL
static_assert(orrery::verify(orrery::all_to_all<2>{}, 8));
#else
static_assert(orrery::verify(orrery::all_to_all<-2>{}, 8));
#endif
