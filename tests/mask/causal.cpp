// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Causal masks, with offsets of any size and both alignments.
#include "orrery/mask/causal.hpp"

#include <cstdint>

#include <doctest/doctest.h>

#include "mask/brute_force.hpp"

namespace causal_test {

using orrery::causal;
using orrery::position_interval;
using orrery::visibility;

namespace {

constexpr std::int64_t most = INT64_MAX;

// In constant expressions, so that an overflow does not compile.
static_assert(causal{most}.visible(0, most) && causal{most}.visible(most, most) && causal{most}.visible(most, 0));
static_assert(!causal{-most - 1}.visible(most, 0) && !causal{-most - 1}.visible(0, 0));
static_assert(causal{-most}.visible(most, 0) && !causal{-most}.visible(most, 1) && !causal{-most}.visible(most - 1, 0));
static_assert(causal{most}.classify(0, most, 0, most) == visibility::all);
static_assert(causal{-most - 1}.classify(0, most, 0, most) == visibility::none);
static_assert(causal{-most}.classify(0, most, 0, most) == visibility::some);
static_assert(causal{most - 1}.classify(0, most, 0, most) == visibility::some);
static_assert(causal{most}.keys_of(0, most) == position_interval{0, most} && causal{-9}.keys_of(0, 8).empty());
// Within documents positions of queries may be negative.
static_assert(!causal{}.visible(-1, 0) && causal{3}.visible(-1, 2) && !causal{-most}.visible(-9, 0));
static_assert(causal::bottom_right(3, 8) == causal{5} && causal::bottom_right(8, 3) == causal{-5});

}  // namespace

TEST_CASE("causal masks beside their definition") {
  for (const std::int64_t offset : {-most - 1, -most, std::int64_t{-5}, std::int64_t{-1}, std::int64_t{0},
                                    std::int64_t{1}, std::int64_t{4}, most - 1, most}) {
    CHECK(mask_test::first_wrong(
              causal{offset}, [&](std::int64_t query, std::int64_t key) { return key - query <= offset; }, 6, 6) == "");
  }
}

TEST_CASE("aligned at the bottom right, the last query sees the last key and none before it sees it") {
  for (std::int64_t queries = 1; queries < 7; ++queries) {
    for (std::int64_t keys = 1; keys < 7; ++keys) {
      const causal mask = causal::bottom_right(queries, keys);
      CHECK(mask_test::first_wrong(
                mask, [&](std::int64_t query, std::int64_t key) { return queries - query <= keys - key; }, queries,
                keys) == "");
    }
  }
  CHECK(causal::bottom_right(7, 7).name() == "causal");
  CHECK(causal::bottom_right(3, 8).name() == "causal with offset 5");
}

}  // namespace causal_test
