// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A choice among no topologies.
//
// EXPECT: orrery::tuned needs topologies to choose from: tuned<Kernel, ring, ...>

#include "orrery/kernel/reference.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/tune/tuned.hpp"

#ifdef ORRERY_CONTROL
template class orrery::tuned<orrery::reference<float>, orrery::ring>;
#else
template class orrery::tuned<orrery::reference<float>>;
#endif
