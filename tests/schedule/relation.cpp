// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/schedule/relation.hpp"

#include <set>

#include <doctest/doctest.h>

using orrery::below_diagonal;
using orrery::every_pair;
using orrery::schedule::relation;

static_assert(orrery::pair_relation<every_pair> && orrery::pair_relation<below_diagonal>);
static_assert(orrery::pair_relation<relation> && !orrery::pair_relation<int>);
static_assert(relation::of(every_pair{}, 70).is_full());
static_assert(!relation::of(below_diagonal{}, 2).is_full() && relation::of(below_diagonal{}, 1).is_full());
static_assert(relation::of(below_diagonal{}, 66)(65, 65) && !relation::of(below_diagonal{}, 66)(64, 65));

TEST_CASE("a relation has the pairs that were set, and no others") {
  for (const int world : {1, 3, 63, 64, 65, 130}) {
    relation pairs{world};
    CHECK(pairs.blocks() == world);
    CHECK(pairs.words() == (world + 63) / 64);
    for (int q = 0; q < world; ++q) pairs.set(q, (q * 7 + 3) % world);
    for (int q = 0; q < world; ++q) {
      int keys = 0;
      for (int k = 0; k < world; ++k) keys += pairs(q, k) ? 1 : 0;
      CHECK(keys == 1);
      CHECK(pairs(q, (q * 7 + 3) % world));
    }
  }
}

TEST_CASE("an interval of keys is set as its keys are, one by one") {
  for (const int first : {0, 1, 63, 64, 65, 100}) {
    for (const int last : {-1, 0, 62, 63, 64, 127, 128, 199}) {
      relation whole{200};
      relation one_by_one{200};
      whole.set(5, first, last);
      for (int key = first; key <= last; ++key) one_by_one.set(5, key);
      CAPTURE(first);
      CAPTURE(last);
      CHECK(whole == one_by_one);
    }
  }
}

TEST_CASE("of whole shards: two are a pair if any of their chunks are") {
  relation fine{3, 2};
  CHECK(fine.blocks() == 6);
  fine.set(0, 1);  // chunks 0 and 1 of shard 0
  fine.set(3, 4);  // chunk 1 of shard 1, chunk 0 of shard 2
  const relation coarse = fine.coarse();
  CHECK(coarse.world() == 3);
  CHECK(coarse.chunks() == 1);
  for (int q = 0; q < 3; ++q) {
    for (int k = 0; k < 3; ++k) CHECK(coarse(q, k) == ((q == 0 && k == 0) || (q == 1 && k == 2)));
  }
  CHECK(coarse.coarse() == coarse);
}

TEST_CASE("relations that differ in a pair, the world or the chunks have different digests") {
  std::set<std::uint64_t> digests;
  for (const int world : {2, 4, 8}) {
    for (const int chunks : {1, 2}) {
      relation pairs{world, chunks};
      digests.insert(pairs.digest());
      for (int q = 0; q < pairs.blocks(); ++q) {
        for (int k = 0; k < pairs.blocks(); ++k) {
          relation one{world, chunks};
          one.set(q, k);
          digests.insert(one.digest());
        }
      }
    }
  }
  CHECK(digests.size() == 6 + 4 + 16 + 16 + 64 + 64 + 256);
  CHECK(relation::of(below_diagonal{}, 9).digest() == relation::of(below_diagonal{}, 9).digest());
  // The same on every machine.
  CHECK(relation::of(below_diagonal{}, 9).digest() == 1072057262560306292u);
}

TEST_CASE("a function is asked only about the keys whose bits are set") {
  int asked = 0;
  const auto visible = [&](int query, int key) {
    ++asked;
    return key > query;
  };
  const std::uint64_t bits = 1u << 3 | 1u << 5 | std::uint64_t{1} << 63;
  CHECK(orrery::detail::visible_bits(visible, 64 + 4, 1, bits) == (1u << 5 | std::uint64_t{1} << 63));
  CHECK(asked == 3);
  CHECK(orrery::detail::visible_bits(visible, 0, 1, std::uint64_t{0}) == 0);
  CHECK(orrery::detail::visible_bits(every_pair{}, 0, 1, bits) == bits);
  CHECK(orrery::detail::visible_bits(relation::of(below_diagonal{}, 128), 64 + 4, 1, bits) == 1u << 3);
}
