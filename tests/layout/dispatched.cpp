// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/layout/dispatched.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/token_positions.hpp"

#include "support/refusal.hpp"

namespace {

/// The tokens of a rank.
std::vector<std::int64_t> tokens_of(const orrery::dispatched& layout, int rank, int world, std::int64_t length) {
  std::vector<std::int64_t> tokens;
  for (int c = 0; c < layout.chunks(world, length); ++c) {
    const orrery::segments chunk = layout.chunk(rank, c, world, length);
    for (std::int64_t i = 0; i < chunk.tokens(); ++i) tokens.push_back(chunk.position(i));
  }
  return tokens;
}

std::string message_of(int world, const std::vector<int>& owners) {
  return refusal_of([&] { static_cast<void>(orrery::dispatched{world, owners}); });
}

}  // namespace

TEST_CASE("pieces go to their owners, in increasing order") {
  const orrery::dispatched layout{2, std::vector<int>{1, 0, 0, 1, 1, 0}};
  CHECK(layout.chunks(2, 12) == 3);
  CHECK(tokens_of(layout, 0, 2, 12) == std::vector<std::int64_t>{2, 3, 4, 5, 10, 11});
  CHECK(tokens_of(layout, 1, 2, 12) == std::vector<std::int64_t>{0, 1, 6, 7, 8, 9});
  CHECK(tokens_of(layout, 0, 2, 7) == std::vector<std::int64_t>{1, 2, 5, 6});
  CHECK(tokens_of(layout, 0, 2, 2) == std::vector<std::int64_t>{0, 1});
}

TEST_CASE("zigzag is an assignment of owners") {
  const orrery::dispatched layout{3, std::vector<int>{0, 1, 2, 2, 1, 0}};
  for (const std::int64_t length : {1, 5, 6, 100, 101}) {
    for (int rank = 0; rank < 3; ++rank) {
      const orrery::segments whole = orrery::zigzag::shard(rank, 3, length);
      std::vector<std::int64_t> expected;
      for (std::int64_t i = 0; i < whole.tokens(); ++i) expected.push_back(whole.position(i));
      CHECK(tokens_of(layout, rank, 3, length) == expected);
    }
  }
}

TEST_CASE("all lengths are partitions, as operators check them") {
  const orrery::dispatched layout{3, std::vector<int>{2, 2, 0, 1, 0, 1, 2, 1, 0}};
  for (const std::int64_t length : {1, 2, 8, 9, 10, 1000}) {
    orrery::schedule::list<orrery::segments> shards;
    CHECK(orrery::detail::layout_source{layout}.deal(3, length, 3, shards) == "");
    CHECK(shards.size() == 9);
  }
}

TEST_CASE("names tell layouts apart") {
  const orrery::dispatched a{2, std::vector<int>{0, 1, 1, 0}}, b{2, std::vector<int>{0, 1, 0, 1}};
  CHECK(a.name().find("dispatched<2 ranks, 2 chunks, digest ") == 0);
  CHECK(a.name() != b.name());
  CHECK(a == orrery::dispatched{2, std::vector<int>{0, 1, 1, 0}});
  CHECK_FALSE(a == b);
}

TEST_CASE("owners that are not are refused") {
  CHECK(message_of(0, {}) == "orrery: dispatched: world is 0, expected at least 1");
  CHECK(message_of(2, {0, 2}) == "orrery: dispatched: owners[1] is 2, expected a rank, 0 to 1");
  CHECK(message_of(2, {0, -1}) == "orrery: dispatched: owners[1] is -1, expected a rank, 0 to 1");
  CHECK(message_of(2, {0, 1, 1}) ==
        "orrery: dispatched: rank 1 owns 2 of 3 pieces and rank 0 1, expected equally many for each rank, at least "
        "one");
  CHECK(message_of(2, {}) == "orrery: dispatched: owners is empty, expected a rank for each piece");
  const std::vector<int> too_many(65536, 0);
  CHECK(message_of(1, too_many) == "orrery: dispatched: rank 0 owns 65536 pieces, expected at most 65535");
  const orrery::dispatched layout{2, std::vector<int>{0, 1}};
  orrery::schedule::list<orrery::segments> shards;
  CHECK(orrery::detail::layout_source{layout}.deal(3, 10, 1, shards) ==
        "threw: orrery: dispatched: the owners are ranks of a world of 2, and this one has 3; find owners for it");
}
