// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The concepts of masks, and intervals of positions.
#include "orrery/mask/mask.hpp"

#include <cstdint>
#include <string>

#include <doctest/doctest.h>

namespace {

using orrery::position_interval;

/// All that a mask must have.
struct least {
  [[nodiscard]] static bool visible(std::int64_t, std::int64_t) { return true; }
  [[nodiscard]] static orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
    return orrery::visibility::some;
  }
  [[nodiscard]] static std::string name() { return "least"; }
};
struct with_keys_of : least {
  [[nodiscard]] static position_interval keys_of(std::int64_t, std::int64_t) { return {0, INT64_MAX}; }
};
struct with_rows : with_keys_of {
  static constexpr bool rows_are_intervals = true;
};
struct without_rows : with_keys_of {
  static constexpr bool rows_are_intervals = false;
};
struct nameless {
  [[nodiscard]] static bool visible(std::int64_t, std::int64_t) { return true; }
};

static_assert(orrery::mask<least> && !orrery::mask<nameless>);
static_assert(!orrery::mask_with_keys_of<least> && !orrery::diagonal_mask<least>);
static_assert(orrery::mask_with_keys_of<with_keys_of> && !orrery::detail::mask_of_intervals<with_keys_of>);
static_assert(orrery::detail::mask_of_intervals<with_rows> && !orrery::detail::mask_of_intervals<without_rows>);

static_assert(position_interval{}.empty() && !position_interval{3, 3}.empty());
static_assert(position_interval{3, 5}.contains(5) && !position_interval{3, 5}.contains(6));
static_assert((position_interval{3, 9} & position_interval{5, 12}) == position_interval{5, 9});
static_assert((position_interval{3, 4} & position_interval{6, 7}).empty());
static_assert(position_interval::hull({3, 4}, {7, 8}) == position_interval{3, 8});
static_assert(position_interval::hull({}, {7, 8}) == position_interval{7, 8});
static_assert(position_interval::hull({7, 8}, {9, 2}) == position_interval{7, 8});

}  // namespace

TEST_CASE("sums of offsets and positions stop at the largest and smallest numbers") {
  using orrery::detail::saturating_sum;
  constexpr std::int64_t most = INT64_MAX;
  constexpr std::int64_t least = INT64_MIN;
  CHECK(saturating_sum(most, 1) == most);
  CHECK(saturating_sum(1, most) == most);
  CHECK(saturating_sum(least, -1) == least);
  CHECK(saturating_sum(-1, least) == least);
  CHECK(saturating_sum(least, most) == -1);
  CHECK(saturating_sum(3, -5) == -2);
}
