// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// ring, double_ring, all_gather and a user's own ring against the oracle.
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/ring.hpp"

#include "attention/matrix.hpp"

using attention_test::check_masks_and_layouts;
using attention_test::check_shapes;
using attention_test::check_worlds;
using orrery::double_ring;

TEST_CASE("ring: masks and layouts") { check_masks_and_layouts<orrery::ring>(7); }
TEST_CASE("ring: worlds") { check_worlds<orrery::ring>(); }
TEST_CASE("ring: shapes") {
  check_shapes<orrery::ring>(8);
  check_shapes<orrery::ring>(2);
}

TEST_CASE("all_gather: masks and layouts") { check_masks_and_layouts<orrery::all_gather>(5); }
TEST_CASE("all_gather: worlds") { check_worlds<orrery::all_gather>(); }
TEST_CASE("all_gather: shapes") { check_shapes<orrery::all_gather>(6); }

TEST_CASE("a user's ring: masks and layouts") { check_masks_and_layouts<my_ring>(6); }
TEST_CASE("a user's ring: worlds") { check_worlds<my_ring>(); }
TEST_CASE("a user's ring: shapes") { check_shapes<my_ring>(5); }

TEST_CASE("double_ring<2>: masks and layouts") { check_masks_and_layouts<double_ring<2>>(6); }
TEST_CASE("double_ring<2>: worlds") { check_worlds<double_ring<2>>(); }
TEST_CASE("double_ring<2>: shapes") { check_shapes<double_ring<2>>(8); }

TEST_CASE("double_ring<4>: masks and layouts") { check_masks_and_layouts<double_ring<4>>(8); }
TEST_CASE("double_ring<4>: worlds") { check_worlds<double_ring<4>>(); }
TEST_CASE("double_ring<4>: shapes") { check_shapes<double_ring<4>>(8); }
