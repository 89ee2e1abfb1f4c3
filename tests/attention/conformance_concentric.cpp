// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// concentric against the oracle.
#include "orrery/topology/concentric.hpp"

#include "attention/matrix.hpp"

using attention_test::check_masks_and_layouts;
using attention_test::check_shapes;
using attention_test::check_worlds;
using orrery::concentric;

TEST_CASE("concentric<2>: masks and layouts") { check_masks_and_layouts<concentric<2>>(6); }
TEST_CASE("concentric<2>: worlds") { check_worlds<concentric<2>>(); }
TEST_CASE("concentric<2>: shapes") { check_shapes<concentric<2>>(8); }

TEST_CASE("concentric<2, 2>: masks and layouts") { check_masks_and_layouts<concentric<2, 2>>(8); }
TEST_CASE("concentric<2, 2>: worlds") { check_worlds<concentric<2, 2>>(); }
TEST_CASE("concentric<2, 2>: shapes") { check_shapes<concentric<2, 2>>(4); }

TEST_CASE("concentric<3>: masks and layouts") { check_masks_and_layouts<concentric<3>>(9); }
TEST_CASE("concentric<3>: worlds") { check_worlds<concentric<3>>(); }

TEST_CASE("concentric<1, 2>: masks and layouts") { check_masks_and_layouts<concentric<1, 2>>(8); }
TEST_CASE("concentric<1, 2>: worlds") { check_worlds<concentric<1, 2>>(); }
