// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A choice among topologies that are values, of which it knows the type alone.
//
// EXPECT: for topologies that are values use recommend and attention<any_topology, Kernel>

#include "orrery/kernel/reference.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/tune/tuned.hpp"

#ifdef ORRERY_CONTROL
template class orrery::tuned<orrery::reference<float>, orrery::ring>;
#else
template class orrery::tuned<orrery::reference<float>, orrery::ring, orrery::any_topology>;
#endif
