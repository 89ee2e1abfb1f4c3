// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/schedule/builder.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"

/// A user's topology, with nothing but what it needs: the one of the library's first page.
struct my_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift(orrery::key(rank - hop), +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};

/// Every topology, for TEST_CASE_TEMPLATE.
#define ORRERY_TEST_TOPOLOGIES                                                                           \
  orrery::ring, orrery::all_gather, orrery::wallfacer<2>, orrery::wallfacer<3>, orrery::concentric<2>,   \
      orrery::concentric<2, 2>, orrery::concentric<3>, orrery::concentric<1, 2>, orrery::double_ring<2>, \
      orrery::double_ring<4>, orrery::ulysses, orrery::usp<2>, orrery::usp<4>,                           \
      orrery::all_to_all<2, orrery::wallfacer<2>>, orrery::all_to_all<2, orrery::all_to_all<2, orrery::ring>>, my_ring
