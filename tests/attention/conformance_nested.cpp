// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Other topologies inside an all-to-all, against the oracle.
#include <utility>

#include "attention/matrix.hpp"

using attention_test::check_masks_and_layouts;
using attention_test::check_shapes;
using attention_test::check_worlds;
using orrery::all_to_all;
using orrery::ring;
using orrery::wallfacer;

TEST_CASE("all_to_all<2, wallfacer<2>>: masks and layouts") { check_masks_and_layouts<all_to_all<2, wallfacer<2>>>(8); }
TEST_CASE("all_to_all<2, wallfacer<2>>: worlds") { check_worlds<all_to_all<2, wallfacer<2>>>(); }
TEST_CASE("all_to_all<2, wallfacer<2>>: shapes") { check_shapes<all_to_all<2, wallfacer<2>>>(8); }

TEST_CASE("all_to_all<2, all_to_all<2, ring>>: masks and layouts") {
  check_masks_and_layouts<all_to_all<2, all_to_all<2, ring>>>(8);
}
TEST_CASE("all_to_all<2, all_to_all<2, ring>>: worlds") { check_worlds<all_to_all<2, all_to_all<2, ring>>>(); }
TEST_CASE("all_to_all<2, all_to_all<2, ring>>: heads that do not divide by the slices") {
  for (const auto& [heads, key_heads] : {std::pair{6, 3}, std::pair{6, 2}, std::pair{5, 1}, std::pair{7, 7}}) {
    attention_test::check<all_to_all<2, all_to_all<2, ring>>>(
        8, {.batch = 2, .length = 29, .query_heads = heads, .key_heads = key_heads, .head_dim = 3, .value_dim = 4},
        orrery::causal{}, orrery::contiguous{});
  }
}
