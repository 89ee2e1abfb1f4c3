// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/draw/grid.hpp"

#include <stdexcept>

#include <doctest/doctest.h>

#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"

using namespace orrery;

using namespace orrery::schedule;

TEST_CASE("a ring's grid") {
  CHECK(draw_grid(ring{}, 3) ==
        "step   | 0         | 1         | 2  \n"
        "rank 0 | 0x0 >1:k0 | 0x2 >1:k2 | 0x1\n"
        "rank 1 | 1x1 >2:k1 | 1x0 >2:k0 | 1x2\n"
        "rank 2 | 2x2 >0:k2 | 2x1 >0:k1 | 2x0\n");
  CHECK(draw_grid(ring{}, 1) ==
        "step   | 0  \n"
        "rank 0 | 0x0\n");
}

TEST_CASE("partials are marked, and a rank that waits has an empty cell") {
  CHECK(draw_grid(ring{}, 3, pass::circulate_queries) ==
        "step   | 0         | 1         | 2          | 3     \n"
        "rank 0 | 0x0 >1:q0 | 2x0 >1:q2 | 1x0 >1:+q2 | >1:+q1\n"
        "rank 1 | 1x1 >2:q1 | 0x1 >2:q0 | 2x1 >2:+q0 | >2:+q2\n"
        "rank 2 | 2x2 >0:q2 | 1x2 >0:q1 | 0x2 >0:+q1 | >0:+q0\n");
}

TEST_CASE("slices are named, runs of shards shortened") {
  CHECK(draw_grid(ulysses{}, 3) ==
        "step   | 0               | 1         | 2            \n"
        "rank 0 | >1:q0k0 >2:q0k0 | 0-2x0-2.0 | >1:+q1 >2:+q2\n"
        "rank 1 | >2:q1k1 >0:q1k1 | 0-2x0-2.1 | >2:+q2 >0:+q0\n"
        "rank 2 | >0:q2k2 >1:q2k2 | 0-2x0-2.2 | >0:+q0 >1:+q1\n");
}

TEST_CASE("what a cell has no room for is counted") {
  CHECK(draw_grid(all_gather{}, 5, pass::forward, 16) ==
        "step   | 0              | 1    \n"
        "rank 0 | >1:k0 >2:k0 +2 | 0x0-4\n"
        "rank 1 | >2:k1 >3:k1 +2 | 1x0-4\n"
        "rank 2 | >3:k2 >4:k2 +2 | 2x0-4\n"
        "rank 3 | >4:k3 >0:k3 +2 | 3x0-4\n"
        "rank 4 | >0:k4 >1:k4 +2 | 4x0-4\n");
}

TEST_CASE("a refused world is not drawn") {
  CHECK_THROWS_AS(static_cast<void>(draw_grid(wallfacer<2>{}, 6)), std::invalid_argument);
}
