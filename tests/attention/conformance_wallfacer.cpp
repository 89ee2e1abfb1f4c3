// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// wallfacer against the oracle.
#include "orrery/topology/wallfacer.hpp"

#include "attention/matrix.hpp"

using attention_test::check_masks_and_layouts;
using attention_test::check_shapes;
using attention_test::check_worlds;

TEST_CASE("wallfacer<2>: masks and layouts") { check_masks_and_layouts<orrery::wallfacer<2>>(8); }
TEST_CASE("wallfacer<2>: worlds") { check_worlds<orrery::wallfacer<2>>(); }
TEST_CASE("wallfacer<2>: shapes") { check_shapes<orrery::wallfacer<2>>(8); }

TEST_CASE("wallfacer<3>: masks and layouts") { check_masks_and_layouts<orrery::wallfacer<3>>(9); }
TEST_CASE("wallfacer<3>: shapes") { check_shapes<orrery::wallfacer<3>>(9); }
TEST_CASE("wallfacer<3>: two teams' rings") {
  attention_test::check<orrery::wallfacer<3>>(18, {.length = 101, .query_heads = 2, .head_dim = 4}, orrery::causal{},
                                              orrery::zigzag{});
}
