// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/schedule/assignment.hpp"

#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include "orrery/predict/traffic.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/precomputed.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/verify/verify.hpp"

#include "support/refusal.hpp"

namespace assignment_test {

namespace {

using orrery::assignment;
using orrery::pass;
using orrery::schedule::block;
using orrery::schedule::side;

block query(int shard, int chunk = 0) { return {side::query, static_cast<std::uint16_t>(chunk), shard, 0}; }
block key(int shard, int chunk = 0) { return {side::key, static_cast<std::uint16_t>(chunk), shard, 0}; }

/// Rank 0 computes all pairs of two shards but one.
assignment lopsided() {
  return {2, 1, {{{{query(0)}, {key(0), key(1)}}, {{query(1)}, {key(1)}}}, {{{query(1)}, {key(0)}}}}};
}

}  // namespace

TEST_CASE("programs of an assignment fetch what tiles need, once, and send partials home") {
  const auto programs = orrery::programs_of(lopsided());
  CHECK(orrery::verify(programs).message() == "the schedule is right for 2 ranks");
  const orrery::traffic_report costs = traffic(programs, orrery::unit_weights{{1, 1, 1, 1}});
  // Rank 0 gets key 1 and query 1, and sends a partial of the latter and key 0.
  CHECK(costs.ranks[0].received == 2);
  CHECK(costs.ranks[0].sent == 2);
  CHECK(costs.ranks[1].received == 2);
  CHECK(costs.total == 4);
}

TEST_CASE("what one rank sends another for a step is one message, in whatever order a tile names it") {
  // Rank 0 computes everything, in one tile that names the keys of ranks 1 and 2 in turns.
  const assignment work{3,
                        2,
                        {{{{query(0), query(0, 1), query(1), query(1, 1), query(2), query(2, 1)},
                           {key(1), key(2), key(0), key(1, 1), key(2, 1), key(0, 1)}}},
                         {},
                         {}}};
  const auto programs = orrery::programs_of(work);
  CHECK(orrery::verify(programs).message() == "the schedule is right for 3 ranks");
  // Of each of the two: operands to rank 0, and partials from it.
  CHECK(programs[0].exchanges.size() == 4);
  CHECK(programs[1].exchanges.size() == 2);
}

TEST_CASE("an assignment that leaves a pair out, or computes one twice, is not proven") {
  assignment work = lopsided();
  work.of_rank[1].clear();
  CHECK(orrery::verify(orrery::programs_of(work)).message().find("query shard 1 never meets key shard 0") == 0);
  work = lopsided();
  work.of_rank[1].push_back({{query(1)}, {key(1)}});
  CHECK(orrery::verify(orrery::programs_of(work)).found == orrery::fault::pair_computed_twice);
}

TEST_CASE("tiles that are none are refused by number") {
  const auto refused = [](assignment work) {
    return refusal_of([&] { static_cast<void>(orrery::programs_of(work)); });
  };
  assignment work = lopsided();
  work.world = 3;
  CHECK(refused(work) == "orrery: assignment: of_rank has the tiles of 2 ranks, expected those of 3");
  work.world = 0;
  CHECK(refused(work) == "orrery: assignment: world is 0, expected at least 1");
  work = lopsided();
  work.chunks = 0;
  CHECK(refused(work) == "orrery: assignment: chunks is 0, expected 1 to 65535");
  work = lopsided();
  work.of_rank[0][1].keys.clear();
  CHECK(refused(work) == "orrery: assignment: tile 1 of rank 0 is empty, expected queries and keys");
  work = lopsided();
  work.of_rank[1][0].keys[0] = query(0);
  CHECK(refused(work) ==
        "orrery: assignment: tile 0 of rank 1 has a block of the other side among its queries or keys");
  work = lopsided();
  work.of_rank[1][0].keys[0] = key(0, 1);
  CHECK(refused(work) ==
        "orrery: assignment: tile 0 of rank 1 names chunk 1 of shard 0, slice 0, which does not exist");
  work.of_rank[1][0].keys[0] = key(2);
  CHECK(refused(work).find("names chunk 0 of shard 2") != std::string::npos);
  work.of_rank[1][0].keys[0] = {side::key, 0, 0, 1};
  CHECK(refused(work).find("names chunk 0 of shard 0, slice 1") != std::string::npos);
}

TEST_CASE("a schedule that is data is a topology") {
  const orrery::precomputed plan{"lopsided", lopsided()};
  CHECK(orrery::name_of(plan) == "lopsided");
  CHECK(orrery::verify(plan, 2).ok());
  CHECK(orrery::verify(plan, 2, pass::circulate_keys).ok());
  CHECK(orrery::any_topology{plan} == orrery::any_topology{orrery::precomputed{"lopsided", lopsided()}});
  CHECK(orrery::any_topology{plan} != orrery::any_topology{orrery::precomputed{"another", lopsided()}});
  assignment other = lopsided();
  other.of_rank[0].push_back(other.of_rank[1][0]);
  other.of_rank[1].clear();
  CHECK(orrery::any_topology{plan} != orrery::any_topology{orrery::precomputed{"lopsided", other}});
  CHECK(orrery::verify(plan, 3).message().find("is precomputed for another number of ranks; plan again for this one") !=
        std::string::npos);
  CHECK(orrery::verify(plan, 2, pass::circulate_queries).message().find("has no programs for this backward policy") !=
        std::string::npos);
}

TEST_CASE("programs of any topology can be kept as data, and programs that do not belong together are refused") {
  const auto of = [](int world, pass p) { return orrery::programs_of(orrery::ring{}, world, p); };
  const orrery::precomputed ring{"ring as data", of(5, pass::forward), of(5, pass::circulate_keys),
                                 of(5, pass::circulate_queries)};
  for (const pass p : {pass::forward, pass::circulate_keys, pass::circulate_queries}) {
    CHECK(orrery::verify(ring, 5, p).ok());
    CHECK(orrery::traffic(ring, 5, p).sent == orrery::traffic(orrery::ring{}, 5, p).sent);
  }
  const std::string expected = "expected the programs of the ranks of one world, in their order";
  CHECK(refusal_of([&] {
          orrery::precomputed{"mixed", of(5, pass::forward), of(4, pass::circulate_keys)};
        }).find(expected) != std::string::npos);
  CHECK(refusal_of([&] {
          orrery::precomputed{"mixed", of(5, pass::circulate_keys)};
        }).find(expected) != std::string::npos);
  auto turned = of(5, pass::forward);
  std::swap(turned[1], turned[2]);
  CHECK(refusal_of([&] {
          orrery::precomputed{"turned", turned};
        }).find("program 1 of pass forward is of rank 2 of 5") != std::string::npos);
  CHECK(refusal_of([&] {
          orrery::precomputed{"empty", orrery::schedule::list<orrery::program>{}};
        }) == "orrery: precomputed: empty: there are no programs, expected one for each rank");
}

}  // namespace assignment_test
