// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Proofs by the compiler, forward, at sizes that its default limits allow.

#include <doctest/doctest.h>

#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/verify/verify.hpp"

namespace proofs_forward_test {

using namespace orrery;

using namespace orrery::schedule;

static_assert(verify(ring{}, 64));
static_assert(verify(wallfacer<2>{}, 64));
static_assert(verify(wallfacer<4>{}, 64));
static_assert(verify(concentric<4, 4>{}, 64));
static_assert(verify(ulysses{}, 64));
static_assert(verify(usp<4>{}, 64));
static_assert(verify(double_ring<8>{}, 64));
static_assert(verify(all_gather{}, 64));

static_assert(verify(ring{}, 7));
static_assert(verify(wallfacer<3>{}, 18));
static_assert(verify(all_to_all<2, wallfacer<2>>{}, 8));

static_assert(verify(wallfacer<2>{}, 6).found == fault::world_refused);
static_assert(verify(wallfacer<2>{}, 6).reason != nullptr);
static_assert(!verify(ring{}, 0).ok());

TEST_CASE("the compiler has proved forward schedules of 64 ranks") { CHECK(verify(ring{}, 64)); }

}  // namespace proofs_forward_test
