// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/schedule/program.hpp"

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/schedule/walk.hpp"

namespace {

using orrery::schedule::exchange;
using orrery::schedule::held_block;
using orrery::schedule::payload;
using orrery::schedule::side;
using orrery::schedule::tile;

/// Rank 1 of three: two exchanges and a tile, then a step in which nothing happens, then a tile; one exchange completes
/// after the last step.
constexpr orrery::program example() {
  orrery::builder schedule{1, 3};
  schedule.shift(orrery::keys(1, 2), +1);
  schedule.begin_exchange(2, orrery::schedule::no_rank, {1, 3});
  schedule.send(orrery::query(1));
  schedule.mark_collective(orrery::schedule::collective_kind::all_gather, {0, 3}, 1);
  schedule.interact(orrery::query(1), orrery::keys(1, 2));
  schedule.next_step();
  schedule.next_step();
  schedule.interact(orrery::query(1), orrery::key(0));
  orrery::program p = schedule;
  orrery::schedule::finish(p);
  return p;
}

std::vector<int> shards(const auto& blocks) {
  std::vector<int> all;
  for (const auto& b : blocks) {
    if constexpr (requires { b.block; }) {
      all.push_back(b.block.shard);
    } else {
      all.push_back(b.shard);
    }
  }
  return all;
}

/// Writes down what it visits.
struct recorder : orrery::schedule::visitor {
  std::string text;

  void begin_step(int step) { text += "| " + std::to_string(step) + " "; }
  void complete(int, int e, const exchange& x) { text += "complete " + std::to_string(e) + to(x); }
  void post(int, int e, const exchange& x) { text += "post " + std::to_string(e) + to(x); }
  void compute(int step, const tile& t) {
    text += "compute " + std::to_string(t.queries.count) + "x" + std::to_string(t.keys.count) + " in " +
            std::to_string(step) + " ";
  }
  static std::string to(const exchange& x) { return " to " + std::to_string(x.to) + " "; }
};

}  // namespace

TEST_CASE("a program gives the blocks of its exchanges and tiles") {
  const orrery::program p = example();
  using shards_of = std::vector<int>;
  CHECK(shards(p.sent_by(p.exchanges[0])) == shards_of{1, 2});
  CHECK(shards(p.received_by(p.exchanges[0])) == shards_of{0, 1});
  CHECK(shards(p.sent_by(p.exchanges[1])) == shards_of{1});
  CHECK(p.received_by(p.exchanges[1]).empty());
  CHECK(shards(p.queries_of(p.steps[0].tile)) == shards_of{1});
  CHECK(shards(p.keys_of(p.steps[0].tile)) == shards_of{1, 2});
  CHECK(p.keys_of(p.steps[1].tile).size() == 0);
  CHECK(p.keys_of(p.steps[2].tile)[0].block == orrery::schedule::block{side::key, 0, 0, 0});
  CHECK(p.exchanges_of(p.steps[0]).size() == 2);
  CHECK(&p.exchanges_of(p.steps[0])[0] == &p.exchanges[0]);
  CHECK(&p.exchanges_of(p.collectives[0])[0] == &p.exchanges[1]);
  CHECK(p.exchanges_of(p.collectives[0]).size() == 1);
  CHECK(p.completed_before(0).empty());
  CHECK(p.completed_before(1)[0] == 0);
  CHECK(p.completed_before(p.steps.size())[0] == 1);
}

TEST_CASE("blocks of a program that is being changed can be written") {
  orrery::program p = example();
  for (held_block& received : p.received_by(p.exchanges[0])) received.slot = 7;
  for (held_block& query : p.queries_of(p.steps[2].tile)) query.slot = 8;
  for (held_block& key : p.keys_of(p.steps[2].tile)) key.slot = 9;
  CHECK(p.received[1].slot == 7);
  CHECK(p.queries.back().slot == 8);
  CHECK(p.keys.back().slot == 9);
}

TEST_CASE("a range is a loop over indices") {
  std::vector<int> visited;
  for (const int i : orrery::schedule::range{3, 2}) visited.push_back(i);
  for (const int i : orrery::schedule::range{7, 0}) visited.push_back(i);
  CHECK(visited == std::vector<int>{3, 4});
  constexpr orrery::schedule::range some{3, 2};
  static_assert(!some.contains(2) && some.contains(3) && some.contains(4) && !some.contains(5));
}

TEST_CASE("a slot kind is a side and a payload") {
  using namespace orrery::schedule;
  static_assert(kind_of(side::query, payload::operand) == query_operand);
  static_assert(kind_of(side::query, payload::partial) == query_partial);
  static_assert(kind_of(side::key, payload::operand) == key_operand);
  static_assert(kind_of(side::key, payload::partial) == key_partial);
  static_assert(key_partial + 1 == slot_kinds);
  program p;
  p.slots_of(side::key, payload::operand) = 5;
  CHECK(p.slots[key_operand] == 5);
}

TEST_CASE("a walk completes, posts and computes, in this order, and completes what is left after the last step") {
  recorder visited;
  orrery::schedule::walk(example(), visited);
  CHECK(visited.text ==
        "| 0 post 0 to 2 post 1 to 2 compute 1x2 in 0 | 1 complete 0 to 2 | 2 compute 1x1 in 2 | 3 complete 1 to 2 ");
}

TEST_CASE("a walk can be made at compile time, with a visitor of what it needs only") {
  struct counter : orrery::schedule::visitor {
    int tiles = 0;
    constexpr void compute(int, const tile&) { ++tiles; }
  };
  constexpr int tiles = [] {
    counter all;
    orrery::schedule::walk(example(), all);
    return all.tiles;
  }();
  static_assert(tiles == 2);
}
