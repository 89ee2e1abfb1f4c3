// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Masks combined by &, also with a user's own.
#include "orrery/mask/intersection.hpp"

#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"

#include "mask/brute_force.hpp"

namespace intersection_test {

using orrery::causal;
using orrery::full;
using orrery::intersection;
using orrery::prefix;
using orrery::window;

namespace {

/// A user's mask, of which no rectangle and no interval is known.
struct even_keys {
  [[nodiscard]] constexpr bool visible(std::int64_t, std::int64_t key) const { return key % 2 == 0; }
  [[nodiscard]] constexpr orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) const {
    return orrery::visibility::some;
  }
  [[nodiscard]] static std::string name() { return "even keys"; }
};

constexpr auto sliding = causal{} & window{.left = 3};
static_assert(sliding.visible(5, 2) && !sliding.visible(5, 1) && !sliding.visible(5, 6));
static_assert(sliding.keys_of(5, 9) == orrery::position_interval{2, 9});
static_assert(std::is_trivially_copyable_v<decltype(sliding)>);  // for device kernels
static_assert(orrery::detail::mask_of_intervals<decltype(sliding)> && !orrery::diagonal_mask<decltype(sliding)>);

static_assert(std::same_as<decltype(full{} & causal{}), causal> && std::same_as<decltype(window{} & full{}), window>);
static_assert((causal{4} & causal{-1}).diagonal() == -1);
static_assert((causal{} & causal{1}) == (causal{} & causal{1}) && !((causal{} & causal{1}) == (causal{} & causal{2})));

static_assert(orrery::mask_with_keys_of<decltype(even_keys{} & causal{})>);
static_assert(!orrery::detail::mask_of_intervals<decltype(even_keys{} & causal{})>);
static_assert(!orrery::mask_with_keys_of<decltype(intersection{even_keys{}, even_keys{}})>);

}  // namespace

TEST_CASE("intersections beside their definition") {
  const auto both = [](const auto& a, const auto& b) {
    return [&](std::int64_t query, std::int64_t key) { return a.visible(query, key) && b.visible(query, key); };
  };
  for (std::int64_t offset = -3; offset < 4; ++offset) {
    for (std::int64_t left = 0; left < 4; ++left) {
      const causal diagonal{offset};
      const window sides{.left = left, .right = 2};
      // A window beyond the diagonal shows nothing, which no rectangle by itself says.
      const mask_test::exact exact{.classify = offset >= -left, .keys_of = offset >= -left};
      CHECK(mask_test::first_wrong(diagonal & sides, both(diagonal, sides), 7, 8, exact) == "");
      CHECK(mask_test::first_wrong(sides & diagonal, both(diagonal, sides), 7, 8, exact) == "");
      const even_keys own;
      CHECK(mask_test::first_wrong(own & sides, both(own, sides), 7, 8, {false, false}) == "");
      CHECK(mask_test::first_wrong(diagonal & own & sides, both(diagonal & own, sides), 7, 8, {false, false}) == "");
    }
  }
  CHECK(mask_test::first_wrong(prefix{3} & window{.left = 2}, both(prefix{3}, window{.left = 2}), 7, 8,
                               {false, false}) == "");
}

TEST_CASE("names of intersections, and what is wrong with an operand") {
  CHECK(sliding.name() == "causal & window<3,-1>");
  CHECK((causal{2} & even_keys{} & window{1, 1}).name() == "causal with offset 2 & even keys & window<1,1>");
  CHECK(sliding.wrong_lengths(4, 4) == "");
  CHECK((causal{} & window{.left = -7}).wrong_lengths(4, 4).find("window::left is -7") == 0);
  CHECK((prefix{-1} & window{}).wrong_lengths(4, 4).find("prefix::length is -1") == 0);
}

}  // namespace intersection_test
