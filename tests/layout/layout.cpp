// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Each layout deals a sequence out to the ranks: completely, in order, evenly.
#include "orrery/layout/layout.hpp"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/named.hpp"

using orrery::contiguous;
using orrery::segment;
using orrery::segments;
using orrery::striped;
using orrery::zigzag;

namespace {

static_assert(orrery::layout<contiguous> && orrery::layout<zigzag> && orrery::layout<striped<>>);

template <class Layout>
std::vector<segments> shards(int world, std::int64_t length) {
  std::vector<segments> all;
  for (int rank = 0; rank < world; ++rank) all.push_back(Layout{}.shard(rank, world, length));
  return all;
}

std::vector<std::int64_t> positions(const segments& shard) {
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < shard.tokens(); ++i) all.push_back(shard.position(i));
  return all;
}

/// The largest difference between two ranks' numbers of tokens.
std::int64_t spread(const std::vector<segments>& all) {
  const auto fewer = [](const segments& a, const segments& b) { return a.tokens() < b.tokens(); };
  const auto [least, most] = std::minmax_element(all.begin(), all.end(), fewer);
  return most->tokens() - least->tokens();
}

/// Pairs that rank `shard` computes under a causal mask.
std::int64_t causal_pairs(const segments& shard) {
  std::int64_t sum = 0;
  for (const std::int64_t position : positions(shard)) sum += position + 1;
  return sum;
}

}  // namespace

TEST_CASE_TEMPLATE("layouts by their names", Layout, contiguous, zigzag, striped<1>, striped<3>, striped<64>) {
  const orrery::any_layout named = orrery::layout_named(Layout::name());
  CHECK(named.name() == Layout::name());
  for (const int world : {1, 2, 5}) {
    for (const std::int64_t length : {0, 1, 7, 300}) {
      for (int rank = 0; rank < world; ++rank) {
        CHECK(named.shard(rank, world, length) == Layout::shard(rank, world, length));
      }
    }
  }
}

TEST_CASE("names that no layout has") {
  static_assert(orrery::layout<orrery::any_layout>);
  CHECK(orrery::layout_named("striped").name() == "striped<1>");
  CHECK(orrery::layout_named("striped<9223372036854775807>").shard(0, 3, 5) == striped<INT64_MAX>::shard(0, 3, 5));
  const auto said = [](const char* name) {
    try {
      static_cast<void>(orrery::layout_named(name));
    } catch (const std::invalid_argument& e) {
      return std::string{e.what()};
    }
    return std::string{"nothing"};
  };
  CHECK(said("zagzig") ==
        "orrery: layout_named: \"zagzig\" is no layout; did you mean zigzag? There are contiguous, zigzag, "
        "striped<Run>, per_document<L>");
  CHECK(said("striped<0>") ==
        "orrery: layout_named: \"striped<0>\" has argument 0, expected a number from 1 to 9223372036854775807 in "
        "striped<Run>");
}

TEST_CASE_TEMPLATE("shards partition the sequence", Layout, contiguous, zigzag, striped<1>, striped<3>, striped<64>) {
  for (const int world : {1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 100}) {
    for (std::int64_t length = 0; length < 300; length += length < 40 ? 1 : 37) {
      INFO(Layout::name(), " over ", world, ", length ", length);
      std::vector<int> owners(static_cast<std::size_t>(length), 0);
      bool inside = true;
      bool increasing = true;
      for (const segments& shard : shards<Layout>(world, length)) {
        CHECK(shard.size() <= 2);
        for (const segment& piece : shard) CHECK(piece.count > 0);
        std::int64_t last = -1;
        for (const std::int64_t position : positions(shard)) {
          increasing = increasing && position > last;
          last = position;
          inside = inside && position >= 0 && position < length;
          if (inside) ++owners[static_cast<std::size_t>(position)];
        }
      }
      CHECK(inside);
      CHECK(increasing);
      CHECK(std::all_of(owners.begin(), owners.end(), [](int n) { return n == 1; }));
    }
  }
}

TEST_CASE("ranks have equally many tokens, as far as the length allows") {
  for (int world = 1; world < 40; ++world) {
    for (const std::int64_t length : {0, 1, 2, 5, 16, 37, 100, 1000, 1001, 2999}) {
      INFO("length ", length, " over ", world);
      CHECK(spread(shards<contiguous>(world, length)) <= 1);
      CHECK(spread(shards<striped<1>>(world, length)) <= 1);
      CHECK(spread(shards<striped<3>>(world, length)) <= 3);
      // Two pieces, each longer or shorter by one token.
      CHECK(spread(shards<zigzag>(world, length)) <= 2);
    }
  }
}

TEST_CASE("under a causal mask zigzag's ranks have the same work, and contiguous' last rank nearly twice the average") {
  for (const int world : {1, 2, 3, 8, 13}) {
    const std::int64_t length = 2 * world * 10;
    const auto all = shards<zigzag>(world, length);
    for (const segments& shard : all) CHECK(causal_pairs(shard) == causal_pairs(all[0]));
    const std::int64_t average = length * (length + 1) / 2 / world;
    CHECK(causal_pairs(all[0]) == average);
    if (world > 1) CHECK(causal_pairs(contiguous::shard(world - 1, world, length)) * 3 > average * 4);
  }
  // In every step of a ring, too: any rank's queries see equally many pairs of any other rank's keys.
  const auto all = shards<zigzag>(5, 100);
  for (const segments& queries : all) {
    for (const segments& keys : all) {
      std::int64_t pairs = 0;
      for (const std::int64_t q : positions(queries)) {
        for (const std::int64_t k : positions(keys)) pairs += k <= q ? 1 : 0;
      }
      const bool own = positions(queries) == positions(keys);
      CHECK(pairs == (own ? 2 * (10 * 11 / 2) + 100 : 200));
    }
  }
}

TEST_CASE("known shards") {
  using list = std::vector<std::int64_t>;
  CHECK(positions(contiguous::shard(1, 3, 8)) == list{2, 3, 4});
  CHECK(positions(zigzag::shard(0, 2, 8)) == list{0, 1, 6, 7});
  CHECK(positions(zigzag::shard(1, 2, 8)) == list{2, 3, 4, 5});
  CHECK(positions(striped<1>::shard(1, 3, 8)) == list{1, 4, 7});
  CHECK(positions(striped<3>::shard(0, 2, 11)) == list{0, 1, 2, 6, 7, 8});
  CHECK(positions(striped<3>::shard(1, 2, 11)) == list{3, 4, 5, 9, 10});
  CHECK(positions(contiguous::shard(3, 8, 5)) == list{1});
  CHECK(positions(contiguous::shard(2, 8, 5)) == list{});
  CHECK(contiguous::name() == "contiguous");
  CHECK(zigzag::name() == "zigzag");
  CHECK(striped<3>::name() == "striped<3>");
}

TEST_CASE("positions are of 64 bits") {
  const std::int64_t length = std::int64_t{3} << 40;
  const auto end = [](const segments& shard) { return shard.position(shard.tokens() - 1); };
  CHECK(end(contiguous::shard(1023, 1024, length)) == length - 1);
  CHECK(end(zigzag::shard(0, 1024, length)) == length - 1);
  CHECK(end(striped<64>::shard(1023, 1024, length)) == length - 1);
}
