// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// wallfacer and concentric against the oracle.
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/wallfacer.hpp"

#include "attention/matrix.hpp"

using attention_test::check_masks_and_layouts;
using attention_test::check_shapes;
using attention_test::check_worlds;
using orrery::concentric;

TEST_CASE("wallfacer<2>: masks and layouts") { check_masks_and_layouts<orrery::wallfacer<2>>(8); }
TEST_CASE("wallfacer<2>: worlds") { check_worlds<orrery::wallfacer<2>>(); }
TEST_CASE("wallfacer<2>: shapes") { check_shapes<orrery::wallfacer<2>>(8); }

TEST_CASE("wallfacer<3>: masks and layouts") { check_masks_and_layouts<orrery::wallfacer<3>>(9); }
TEST_CASE("wallfacer<3>: shapes") { check_shapes<orrery::wallfacer<3>>(9); }
TEST_CASE("wallfacer<3>: two teams' rings") {
  attention_test::check<orrery::wallfacer<3>>(18, {.length = 101, .query_heads = 2, .head_dim = 4}, orrery::causal{},
                                              orrery::zigzag{});
}

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
