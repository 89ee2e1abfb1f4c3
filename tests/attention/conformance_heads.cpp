// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// ulysses, usp and other topologies inside an all-to-all against the oracle: heads that do not divide, key heads that
// slices share.
#include <utility>

#include "orrery/topology/all_to_all.hpp"

#include "attention/matrix.hpp"

using attention_test::check;
using attention_test::check_masks_and_layouts;
using attention_test::check_shapes;
using attention_test::check_worlds;
using orrery::all_to_all;
using orrery::ring;
using orrery::ulysses;
using orrery::usp;
using orrery::wallfacer;

TEST_CASE("ulysses: masks and layouts") { check_masks_and_layouts<ulysses>(8); }
TEST_CASE("ulysses: worlds") { check_worlds<ulysses>(); }
TEST_CASE("ulysses: shapes") { check_shapes<ulysses>(3); }

TEST_CASE("usp<2>: masks and layouts") { check_masks_and_layouts<usp<2>>(6); }
TEST_CASE("usp<2>: worlds") { check_worlds<usp<2>>(); }
TEST_CASE("usp<2>: shapes") { check_shapes<usp<2>>(8); }

TEST_CASE("usp<4>: masks and layouts") { check_masks_and_layouts<usp<4>>(8); }
TEST_CASE("usp<4>: worlds") { check_worlds<usp<4>>(); }

TEST_CASE("heads that do not divide by the slices") {
  const auto shape = [](int heads, int key_heads) {
    return orrery::attention_shape{
        .batch = 2, .length = 29, .query_heads = heads, .key_heads = key_heads, .head_dim = 3, .value_dim = 4};
  };
  for (const auto& [heads, key_heads] :
       {std::pair{6, 6}, std::pair{6, 3}, std::pair{6, 2}, std::pair{6, 1}, std::pair{12, 12}, std::pair{12, 4},
        std::pair{12, 3}, std::pair{12, 1}, std::pair{5, 1}, std::pair{7, 7}, std::pair{4, 2}}) {
    check<ulysses>(4, shape(heads, key_heads), orrery::causal{}, orrery::zigzag{});
    check<usp<4>>(8, shape(heads, key_heads), orrery::full{}, orrery::contiguous{});
  }
  for (const int key_heads : {28, 14, 7, 4, 2, 1}) {
    check<ulysses>(8, shape(28, key_heads), orrery::causal{}, orrery::striped<1>{});
  }
}

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
