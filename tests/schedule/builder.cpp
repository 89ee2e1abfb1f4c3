// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/schedule/builder.hpp"

#include <vector>

#include <doctest/doctest.h>

#include "orrery/schedule/detail/slot_allocation.hpp"

namespace builder_test {

using namespace orrery;

using namespace orrery::schedule;

namespace {

std::vector<block> sent_by(const program& p, const exchange& x) {
  return {p.sent.begin() + x.sent.first, p.sent.begin() + x.sent.end()};
}
std::vector<block> received_by(const program& p, const exchange& x) {
  std::vector<block> blocks;
  for (int r = x.received.first; r < x.received.end(); ++r) blocks.push_back(p.received[r].block);
  return blocks;
}
std::vector<block> blocks_of(const list<held_block>& held, const range& which) {
  std::vector<block> blocks;
  for (int h = which.first; h < which.end(); ++h) blocks.push_back(held[h].block);
  return blocks;
}

}  // namespace

TEST_CASE("a program says for whom it is") {
  const program p = builder{3, 8, pass::circulate_queries, 5};
  CHECK(p.rank == 3);
  CHECK(p.world == 8);
  CHECK((p.pass == pass::circulate_queries));
  CHECK(p.slices == 5);
  CHECK(p.steps.empty());
}

TEST_CASE("shards are taken modulo the world") {
  builder schedule{0, 5};
  schedule.begin_exchange(1, 4);
  schedule.send(key(-1));
  schedule.send(keys(4, 3));
  schedule.receive(query(5));
  schedule.receive(queries(-11, 2, -3));
  schedule.interact(queries(3, 4, 2), key(1000));
  const program p = schedule;
  REQUIRE(p.exchanges.size() == 1);
  const std::vector<block> sent{{side::key, 0, 4, 0}, {side::key, 0, 4, 0}, {side::key, 0, 0, 0}, {side::key, 0, 1, 0}};
  CHECK((sent_by(p, p.exchanges[0]) == sent));
  const std::vector<block> received{{side::query, 0, 0, 0}, {side::query, 0, 4, 0}, {side::query, 0, 1, 0}};
  CHECK((received_by(p, p.exchanges[0]) == received));
  REQUIRE(p.steps.size() == 1);
  const std::vector<block> queried{
      {side::query, 0, 3, 0}, {side::query, 0, 0, 0}, {side::query, 0, 2, 0}, {side::query, 0, 4, 0}};
  CHECK((blocks_of(p.queries, p.steps[0].tile.queries) == queried));
  CHECK((blocks_of(p.keys, p.steps[0].tile.keys) == std::vector<block>{{side::key, 0, 0, 0}}));
  for (const held_block& h : p.received) CHECK(h.slot == no_slot);
}

TEST_CASE("slices of blocks follow each other, shard by shard") {
  builder schedule{0, 4, pass::forward, 6};
  schedule.begin_exchange(1, no_rank);
  schedule.send(blocks{side::key, 3, 2, 1, 4, 2});
  schedule.send(key(2).in_slice(5));
  const program p = schedule;
  const std::vector<block> sent{
      {side::key, 0, 3, 4}, {side::key, 0, 3, 5}, {side::key, 0, 0, 4}, {side::key, 0, 0, 5}, {side::key, 0, 2, 5}};
  CHECK((sent_by(p, p.exchanges[0]) == sent));
  const blocks one{block{side::query, 0, 7, 3}};
  CHECK(one.first == 7);
  CHECK(one.slice == 3);
  CHECK(one.count == 1);
  CHECK(one.slices == 1);
}

TEST_CASE("a shift is the same for all ranks") {
  for (int rank = 0; rank < 5; ++rank) {
    builder schedule{rank, 5};
    schedule.shift(keys(rank, 2), +2, {3, 4}, payload::partial);
    const program p = schedule;
    REQUIRE(p.exchanges.size() == 1);
    const exchange& x = p.exchanges[0];
    CHECK(x.to == (rank + 2) % 5);
    CHECK(x.from == (rank + 3) % 5);
    CHECK(x.lane == 3);
    CHECK((x.payload == payload::partial));
    CHECK(x.posted == 0);
    CHECK(x.complete_before == 4);
    CHECK((sent_by(p, x) == std::vector<block>{{side::key, 0, rank, 0}, {side::key, 0, (rank + 1) % 5, 0}}));
    CHECK((received_by(p, x) ==
           std::vector<block>{{side::key, 0, (rank + 3) % 5, 0}, {side::key, 0, (rank + 4) % 5, 0}}));
    CHECK(p.steps.size() == 4);  // idle ones, until it has completed
  }
  builder backward{0, 4};
  backward.shift(key(0), -1);
  const program p = backward;
  CHECK(p.exchanges[0].to == 3);
  CHECK(p.exchanges[0].from == 1);
}

TEST_CASE("an exchange with oneself is none") {
  builder schedule{2, 4};
  schedule.begin_exchange(2, 2);
  schedule.send(key(2));
  schedule.receive(key(1));
  schedule.shift(key(2), 4);
  schedule.begin_exchange(no_rank, no_rank);
  schedule.send(key(2));
  schedule.receive(key(2));
  schedule.begin_exchange(2, 3);  // only receives
  schedule.send(key(2));
  schedule.receive(key(3));
  schedule.begin_exchange(3, 2);  // only sends
  schedule.send(key(2));
  schedule.receive(key(3));
  const program p = schedule;
  REQUIRE(p.exchanges.size() == 2);
  CHECK(p.exchanges[0].to == no_rank);
  CHECK(p.exchanges[0].from == 3);
  CHECK(p.exchanges[0].sent.count == 0);
  CHECK(p.exchanges[0].received.count == 1);
  CHECK(p.exchanges[1].to == 3);
  CHECK(p.exchanges[1].from == no_rank);
  CHECK(p.exchanges[1].sent.count == 1);
  CHECK(p.exchanges[1].received.count == 0);
  CHECK(p.sent.size() == 1);
  CHECK(p.received.size() == 1);
}

TEST_CASE("exchanges belong to the step in which they are written") {
  builder schedule{0, 4};
  schedule.interact(query(0), key(0));
  schedule.next_step();
  schedule.next_step();
  schedule.shift(key(0), 1, {0, 3});
  schedule.shift(query(0), 1, {1});
  schedule.next_step();
  schedule.shift(key(3), 1);
  schedule.interact(query(0), key(3));
  schedule.next_step();
  const program p = schedule;
  REQUIRE(p.exchanges.size() == 3);
  CHECK(p.exchanges[0].posted == 2);
  CHECK(p.exchanges[0].complete_before == 5);
  CHECK(p.exchanges[1].posted == 2);
  CHECK(p.exchanges[1].complete_before == 3);
  CHECK(p.exchanges[2].posted == 3);
  REQUIRE(p.steps.size() == 5);
  CHECK((p.steps[0].exchanges == range{0, 0}));
  CHECK((p.steps[1].exchanges == range{0, 0}));
  CHECK((p.steps[2].exchanges == range{0, 2}));
  CHECK((p.steps[3].exchanges == range{2, 1}));
  CHECK((p.steps[4].exchanges == range{3, 0}));
  CHECK_FALSE(p.steps[0].tile.empty());
  CHECK(p.steps[1].tile.empty());
  CHECK((p.steps[3].tile == tile{{1, 1}, {1, 1}}));
}

TEST_CASE("empty steps at the end are dropped, those between are kept") {
  builder schedule{0, 2};
  schedule.next_step();
  schedule.interact(query(0), key(0));
  for (int i = 0; i < 5; ++i) schedule.next_step();
  const program p = schedule;
  CHECK(p.steps.size() == 2);
  builder nothing{0, 2};
  nothing.next_step();
  nothing.next_step();
  const program none = nothing;
  CHECK(none.steps.empty());
}

TEST_CASE("a step's tile is the product of all that was added") {
  builder schedule{0, 6};
  schedule.interact(query(0), keys(0, 2));
  schedule.add_to_tile(query(3));
  schedule.interact(queries(4, 2), key(5));
  const program p = schedule;
  const tile& t = p.steps[0].tile;
  CHECK(t.queries.count == 4);
  CHECK(t.keys.count == 3);
  builder one_sided{0, 6};
  one_sided.add_to_tile(query(0));
  const program none = one_sided;
  CHECK(none.steps.empty());
}

TEST_CASE("flights of no or negative length do not run backwards") {
  builder schedule{0, 2};
  schedule.next_step();
  schedule.shift(key(0), 1, {0, 0});
  schedule.shift(key(0), 1, {1, -4});
  const program p = schedule;
  CHECK(p.exchanges[0].complete_before == 1);
  CHECK(p.exchanges[1].complete_before == 1);
}

TEST_CASE("collectives are direct exchanges, and are remarked") {
  builder schedule{5, 12};
  const rank_group column{2, 4, 3};  // 2, 5, 8, 11
  schedule.all_gather(column, side::query, {4, 2});
  schedule.reduce_scatter(column, side::key, {5}, [](int from, int) { return from != 8; });
  schedule.all_gather({5, 1}, side::key);  // alone
  const program p = schedule;
  REQUIRE(p.exchanges.size() == 6);
  const int to[] = {8, 11, 2};
  const int from[] = {2, 11, 8};
  for (int e = 0; e < 3; ++e) {
    const exchange& x = p.exchanges[e];
    CHECK(x.to == to[e]);
    CHECK(x.from == from[e]);
    CHECK(x.lane == 4);
    CHECK(x.complete_before == 2);
    CHECK((sent_by(p, x) == std::vector<block>{{side::query, 0, 5, 0}}));
    CHECK((received_by(p, x) == std::vector<block>{{side::query, 0, x.from, 0}}));
  }
  for (int e = 3; e < 6; ++e) {
    const exchange& x = p.exchanges[e];
    CHECK((x.payload == payload::partial));
    CHECK(x.to == to[e - 3]);
    CHECK((sent_by(p, x) == std::vector<block>{{side::key, 0, x.to, 0}}));
    CHECK(x.from == (from[e - 3] == 8 ? no_rank : from[e - 3]));
    CHECK(x.received.count == (from[e - 3] == 8 ? 0 : 1));
  }
  REQUIRE(p.collectives.size() == 2);
  CHECK((p.collectives[0] == collective{collective_kind::all_gather, 2, 4, 3, {0, 3}}));
  CHECK((p.collectives[1] == collective{collective_kind::reduce_scatter, 2, 4, 3, {3, 3}}));
}

TEST_CASE("a step of another program can be written again") {
  builder first{1, 4, pass::forward, 2};
  first.shift(key(1).in_slice(1), 1, {3, 2});
  first.next_step();
  first.all_gather({0, 4}, side::query);
  first.begin_exchange(2, no_rank, {7}, payload::partial);
  first.send(query(2));
  first.interact(queries(0, 2), key(1));
  const program original = first;

  builder again{1, 4, pass::forward, 2};
  again.shift(key(1), 1);  // moves everything on by one
  for (int i = 0; i < original.steps.size(); ++i) {
    again.next_step();
    again.repeat(original, i);
  }
  const program copy = again;
  REQUIRE(copy.steps.size() == original.steps.size() + 1);
  REQUIRE(copy.exchanges.size() == original.exchanges.size() + 1);
  for (int e = 0; e < original.exchanges.size(); ++e) {
    const exchange& x = original.exchanges[e];
    const exchange& y = copy.exchanges[e + 1];
    CHECK(x.to == y.to);
    CHECK(x.from == y.from);
    CHECK(x.lane == y.lane);
    CHECK((x.payload == y.payload));
    CHECK(x.posted + 1 == y.posted);
    CHECK(x.complete_before + 1 == y.complete_before);
    CHECK((sent_by(original, x) == sent_by(copy, y)));
    CHECK((received_by(original, x) == received_by(copy, y)));
  }
  for (int i = 0; i < original.steps.size(); ++i) CHECK((original.steps[i].tile == copy.steps[i + 1].tile));
  REQUIRE(copy.collectives.size() == 1);
  CHECK((copy.collectives[0] == collective{collective_kind::all_gather, 0, 4, 1, {2, 3}}));
}

}  // namespace builder_test
