// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/mask/intervals.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/intersection.hpp"

#include "mask/brute_force.hpp"
#include "support/refusal.hpp"

namespace intervals_test {

using orrery::intervals;

namespace {

using positions = std::vector<int>;

constexpr bool works_at_compile_time() {
  const std::array first{0, 1, 2};
  const std::array end{3, 1, 9};
  const intervals mask{first, end};
  return mask.visible(2, 0) && !mask.visible(3, 0) && !mask.visible(1, 1) && mask.visible(8, 2) &&
         mask.keys_of(5, 6) == orrery::position_interval{2, 2};
}
static_assert(works_at_compile_time());
static_assert(orrery::mask_with_keys_of<intervals> && !orrery::detail::mask_of_intervals<intervals>);

std::function<bool(std::int64_t, std::int64_t)> definition(const positions& first, const positions& end) {
  return [=](std::int64_t query, std::int64_t key) {
    const auto j = static_cast<std::size_t>(key);
    return j < first.size() && first[j] <= query && query < end[j];
  };
}

}  // namespace

TEST_CASE("intervals beside their definition: all of three keys and four queries") {
  for (int code = 0; code < 15 * 15 * 15; ++code) {
    positions first, end;
    for (int rest = code, key = 0; key < 3; ++key, rest /= 15) {
      int choice = rest % 15;  // of 0 <= first <= end <= 4
      int begin = 0;
      while (choice > 4 - begin) choice -= 5 - begin++;
      first.push_back(begin);
      end.push_back(begin + choice);
    }
    CHECK(mask_test::first_wrong(intervals{first, end}, definition(first, end), 5, 4) == "");
  }
}

TEST_CASE("intervals beside their definition: some groups of keys, with keys that nothing sees") {
  std::mt19937 random{7};
  for (int round = 0; round < 40; ++round) {
    const int keys = 1 + static_cast<int>(random() % 220);
    const int queries = 12;
    positions first, end;
    for (int key = 0; key < keys; ++key) {
      const bool hidden = round % 3 == 0 && random() % 4 != 0;
      const int begin = round % 5 == 0 && key < 130 ? 3 : static_cast<int>(random() % queries);
      first.push_back(begin);
      end.push_back(hidden ? begin : begin + static_cast<int>(random() % static_cast<unsigned>(queries + 1 - begin)));
    }
    const intervals mask{first, end};
    const auto visible = definition(first, end);
    for (int q0 = 0; q0 < queries; q0 += 2) {
      for (int q1 = q0; q1 < queries; q1 += 3) {
        orrery::position_interval hull;
        std::vector<int> seen{0};  // pairs of the keys before
        for (int k = 0; k < keys + 3; ++k) {
          int of_key = 0;
          for (int q = q0; q <= q1; ++q) of_key += visible(q, k) ? 1 : 0;
          if (of_key > 0) hull = orrery::position_interval::hull(hull, {k, k});
          seen.push_back(seen.back() + of_key);
        }
        CHECK(mask.keys_of(q0, q1) == hull);
        int wrong = 0;
        for (int k0 = 0; k0 < keys + 3; k0 += 5) {
          for (int k1 = k0; k1 < keys + 3; ++k1) {
            const int pairs = seen[static_cast<std::size_t>(k1 + 1)] - seen[static_cast<std::size_t>(k0)];
            const auto right = pairs == 0                               ? orrery::visibility::none
                               : pairs == (q1 - q0 + 1) * (k1 - k0 + 1) ? orrery::visibility::all
                                                                        : orrery::visibility::some;
            wrong += mask.classify(q0, q1, k0, k1) == right ? 0 : 1;
          }
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("a group of keys with one that nothing sees is not all visible") {
  positions first(128, 0);
  positions end(128, 12);
  CHECK(intervals{first, end}.classify(0, 11, 0, 127) == orrery::visibility::all);
  first[70] = end[70] = 5;
  const intervals mask{first, end};
  CHECK(mask.classify(0, 11, 0, 127) == orrery::visibility::some);
  CHECK(mask.classify(0, 11, 64, 127) == orrery::visibility::some);
  CHECK(mask.classify(5, 5, 64, 127) == orrery::visibility::some);
  CHECK(mask.classify(0, 11, 0, 63) == orrery::visibility::all);
  CHECK(mask.classify(5, 5, 70, 70) == orrery::visibility::none);
}

TEST_CASE("intervals of causal masks") {
  const positions end{2, 2, 6, 6, 5, 6};
  CHECK(mask_test::first_wrong(
            intervals::causal_until(end),
            [&](std::int64_t query, std::int64_t key) {
              return key <= query && query < end[static_cast<std::size_t>(key)];
            },
            6, 6) == "");
  // Packed causal documents are causal until the end of their document.
  const auto packed = orrery::documents{std::array{2, 1, 3}} & orrery::causal{};
  const intervals same = intervals::causal_until(std::array{2, 2, 3, 6, 6, 6});
  CHECK(mask_test::first_wrong(
            same, [&](std::int64_t query, std::int64_t key) { return packed.visible(query, key); }, 8, 8) == "");
}

TEST_CASE("names, values and copies of intervals") {
  const intervals mask{positions{0, 1}, positions{3, 4}};
  CHECK(mask.keys() == 2);
  CHECK(mask == intervals{std::array<std::int64_t, 2>{0, 1}, std::array<std::uint8_t, 2>{3, 4}});
  CHECK_FALSE(mask == intervals{positions{0, 1}, positions{3, 5}});
  CHECK(mask.name().find("intervals<2 keys, digest ") == 0);
  CHECK(mask.name() != intervals{positions{0, 1}, positions{3, 5}}.name());
  CHECK((mask & orrery::causal{}).name() == mask.name() + " & causal");
}

TEST_CASE("intervals that are wrong are refused by name") {
  const auto said = [](const positions& first, const positions& end) {
    return refusal_of([&] { static_cast<void>(intervals{first, end}); });
  };
  CHECK(said({0, 1}, {3}) ==
        "orrery: intervals: first has 2 numbers and end has 1, expected as many: one for each key");
  CHECK(said({}, {}) == "orrery: intervals: first has 0 numbers, expected one for each key, at most 2^29");
  CHECK(said({0, -1}, {3, 3}) == "orrery: intervals: first[1] is -1, expected at least 0");
  CHECK(said({0, 5}, {3, 4}) ==
        "orrery: intervals: end[1] is 4, before first[1] is 5, expected at least as much; equal ones hide the key from "
        "all queries");
  CHECK(refusal_of([] { static_cast<void>(intervals::causal_until(positions{1, 1})); }) == "");
  CHECK(refusal_of([] {
          static_cast<void>(intervals::causal_until(positions{1, 0}));
        }).find("end[1] is 0, before first[1] is 1") != std::string::npos);
  const intervals mask{positions{0, 1}, positions{3, 4}};
  CHECK(mask.wrong_lengths(4, 2) == "");
  CHECK(mask.wrong_lengths(3, 2) ==
        "an interval ends before query 4, but length is 3; expected intervals of queries of the sequence");
  CHECK(mask.wrong_lengths(4, 1) ==
        "the intervals are of 2 keys, but key_length is 1; expected at most one for each key");
}

}  // namespace intervals_test
