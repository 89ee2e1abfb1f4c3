// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/mask/prefix.hpp"

#include <cstdint>

#include <doctest/doctest.h>

#include "mask/brute_force.hpp"

using orrery::prefix;

static_assert(prefix{3}.visible(0, 2) && !prefix{3}.visible(0, 3) && prefix{3}.visible(4, 4));
static_assert(prefix{3}.visible(-2, 2) && !prefix{3}.visible(-2, 3) && prefix{0}.keys_of(-5, -2).empty());

TEST_CASE("prefixes beside their definition") {
  for (const std::int64_t length : {std::int64_t{0}, std::int64_t{1}, std::int64_t{4}, std::int64_t{8}, INT64_MAX}) {
    CHECK(mask_test::first_wrong(
              prefix{length}, [&](std::int64_t query, std::int64_t key) { return key < length || key <= query; }, 6,
              8) == "");
  }
  CHECK(prefix{256}.name() == "prefix<256>");
  CHECK(prefix{0}.wrong_lengths(5, 5) == "");
  CHECK(prefix{-3}.wrong_lengths(5, 5) == "prefix::length is -3, expected at least 0 keys");
}
