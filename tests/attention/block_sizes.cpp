// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <stdexcept>

#include <doctest/doctest.h>

#include "orrery/attention/sizes.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/topology/ring.hpp"

namespace block_sizes_test {

using orrery::attention_sizes;
using orrery::pass;
using orrery::schedule::payload;
using orrery::schedule::side;

namespace {

using kernel = orrery::flash<orrery::bfloat16>;  // stores 2 bytes, sums 4

const orrery::attention_shape shape{
    .batch = 2, .length = 10, .query_heads = 6, .key_heads = 2, .head_dim = 3, .value_dim = 5, .key_length = 7};

}  // namespace

TEST_CASE("the bytes of each kind of block") {
  // Shards of 5 queries and of 4 and 3 keys; slices of 3 query heads and 1 key head.
  const auto forward = attention_sizes::of<kernel>(shape, pass::forward, 2, {}, 2);
  const auto backward = forward.in_pass(pass::circulate_queries);
  for (int slice = 0; slice < 2; ++slice) {
    for (int shard = 0; shard < 2; ++shard) {
      const orrery::schedule::block q{side::query, 0, shard, slice}, k{side::key, 0, shard, slice};
      const std::int64_t keys = forward.tokens(k);
      const std::int64_t rows = 2 * 3 * 5;
      CHECK(forward.tokens(q) == 5);
      CHECK(forward.heads(q) == 3);
      CHECK(forward.heads(k) == 1);
      CHECK(forward(side::query, payload::operand, q) == rows * 3 * 2);
      CHECK(forward(side::query, payload::partial, q) == rows * (5 + 1) * 4);
      CHECK(forward(side::key, payload::operand, k) == 2 * keys * (3 + 5) * 2);
      CHECK(forward(side::key, payload::partial, k) == 0);
      CHECK(forward.operand_bytes(1, k) == 2 * keys * 3 * 2);
      CHECK(forward.operand_bytes(2, k) == 2 * keys * 5 * 2);
      CHECK(backward(side::query, payload::operand, q) == rows * ((3 + 5) * 2 + 2 * 4));
      CHECK(backward(side::query, payload::partial, q) == rows * 3 * 4);
      CHECK(backward(side::key, payload::operand, k) == 2 * keys * (3 + 5) * 2);
      CHECK(backward(side::key, payload::partial, k) == 2 * keys * (3 + 5) * 4);
    }
  }
  CHECK(forward.tokens({side::key, 0, 0, 0}) + forward.tokens({side::key, 0, 1, 0}) == 7);
  CHECK(forward.tensors().size() == 3);
  CHECK(backward.tensors().size() == 2);
}

TEST_CASE("sizes that no operator can have are refused") {
  const auto sizes = [](const orrery::attention_shape& of, int world, int slices) {
    static_cast<void>(attention_sizes::of<kernel>(of, pass::forward, world, {}, slices));
  };
  CHECK_THROWS_WITH_AS(sizes({.length = 4}, 2, 1), "orrery: attention_sizes: head_dim is 0, expected at least 1",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(sizes(shape, 0, 1), "orrery: attention_sizes: world is 0, expected at least 1",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(sizes(shape, 2, 7),
                       "orrery: attention_sizes: slices is 7, expected a number from 1 to query_heads, 6",
                       std::invalid_argument);
}

TEST_CASE("programs of another world are refused") {
  const auto sizes = attention_sizes::of<kernel>(shape, pass::forward, 2);
  CHECK_THROWS_WITH_AS(static_cast<void>(traffic(orrery::programs_of(orrery::ring{}, 3), sizes)),
                       "orrery: attention_sizes: shard is 2, expected less than 2; the programs must be of the world "
                       "and the slices that the sizes were made for",
                       std::invalid_argument);
}

}  // namespace block_sizes_test
