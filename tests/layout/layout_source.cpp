// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/layout/detail/layout_source.hpp"

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/named.hpp"
#include "orrery/layout/token_positions.hpp"

using orrery::segment;
using orrery::segments;
using orrery::token_positions;
using orrery::detail::layout_source;
using orrery::schedule::list;

namespace {

std::vector<std::int64_t> positions_of(const segments& some) {
  std::vector<std::int64_t> all;
  for (const std::int64_t position : token_positions{some}) all.push_back(position);
  return all;
}

/// The positions of one chunk after the other of all ranks.
std::vector<std::vector<std::int64_t>> dealt(const layout_source& source, int world, std::int64_t length, int chunks) {
  list<segments> shards;
  const std::string wrong = source.deal(world, length, chunks, shards);
  CHECK(wrong == "");
  std::vector<std::vector<std::int64_t>> all;
  for (const segments& one : shards) all.push_back(positions_of(one));
  return all;
}

/// A layout by a function of (rank, chunk), of which some are wrong.
struct my_chunks {
  int number = 2;
  segments (*give)(int rank, int chunk) = nullptr;
  [[nodiscard]] int chunks(int, std::int64_t) const { return number; }
  [[nodiscard]] segments chunk(int rank, int chunk, int, std::int64_t) const { return give(rank, chunk); }
  [[nodiscard]] static std::string name() { return "my_chunks"; }
};
struct my_both : my_chunks {
  [[nodiscard]] static segments shard(int rank, int world, std::int64_t length) {
    return orrery::contiguous::shard(rank, world, length);
  }
};

segments of(std::int64_t begin, std::int64_t count) {
  segments some;
  some.add({begin, count, count, count});
  return some;
}

template <class Layout>
std::string fault(const Layout& l, int world = 2, std::int64_t length = 8, int chunks = 2) {
  list<segments> shards;
  return layout_source{l}.deal(world, length, chunks, shards);
}

static_assert(orrery::layout<my_chunks>);
static_assert(orrery::layout_of_chunks<orrery::zigzag>);
static_assert(!orrery::layout_of_shards<my_chunks>);

}  // namespace

TEST_CASE("zigzag is two chunks of one segment each, and one shard of two") {
  const layout_source source{orrery::zigzag{}};
  CHECK(source.has_whole_shards());
  using positions = std::vector<std::vector<std::int64_t>>;
  CHECK(dealt(source, 2, 8, 1) == positions{{0, 1, 6, 7}, {2, 3, 4, 5}});
  CHECK(dealt(source, 2, 8, 2) == positions{{0, 1}, {6, 7}, {2, 3}, {4, 5}});
  CHECK(dealt(source, 2, 8, 4) == positions{{0}, {1}, {6}, {7}, {2}, {3}, {4}, {5}});
  // Not a multiple: its own, and empty ones.
  CHECK(dealt(source, 2, 8, 3) == positions{{0, 1}, {6, 7}, {}, {2, 3}, {4, 5}, {}});
  CHECK(dealt(source, 3, 4, 2) == positions{{}, {3}, {0}, {2}, {1}, {}});
}

TEST_CASE("every layout is cut into chunks of one size, but for a run or a token") {
  const orrery::any_layout layouts[] = {orrery::contiguous{}, orrery::zigzag{}, orrery::striped<1>{},
                                        orrery::striped<3>{}};
  for (const orrery::any_layout& layout : layouts) {
    for (const int world : {1, 2, 3, 5}) {
      for (const std::int64_t length : {0, 1, 4, 7, 60, 61, 1000}) {
        for (const int chunks : {1, 2, 4, 6}) {
          CAPTURE(layout.name());
          CAPTURE(world);
          CAPTURE(length);
          CAPTURE(chunks);
          const auto all = dealt(layout_source{layout}, world, length, chunks);
          REQUIRE(all.size() == static_cast<std::size_t>(world * chunks));
          for (int rank = 0; rank < world; ++rank) {
            const std::vector<std::int64_t> shard = positions_of(layout.shard(rank, world, length));
            std::vector<std::int64_t> joined;
            for (int c = 0; c < chunks; ++c) {
              const auto& chunk = all[static_cast<std::size_t>(rank * chunks + c)];
              joined.insert(joined.end(), chunk.begin(), chunk.end());
              const auto share = static_cast<std::int64_t>(shard.size()) / chunks;
              CHECK(static_cast<std::int64_t>(chunk.size()) <= share + 4);
              CHECK(static_cast<std::int64_t>(chunk.size()) >= share - 4);
            }
            CHECK(joined == shard);
          }
        }
      }
    }
  }
}

