// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/layout/token_positions.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <ranges>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/layout.hpp"

using orrery::segments;
using orrery::token_positions;

static_assert(std::forward_iterator<token_positions::iterator>);
static_assert(std::ranges::forward_range<const token_positions>);
static_assert(std::ranges::sized_range<const token_positions>);
static_assert(std::ranges::common_range<const token_positions>);
static_assert(std::is_same_v<std::ranges::range_value_t<const token_positions>, std::int64_t>);

namespace {

constexpr std::int64_t sum_of(const token_positions& positions) {
  std::int64_t sum = 0;
  for (const std::int64_t position : positions) sum += position;
  return sum;
}

static_assert(sum_of(orrery::zigzag::shard(0, 2, 8)) == 0 + 1 + 6 + 7);

template <class Layout>
void check(int world, std::int64_t length) {
  INFO(Layout::name(), " over ", world, ", length ", length);
  std::vector<int> seen(static_cast<std::size_t>(length), 0);
  for (int rank = 0; rank < world; ++rank) {
    const segments shard = Layout::shard(rank, world, length);
    const token_positions positions = shard;
    CHECK(positions.size() == shard.tokens());
    CHECK(positions.empty() == (shard.tokens() == 0));
    CHECK(std::equal(positions.segments().begin(), positions.segments().end(), shard.begin(), shard.end()));
    std::int64_t token = 0;
    for (const std::int64_t position : positions) {
      CHECK(position == shard.position(token));
      CHECK(position == positions[token++]);
      ++seen[static_cast<std::size_t>(position)];
    }
    CHECK(token == shard.tokens());
  }
  CHECK(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }));
}

}  // namespace

TEST_CASE("a loop visits the positions of a shard's tokens, in their local order") {
  for (const int world : {1, 2, 5}) {
    for (const std::int64_t length : {0, 1, 4, 10, 33}) {
      check<orrery::contiguous>(world, length);
      check<orrery::zigzag>(world, length);
      check<orrery::striped<1>>(world, length);
      check<orrery::striped<3>>(world, length);
    }
  }
}

TEST_CASE("standard algorithms, and several passes") {
  const token_positions positions = orrery::zigzag::shard(1, 3, 12);
  const std::vector<std::int64_t> expected{2, 3, 8, 9};
  CHECK(std::vector<std::int64_t>(positions.begin(), positions.end()) == expected);
  CHECK(std::ranges::equal(positions, expected));
  CHECK(std::ranges::count_if(positions, [](std::int64_t p) { return p > 2; }) == 3);
  auto i = positions.begin();
  CHECK(*i++ == 2);
  const auto kept = i;
  CHECK(*++i == 8);
  CHECK(*kept == 3);
  CHECK(i != kept);
}

TEST_CASE("positions are equal if their segments are") {
  const token_positions positions = orrery::contiguous::shard(1, 3, 12);
  CHECK(positions == token_positions{orrery::contiguous::shard(1, 3, 12)});
  CHECK(positions != token_positions{orrery::contiguous::shard(2, 3, 12)});
  CHECK(token_positions{}.empty());
  CHECK(token_positions{}.begin() == token_positions{}.end());
}
