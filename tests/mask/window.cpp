// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/mask/window.hpp"

#include <cstdint>

#include <doctest/doctest.h>

#include "mask/brute_force.hpp"

namespace window_test {

using orrery::position_interval;
using orrery::window;

namespace {

constexpr std::int64_t most = INT64_MAX;

// In constant expressions, so that an overflow does not compile.
static_assert(window{}.visible(0, most) && window{}.visible(most, 0));
static_assert(window{.left = most}.visible(most, 0) && window{.right = most}.visible(most, most));
static_assert(window{.left = 2, .right = 3}.keys_of(most - 1, most) == position_interval{most - 3, most});
static_assert(window{.left = 2, .right = 3}.keys_of(0, 1) == position_interval{0, 4});
static_assert(window{.right = 2}.keys_of(-9, -3).empty() && !window{.right = 2}.visible(-3, 0));
static_assert(window{.left = 4} == window{4, window::unbounded});

}  // namespace

TEST_CASE("windows beside their definition") {
  for (const std::int64_t left : {window::unbounded, std::int64_t{0}, std::int64_t{1}, std::int64_t{4}, most}) {
    for (const std::int64_t right : {window::unbounded, std::int64_t{0}, std::int64_t{2}, std::int64_t{5}, most}) {
      CHECK(mask_test::first_wrong(
                window{left, right},
                [&](std::int64_t query, std::int64_t key) {
                  return (left < 0 || query - key <= left) && (right < 0 || key - query <= right);
                },
                7, 9) == "");
    }
  }
}

TEST_CASE("names of windows, and windows that are refused") {
  CHECK(window{.left = 4095, .right = 0}.name() == "window<4095,0>");
  CHECK(window{.right = 7}.name() == "window<-1,7>");
  CHECK(window{.left = 3}.wrong_lengths(9, 9) == "");
  CHECK(window{.left = -4}.wrong_lengths(9, 9) ==
        "window::left is -4, expected at least 0 tokens, or -1 (window::unbounded) for all; an offset is causal's");
  CHECK(window{.right = -2}.wrong_lengths(9, 9).find("window::right is -2, expected at least 0") == 0);
}

}  // namespace window_test
