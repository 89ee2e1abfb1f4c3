// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Counts of visible pairs, in closed form or row by row, against asking about each pair.
#include "orrery/predict/detail/visible_pairs.hpp"

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"

using orrery::segment;
using orrery::detail::pair_count;

namespace {

/// A mask that knows nothing but pairs.
struct odd {
  [[nodiscard]] static bool visible(std::int64_t query, std::int64_t key) { return (query * 7 + key * 3) % 5 < 2; }
  [[nodiscard]] static orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
    return orrery::visibility::some;
  }
  [[nodiscard]] static std::string name() { return "odd"; }
};

/// A mask of intervals without end.
struct no_end {
  std::int64_t begin;

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const { return key >= begin + query % 3; }
  [[nodiscard]] static orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
    return orrery::visibility::some;
  }
  [[nodiscard]] orrery::position_interval keys_of(std::int64_t first, std::int64_t last) const {
    return {begin + (first == last ? first % 3 : 0), INT64_MAX};
  }
  static constexpr bool rows_are_intervals = true;
  [[nodiscard]] static std::string name() { return "no end"; }
};

template <class Mask>
pair_count asked(const Mask& mask, const segment& queries, const segment& keys) {
  pair_count n;
  for (std::int64_t i = 0; i < queries.count; ++i) {
    std::int64_t seen = 0;
    for (std::int64_t j = 0; j < keys.count; ++j) {
      seen += mask.visible(queries.position(i), keys.position(j)) ? 1 : 0;
    }
    n.pairs += seen;
    n.rows += seen > 0 ? 1 : 0;
    n.longest_row = (std::max)(n.longest_row, seen);
    n.partial_rows += seen > 0 && seen < keys.count ? 1 : 0;
  }
  return n;
}

template <class Mask>
bool is_right(const Mask& mask, const segment& queries, const segment& keys) {
  const bool right = orrery::detail::count_visible_pairs(mask, queries, keys) == asked(mask, queries, keys);
  if (!right) {
    MESSAGE(mask.name(), ": queries ", queries.begin, " ", queries.count, " ", queries.run, " ", queries.stride,
            ", keys ", keys.begin, " ", keys.count, " ", keys.run, " ", keys.stride);
  }
  return right;
}

}  // namespace

TEST_CASE("pairs, rows and partial rows are those that asking about each pair gives") {
  std::mt19937 random{1};
  const auto from = [&](int least, int most) {
    return static_cast<std::int64_t>(least) +
           static_cast<std::int64_t>(random() % static_cast<unsigned>(most - least + 1));
  };
  const auto piece = [&] {
    segment s;
    s.begin = from(0, 40);
    s.count = from(1, 30);
    s.run = from(0, 1) == 1 ? s.count : from(1, 5);
    s.stride = s.run + from(0, 9);
    return s;
  };
  const std::int64_t lengths[] = {9, 1, 20, 5, 65, 1000};
  const orrery::documents documents{lengths};
  int wrong = 0;
  for (int i = 0; i < 20000; ++i) {
    segment queries = piece(), keys = piece();
    if (from(0, 1) == 1 && queries.run < queries.count && keys.run <= queries.stride) keys.stride = queries.stride;
    wrong += is_right(orrery::full{}, queries, keys) ? 0 : 1;
    wrong += is_right(orrery::causal{from(-20, 20)}, queries, keys) ? 0 : 1;
    wrong += is_right(orrery::window{from(0, 9), from(0, 9)}, queries, keys) ? 0 : 1;
    wrong += is_right(orrery::causal{} & orrery::window{4, -1}, queries, keys) ? 0 : 1;
    wrong += is_right(orrery::window{from(0, 9), -1}, queries, keys) ? 0 : 1;
    wrong += is_right(orrery::window{-1, from(0, 9)}, queries, keys) ? 0 : 1;
    wrong += is_right(no_end{from(0, 40)}, queries, keys) ? 0 : 1;
    wrong += is_right(orrery::prefix{from(0, 50)}, queries, keys) ? 0 : 1;
    wrong += is_right(documents & orrery::causal{}, queries, keys) ? 0 : 1;
    wrong += is_right(odd{}, queries, keys) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("long sequences and far diagonals are counted without overflow") {
  const std::int64_t n = std::int64_t{1} << 31;
  const segment all{0, n, n, n};
  CHECK(orrery::detail::count_visible_pairs(orrery::causal{}, all, all).pairs == n / 2 * (n + 1));
  CHECK(orrery::detail::count_visible_pairs(orrery::causal{INT64_MAX}, all, all).partial_rows == 0);
  CHECK(orrery::detail::count_visible_pairs(orrery::causal{INT64_MIN}, all, all).pairs == 0);
  const segment striped{3, n / 8, 1, 8};
  CHECK(orrery::detail::count_visible_pairs(orrery::causal{}, striped, striped).pairs == n / 16 * (n / 8 + 1));
  CHECK(orrery::detail::count_visible_pairs(orrery::full{}, {0, 0, 1, 1}, all).pairs == 0);
}
