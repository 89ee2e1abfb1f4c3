// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Placed topologies against the oracle.
#include "orrery/topology/placed.hpp"
#include "orrery/tune/least_egress.hpp"

#include "attention/matrix.hpp"

namespace {

struct best_on_pairs : orrery::least_egress {
  best_on_pairs() : least_egress{2} {}
};

}  // namespace

TEST_CASE("wallfacer<2> with its rings in nodes") {
  for (const int world : {4, 8}) {
    attention_test::check<orrery::placed<orrery::wallfacer<2>, orrery::rings_in_nodes>>(
        world, {.length = 83, .query_heads = 4, .key_heads = 2, .head_dim = 5}, orrery::causal{}, orrery::zigzag{});
  }
}
TEST_CASE("usp<4> with each pass where it sends least") {
  for (const int world : {4, 8}) {
    attention_test::check<orrery::placed<orrery::usp<4>, best_on_pairs>>(
        world, {.length = 41, .query_heads = 6, .key_heads = 2, .head_dim = 5}, orrery::causal{}, orrery::zigzag{});
  }
}
