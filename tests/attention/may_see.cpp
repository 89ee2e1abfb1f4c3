// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Which shards see which, beside a question for each pair of tokens.
#include "orrery/attention/may_see.hpp"

#include <cstdint>
#include <set>
#include <string>
#include <utility>

#include <doctest/doctest.h>

#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/window.hpp"

using orrery::segments;
using orrery::schedule::list;

namespace {

/// The same mask without its keys_of.
template <class Mask>
struct without_keys_of {
  Mask of;

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const { return of.visible(query, key); }
  [[nodiscard]] constexpr orrery::visibility classify(std::int64_t query_first, std::int64_t query_last,
                                                      std::int64_t key_first, std::int64_t key_last) const {
    return of.classify(query_first, query_last, key_first, key_last);
  }
  [[nodiscard]] std::string name() const { return of.name(); }
};

template <class Layout>
list<segments> shards_of(const Layout& layout, int world, std::int64_t length) {
  list<segments> all;
  for (int rank = 0; rank < world; ++rank) all.push_back(layout.shard(rank, world, length));
  return all;
}

template <class Mask>
std::set<std::pair<int, int>> pairs_of(const Mask& mask, const list<segments>& queries, const list<segments>& keys) {
  std::set<std::pair<int, int>> pairs;
  orrery::detail::for_each_pair_that_may_see(mask, queries, keys, [&](int query, int key) {
    CHECK(pairs.emplace(query, key).second);  // once
  });
  return pairs;
}

/// `exact`: of contiguous segments, whose rectangles the mask knows.
template <class Mask, class Layout>
void check(const Mask& mask, const Layout& layout, int world, std::int64_t length, std::int64_t key_length,
           bool exact) {
  INFO(mask.name(), ", ", layout.name(), ", ", world, " ranks, ", length, " queries, ", key_length, " keys");
  const list<segments> queries = shards_of(layout, world, length);
  const list<segments> keys = shards_of(layout, world, key_length);
  const auto found = pairs_of(mask, queries, keys);
  CHECK(found == pairs_of(without_keys_of<Mask>{mask}, queries, keys));
  for (int i = 0; i < world; ++i) {
    for (int j = 0; j < world; ++j) {
      bool sees = false;
      for (std::int64_t q = 0; q < queries[i].tokens(); ++q) {
        for (std::int64_t k = 0; k < keys[j].tokens(); ++k) {
          sees = sees || mask.visible(queries[i].position(q), keys[j].position(k));
        }
      }
      const bool may = found.count({i, j}) == 1;
      CHECK(may == orrery::detail::may_see(mask, queries[i], keys[j]));
      CHECK((exact ? may == sees : may || !sees));
    }
  }
}

constexpr int visible_pairs_of_eight() {
  list<segments> shards;
  for (int rank = 0; rank < 8; ++rank) shards.push_back(orrery::contiguous::shard(rank, 8, 64));
  int pairs = 0;
  orrery::detail::for_each_pair_that_may_see(orrery::causal{}, shards, shards, [&](int, int) { ++pairs; });
  return pairs;
}
static_assert(visible_pairs_of_eight() == 36);

}  // namespace

TEST_CASE("shards that see each other are those that have tokens that do") {
  using orrery::causal;
  using orrery::window;
  for (const int world : {1, 2, 3, 5, 8}) {
    for (const auto& [length, key_length] : {std::pair{40, 40}, std::pair{41, 17}, std::pair{5, 61}, std::pair{3, 2}}) {
      const auto check_layouts = [&, n = length, m = key_length](const auto& mask) {
        check(mask, orrery::contiguous{}, world, n, m, true);
        check(mask, orrery::zigzag{}, world, n, m, true);
        check(mask, orrery::striped<2>{}, world, n, m, false);
      };
      check_layouts(orrery::full{});
      check_layouts(causal{});
      check_layouts(causal::bottom_right(length, key_length));
      check_layouts(causal{-30});
      check_layouts(window{.left = 3, .right = 0});
      check_layouts(window{.left = 0, .right = 5});
      check_layouts(causal{} & window{.left = 6});
    }
  }
}

TEST_CASE("a mask with keys_of is asked once for a segment, and for no rectangle out of sight") {
  struct counting : orrery::window {
    int* intervals;
    int* rectangles;

    [[nodiscard]] orrery::position_interval keys_of(std::int64_t first, std::int64_t last) const {
      ++*intervals;
      return window::keys_of(first, last);
    }
    [[nodiscard]] orrery::visibility classify(std::int64_t q0, std::int64_t q1, std::int64_t k0,
                                              std::int64_t k1) const {
      ++*rectangles;
      return window::classify(q0, q1, k0, k1);
    }
  };
  const int world = 64;
  int intervals = 0;
  int rectangles = 0;
  const list<segments> shards = shards_of(orrery::contiguous{}, world, 64 * world);
  const counting mask{{.left = 63, .right = 0}, &intervals, &rectangles};
  CHECK(pairs_of(mask, shards, shards).size() == 2 * world - 1);
  CHECK(intervals == world);
  CHECK(rectangles == 2 * world - 1);
}
