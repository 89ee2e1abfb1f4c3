// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What threads of device_flash see of a tile: by searches for masks of intervals and diagonals, as pair by pair.
#include "orrery/kernel/cuda/visible_columns.cuh"

#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/cuda/masked_columns.cuh"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"

namespace {

using orrery::segment;

struct one_lane {
  int number;
  [[nodiscard]] int lane() const { return number; }
};

/// Tiles of tokens in a row, in runs, and of every third position.
const std::vector<segment> tiles{{40, 128, 128, 1}, {0, 61, 61, 1}, {35, 100, 4, 9}, {7, 128, 1, 3}, {90, 1, 1, 1}};

template <class Mask>
void check(const Mask& mask) {
  INFO(mask.name());
  for (const segment& tile : tiles) {
    const int count = static_cast<int>(tile.count);
    const auto position = [&](int column) { return tile.position(column); };
    for (int lane = 0; lane < 4; ++lane) {
      const one_lane threads{lane};
      for (std::int64_t row = 0; row < 420; row += 3) {
        const std::uint32_t keys = orrery::detail::visible_columns(
            threads, count, [&](int column) { return mask.visible(row, position(column)); });
        const std::uint32_t queries = orrery::detail::visible_columns(
            threads, count, [&](int column) { return mask.visible(position(column), row); });
        CHECK(orrery::detail::visible_keys(threads, mask, row, count, position) == keys);
        CHECK(orrery::detail::visible_queries(threads, mask, row, count, position) == queries);
      }
    }
  }
}

}  // namespace

TEST_CASE("searches find what asking for each pair finds") {
  using namespace orrery;
  const std::vector<std::int64_t> lengths{30, 20, 1, 80, 300};
  check(full{});
  check(causal{});
  check(causal{.offset = -30});
  check(causal{.offset = 1000});
  check(window{.left = 17});
  check(window{.left = 5, .right = 40});
  check(prefix{70});
  check(documents{lengths});
  check(documents{lengths} & causal{} & window{.left = 9});
}

TEST_CASE("the first columns of a thread") {
  for (int lane = 0; lane < 8; ++lane) {
    for (int end = 0; end <= 128; ++end) {
      CHECK(orrery::detail::columns_before(one_lane{lane}, end) ==
            orrery::detail::visible_columns(one_lane{lane}, end, [](int) { return true; }));
    }
  }
}

TEST_CASE("sets of columns: the first ones, and those without others") {
  using orrery::detail::column_set;
  for (int count = 0; count <= 64; ++count) {
    const column_set some = column_set::first(count);
    CHECK(some.empty() == (count == 0));
    for (int column = 0; column < 64; ++column) {
      CHECK(some.has(column) == (column < count));
      CHECK(column_set::first(40).without(some).has(column) == (column >= count && column < 40));
    }
  }
}

TEST_CASE("a row of a causal tile reads nine positions or fewer, not one for each of a thread's columns") {
  int reads = 0;
  const auto position = [&](int column) {
    ++reads;
    return std::int64_t{100} + column;
  };
  const one_lane threads{0};
  for (std::int64_t row = 50; row < 300; ++row) {
    for (const bool keys : {true, false}) {
      reads = 0;
      static_cast<void>(keys ? orrery::detail::visible_keys(threads, orrery::causal{}, row, 128, position)
                             : orrery::detail::visible_queries(threads, orrery::causal{}, row, 128, position));
      CHECK(reads <= 9);
    }
  }
}
