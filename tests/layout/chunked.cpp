// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/layout/chunked.hpp"

#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include "orrery/schedule/list.hpp"

namespace {

/// Are the chunks those of the shards, as even as can be?
template <class Layout>
void check_chunks(const Layout& layout, int world, std::int64_t length, int count) {
  const orrery::chunked cut{layout, count};
  INFO(cut.name(), " over ", world, ", length ", length);
  orrery::schedule::list<orrery::segments> chunks;
  CHECK(orrery::detail::layout_source{cut}.deal(world, length, count, chunks) == "");
  for (int rank = 0; rank < world; ++rank) {
    CHECK(cut.shard(rank, world, length) == layout.shard(rank, world, length));
    std::int64_t tokens = 0;
    for (int c = 0; c < count; ++c) tokens += chunks[rank * count + c].tokens();
    CHECK(tokens == layout.shard(rank, world, length).tokens());
  }
}

}  // namespace

static_assert(orrery::layout<orrery::chunked<>>);

TEST_CASE("chunks are those of every layout's shards") {
  for (const int world : {1, 2, 3, 8}) {
    for (const std::int64_t length : {1, 5, 17, 96}) {
      for (const int count : {1, 2, 3, 7}) {
        check_chunks(orrery::contiguous{}, world, length, count);
        check_chunks(orrery::zigzag{}, world, length, count);
        check_chunks(orrery::striped<3>{}, world, length, count);
      }
    }
  }
}

TEST_CASE("a chunked layout says so, and impossible numbers of chunks are refused") {
  CHECK(orrery::chunked{orrery::zigzag{}, 4}.name() == "zigzag in 4 chunks");
  CHECK(orrery::chunked<>{}.name() == "contiguous in 1 chunks");
  orrery::schedule::list<orrery::segments> chunks;
  for (const int count : {0, -1}) {
    const orrery::chunked cut{orrery::contiguous{}, count};
    CHECK(orrery::detail::layout_source{cut}
              .deal(2, 10, 1, chunks)
              .find("cuts each shard into " + std::to_string(count) + " chunks, expected") == 0);
  }
}
