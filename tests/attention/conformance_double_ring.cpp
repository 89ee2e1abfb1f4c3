// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// double_ring against the oracle.
#include "orrery/topology/double_ring.hpp"

#include "attention/matrix.hpp"

using attention_test::check_masks_and_layouts;
using attention_test::check_shapes;
using attention_test::check_worlds;
using orrery::double_ring;

TEST_CASE("double_ring<2>: masks and layouts") { check_masks_and_layouts<double_ring<2>>(6); }
TEST_CASE("double_ring<2>: worlds") { check_worlds<double_ring<2>>(); }
TEST_CASE("double_ring<2>: shapes") { check_shapes<double_ring<2>>(8); }

TEST_CASE("double_ring<4>: masks and layouts") { check_masks_and_layouts<double_ring<4>>(8); }
TEST_CASE("double_ring<4>: worlds") { check_worlds<double_ring<4>>(); }
TEST_CASE("double_ring<4>: shapes") { check_shapes<double_ring<4>>(8); }
