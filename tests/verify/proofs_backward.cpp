// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Proofs by the compiler, backward, at sizes that its default limits allow.

#include <doctest/doctest.h>

#include "verify/every_topology.hpp"

namespace proofs_backward_test {

using namespace orrery;

using namespace orrery::schedule;

template <class Topology>
constexpr bool both_backwards(int world) {
  return verify(Topology{}, world, pass::circulate_keys).ok() &&
         verify(Topology{}, world, pass::circulate_queries).ok();
}

static_assert(both_backwards<ring>(8));
static_assert(both_backwards<wallfacer<2>>(8));
static_assert(both_backwards<wallfacer<2>>(16));
static_assert(both_backwards<concentric<2, 2>>(8));
static_assert(both_backwards<concentric<3>>(6));
static_assert(both_backwards<all_gather>(8));
static_assert(both_backwards<ulysses>(8));
static_assert(both_backwards<usp<2>>(8));
static_assert(both_backwards<double_ring<2>>(8));
static_assert(both_backwards<ring>(1));

// A proof each: a compiler counts the steps of an assertion.
static_assert(verify(ring{}, 64, pass::circulate_keys));
static_assert(verify(ring{}, 64, pass::circulate_queries));
static_assert(verify(wallfacer<2>{}, 64, pass::circulate_keys));
static_assert(verify(wallfacer<2>{}, 64, pass::circulate_queries));
static_assert(verify(wallfacer<4>{}, 64, pass::circulate_keys));
static_assert(verify(wallfacer<4>{}, 64, pass::circulate_queries));
static_assert(verify(concentric<4, 4>{}, 64, pass::circulate_keys));
static_assert(verify(concentric<4, 4>{}, 64, pass::circulate_queries));
static_assert(verify(all_gather{}, 64, pass::circulate_keys));
static_assert(verify(all_gather{}, 64, pass::circulate_queries));
static_assert(verify(ulysses{}, 64, pass::circulate_keys));
static_assert(verify(ulysses{}, 64, pass::circulate_queries));
static_assert(verify(usp<4>{}, 64, pass::circulate_keys));
static_assert(verify(usp<4>{}, 64, pass::circulate_queries));
static_assert(verify(double_ring<8>{}, 64, pass::circulate_keys));
static_assert(verify(double_ring<8>{}, 64, pass::circulate_queries));

static_assert(verify(topologies::my_ring{}, 8, pass::circulate_keys));
static_assert(verify(topologies::my_ring{}, 8, pass::circulate_queries));
static_assert(verify(topologies::my_ring{}, 64, pass::circulate_keys));
static_assert(verify(topologies::my_ring{}, 64, pass::circulate_queries));
static_assert(verify(topologies::my_three_rings<2, 2>{}, 64, pass::circulate_keys));
static_assert(verify(topologies::my_three_rings<2, 2>{}, 64, pass::circulate_queries));
static_assert(verify(all_to_all<2, topologies::my_ring>{}, 8, pass::circulate_keys));

TEST_CASE("the compiler has proved backward schedules") { CHECK(both_backwards<ring>(8)); }

}  // namespace proofs_backward_test