TEST_CASE("positions of a shard are those of its chunks, joined where they touch") {
  const segments chunks[] = {of(0, 3), of(3, 2), {}, of(8, 1), of(20, 5), of(25, 1)};
  const token_positions positions{std::span{chunks}};
  CHECK(positions.size() == 12);
  REQUIRE(positions.segments().size() == 3);
  CHECK(positions.segments()[0] == segment{0, 5, 5, 5});
  CHECK(positions.segments()[2] == segment{20, 6, 6, 6});
  const std::vector<std::int64_t> expected{0, 1, 2, 3, 4, 8, 20, 21, 22, 23, 24, 25};
  std::vector<std::int64_t> by_loop, by_index;
  for (const std::int64_t p : positions) by_loop.push_back(p);
  for (std::int64_t i = 0; i < positions.size(); ++i) by_index.push_back(positions[i]);
  CHECK(by_loop == expected);
  CHECK(by_index == expected);
  // Stripes.
  segments first, second;
  first.add({1, 4, 2, 6});
  second.add({13, 3, 2, 6});
  const segments stripes[] = {first, second};
  CHECK(token_positions{std::span{stripes}}.segments().size() == 1);
  CHECK(token_positions{std::span{stripes}}[6] == 19);
  CHECK(token_positions{std::span<const segments>{}}.empty());
}

TEST_CASE("what is wrong with chunks is said") {
  const auto right = +[](int rank, int chunk) { return of(rank * 4 + chunk * 2, 2); };
  CHECK(fault(my_chunks{2, right}) == "");
  CHECK(fault(my_both{{2, right}}) == "");
  CHECK_FALSE(layout_source{my_chunks{2, right}}.has_whole_shards());
  CHECK(fault(my_chunks{2, right}, 2, 8, 1) ==
        "has shards of 2 chunks, which were asked for in 1; give it shard(rank, world, length), or ask for as many "
        "chunks");
  CHECK(fault(my_chunks{0, right}) == "cuts each shard into 0 chunks, expected 1 to 65535");
  CHECK(fault(my_chunks{65536, right}) == "cuts each shard into 65536 chunks, expected 1 to 65535");
  CHECK(fault(my_chunks{2, right}, 2, 8, 70000) == "cuts each shard into 70000 chunks, expected 1 to 65535");
  CHECK(fault(my_chunks{16385, right}, 2, 8, 16385) ==
        "cuts each shard into 16385 chunks, and those of all ranks into 32770, expected at most 32768; use fewer "
        "ranks, or longer documents");
  CHECK(fault(my_chunks{2, +[](int rank, int chunk) { return of(rank * 4 + chunk * 2, chunk == 0 ? 1 : 2); }}) ==
        "gives position 1 to no rank, expected each position in exactly one shard");
  CHECK(fault(my_chunks{2, +[](int rank, int) { return of(rank * 4, 4); }}) ==
        "has position 0 after position 3 in the shard of rank 0, expected ascending positions");
  CHECK(fault(my_chunks{2, +[](int rank, int chunk) { return of(rank * 4 + (1 - chunk) * 2, 2); }}) ==
        "has position 0 after position 3 in the shard of rank 0, expected ascending positions");
  CHECK(fault(my_chunks{2, +[](int rank, int chunk) { return of(rank * 2 + chunk * 2, 2); }}) ==
        "gives position 2 to ranks 0 and 1, expected each position in exactly one shard");
  CHECK(fault(my_both{{2, +[](int rank, int chunk) { return of(rank * 2 + chunk * 4, 2); }}}) ==
        "cuts the shard of rank 0, which has 4 tokens, into chunks that are not its tokens in their order; let "
        "chunk(...) and shard(...) agree");
  CHECK(fault(my_chunks{2, +[](int, int) -> segments { throw std::runtime_error{"no chunk today"}; }}) ==
        "threw: no chunk today");
  CHECK_THROWS_AS(fault(my_chunks{2, +[](int, int) -> segments { throw std::bad_alloc{}; }}), std::bad_alloc);
}

TEST_CASE("a layout that is chosen at run time has the chunks of the one that it holds") {
  const auto right = +[](int rank, int chunk) { return of(rank * 4 + chunk * 2, 2); };
  const orrery::any_layout of_chunks = my_chunks{2, right};
  CHECK_FALSE(of_chunks.has_whole_shards());
  CHECK_FALSE(layout_source{of_chunks}.has_whole_shards());
  CHECK(dealt(layout_source{of_chunks}, 2, 8, 2) == dealt(layout_source{orrery::contiguous{}}, 2, 8, 2));
  CHECK_THROWS_WITH_AS(static_cast<void>(of_chunks.shard(0, 2, 8)),
                       "orrery: any_layout::shard: layout my_chunks has no whole shards; ask for its chunks",
                       std::logic_error);
  CHECK(dealt(layout_source{orrery::layout_named("zigzag")}, 2, 9, 2) ==
        dealt(layout_source{orrery::zigzag{}}, 2, 9, 2));
  CHECK(layout_source{orrery::layout_named("contiguous")}.has_whole_shards());
}
