// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Sequences that peers get wrong.
#include "attention/matrix.hpp"

using attention_test::check;

TEST_CASE("7 tokens over 2 ranks, 2999 over 4") {
  check<orrery::ring>(2, {.length = 7, .query_heads = 2, .head_dim = 4}, orrery::causal{}, orrery::zigzag{});
  check<orrery::ring>(2, {.length = 7, .query_heads = 2, .head_dim = 4}, orrery::causal{}, orrery::contiguous{});
  check<orrery::ring>(4, {.length = 2999, .query_heads = 1, .head_dim = 2}, orrery::causal{}, orrery::zigzag{});
}

TEST_CASE("fewer tokens than ranks, on every rank that has none") {
  for (const std::int64_t length : {1, 2, 3}) {
    const orrery::attention_shape shape{.length = length, .query_heads = 8, .key_heads = 2, .head_dim = 3};
    check<orrery::ring>(8, shape, orrery::causal{}, orrery::zigzag{});
    check<orrery::wallfacer<2>>(8, shape, orrery::causal{}, orrery::contiguous{});
    check<orrery::concentric<2>>(8, shape, orrery::causal{}, orrery::striped<3>{});
    check<orrery::ulysses>(8, shape, orrery::causal{}, orrery::zigzag{});
    check<orrery::double_ring<2>>(8, shape, orrery::causal{}, orrery::zigzag{});
  }
}

TEST_CASE("nothing is visible at all") {
  const orrery::attention_shape shape{.length = 20, .query_heads = 4, .head_dim = 3};
  check<orrery::ring>(4, shape, orrery::causal{-20}, orrery::contiguous{});
  check<orrery::wallfacer<2>>(4, shape, orrery::causal{-20}, orrery::zigzag{});
  check<orrery::ulysses>(4, shape, orrery::causal{-20}, orrery::zigzag{});
}
