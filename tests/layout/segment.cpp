// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/layout/segment.hpp"

#include <stdexcept>

#include <doctest/doctest.h>

using orrery::segment;
using orrery::segments;

namespace {

constexpr segments two_pieces() {
  segments s;
  s.add({10, 3, 3, 3});
  s.add({20, 0, 1, 1});  // empty: ignored
  s.add({40, 5, 2, 10});
  return s;
}

}  // namespace

TEST_CASE("positions of one run") {
  const segment piece{7, 4, 4, 4};
  CHECK(piece.position(0) == 7);
  CHECK(piece.position(3) == 10);
}

TEST_CASE("positions of several runs, the last one cut off") {
  const segment piece{6, 8, 3, 12};  // 6 7 8, 18 19 20, 30 31
  const std::int64_t expected[] = {6, 7, 8, 18, 19, 20, 30, 31};
  for (std::int64_t i = 0; i < piece.count; ++i) CHECK(piece.position(i) == expected[i]);
}

TEST_CASE("a shard's tokens are those of its pieces, one after the other") {
  constexpr segments shard = two_pieces();
  static_assert(shard.size() == 2 && shard.tokens() == 8);
  const std::int64_t expected[] = {10, 11, 12, 40, 41, 50, 51, 60};
  for (std::int64_t i = 0; i < shard.tokens(); ++i) CHECK(shard.position(i) == expected[i]);
  CHECK(shard[1] == segment{40, 5, 2, 10});
  CHECK(shard.end() - shard.begin() == 2);
}

TEST_CASE("an empty shard") {
  constexpr segments shard;
  CHECK(shard.size() == 0);
  CHECK(shard.tokens() == 0);
  CHECK(shard.begin() == shard.end());
}

TEST_CASE("a third segment is refused, and changes nothing") {
  segments shard = two_pieces();
  CHECK_THROWS_AS(shard.add({90, 1, 1, 1}), std::length_error);
  CHECK(shard == two_pieces());
  shard.add({90, 0, 1, 1});  // empty: ignored
  CHECK(shard == two_pieces());
}
