// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Who talks to whom, when, and behind what: the published figures of single topologies.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/verify/verify.hpp"

#include "verify/every_topology.hpp"

namespace structure_test {

using namespace orrery;

using namespace orrery::schedule;

namespace {

std::vector<block> sent_blocks(const program& p, const exchange& x) {
  return {p.sent.begin() + x.sent.first, p.sent.begin() + x.sent.end()};
}
std::vector<block> received_blocks(const program& p, const exchange& x) {
  std::vector<block> blocks;
  for (int r = x.received.first; r < x.received.end(); ++r) blocks.push_back(p.received[r].block);
  return blocks;
}

/// The published placement and neighbours (arXiv 2407.00611), written down once more.
template <int C>
void check_wallfacer(int world, pass p) {
  const int G = world / (C * C);
  const side travelling = p == pass::circulate_queries ? side::query : side::key;
  const list<program> programs = programs_of(wallfacer<C>{}, world, p);
  CAPTURE(world);
  CAPTURE(C);
  CAPTURE(std::string{name_of(p)});
  INFO(draw_grid(programs));
  std::map<int, int> starts_at;  // whose team's blocks start at a rank
  for (int rank = 0; rank < world; ++rank) {
    const int r_t = rank / C;
    const int r_a = rank % C;
    starts_at[(r_a * G + r_t / C) * C + r_t % C] = rank;
  }
  REQUIRE(starts_at.size() == static_cast<std::size_t>(world));
  for (const program& mine : programs) {
    const int t = mine.rank / C;
    const int a = mine.rank % C;
    CAPTURE(mine.rank);

    // Step 0 is the teams' gather; step 1 the placement. What stays is needed after both.
    for (int e = mine.steps[0].exchanges.first; e < mine.steps[0].exchanges.end(); ++e) {
      const exchange& x = mine.exchanges[e];
      CHECK(x.complete_before == (mine.sent[x.sent.first].side == travelling ? 1 : 2));
    }
    std::vector<block> teams;
    for (int m = 0; m < C; ++m) teams.push_back({travelling, 0, t * C + m, 0});
    const int target = (a * G + t / C) * C + t % C;
    const step& placement = mine.steps[1];
    if (target == mine.rank) {
      CHECK(placement.exchanges.count == 0);
    } else {
      REQUIRE(placement.exchanges.count == 1);
      const exchange& x = mine.exchanges[placement.exchanges.first];
      CHECK(x.to == target);
      CHECK(x.from == starts_at[mine.rank]);
      CHECK((sent_blocks(mine, x) == teams));
    }

    // Then G steps, in which team t's neighbours are those of its group g.
    const int g = t / G;
    const int next = (g * G + (t + 1) % G) * C + a;
    const int previous = (g * G + (t - 1 + G) % G) * C + a;
    for (int hop = 0; hop < G; ++hop) {
      const step& now = mine.steps[2 + hop];
      CHECK(now.tile.queries.count == C);
      CHECK(now.tile.keys.count == C);
      // What travels has started as many places back in the sub-ring as it has hopped.
      const int origin = (g * G + (t - hop % G + G) % G) * C + a;
      const list<held_block>& held = travelling == side::key ? mine.keys : mine.queries;
      const range& which = travelling == side::key ? now.tile.keys : now.tile.queries;
      for (int m = 0; m < C; ++m) {
        CHECK(held[which.first + m].block.shard == starts_at[origin] / C * C + m);
      }
      int operands = 0;
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) {
        CHECK(mine.exchanges[e].to == next);
        CHECK(mine.exchanges[e].from == previous);
        operands += mine.exchanges[e].payload == payload::operand ? 1 : 0;
      }
      CHECK(operands == (hop + 1 < G ? 1 : 0));
    }
    if (p == pass::forward) CHECK(mine.steps.size() == G + 3);
  }
}

struct gathered_group {
  std::set<std::pair<int, int>> messages;
  int ranks = 0;
  bool some = false;  // not all members have something for each other
};

}  // namespace

TEST_CASE("wallfacer starts and turns as published") {
  for (const pass p : topologies::every_pass) {
    for (const int world : {4, 8, 12, 16, 32, 36}) check_wallfacer<2>(world, p);
    for (const int world : {9, 18, 27, 36}) check_wallfacer<3>(world, p);
    for (const int world : {16, 32, 48, 64}) check_wallfacer<4>(world, p);
  }
}

TEST_CASE("in a ring, each hop flies behind the tile of its own step") {
  for (const pass p : topologies::every_pass) {
    for (const int world : {2, 3, 8, 9}) {
      CAPTURE(world);
      INFO(draw_grid(ring{}, world, p));
      for (int rank = 0; rank < world; ++rank) {
        const program mine = program_of(ring{}, rank, world, p);
        int hops = 0;
        for (const exchange& x : mine.exchanges) {
          CHECK(x.complete_before == x.posted + 1);
          CHECK(x.to == (rank + 1) % world);
          CHECK(x.from == (rank + world - 1) % world);
          if (x.payload == payload::operand) {
            CHECK_FALSE(mine.steps[x.posted].tile.empty());
            CHECK(x.posted == hops++);
          } else if (x.posted < world) {
            // A partial follows in the next step what it was added to.
            CHECK((sent_blocks(mine, x)[0].shard + x.posted - 1) % world == rank);
            CHECK_FALSE(mine.steps[x.posted].tile.empty());
          }
        }
        CHECK(hops == world - 1);
        CHECK(mine.steps.size() == world + (p != pass::forward && world > 1 ? 1 : 0));
      }
    }
  }
}

template <int I>
void check_outer_hops(int world, pass p) {
  CAPTURE(I);
  CAPTURE(world);
  INFO(draw_grid(double_ring<I>{}, world, p));
  for (int rank = 0; rank < world; ++rank) {
    const program mine = program_of(double_ring<I>{}, rank, world, p);
    int outer = 0;
    int inner = 0;
    for (const exchange& x : mine.exchanges) {
      const bool leaves = x.to / I != rank / I;
      CHECK((x.from / I != rank / I) == leaves);
      if (x.payload == payload::partial) continue;
      if (leaves) {
        CHECK(x.to == (rank + I) % world);
        CHECK(x.complete_before - x.posted == I);
        for (int i = x.posted; i < x.complete_before; ++i) CHECK_FALSE(mine.steps[i].tile.empty());
        ++outer;
      } else {
        CHECK(x.to == rank / I * I + (rank + 1) % I);
        CHECK(x.complete_before - x.posted == 1);
        CHECK_FALSE(mine.steps[x.posted].tile.empty());
        ++inner;
      }
    }
    CHECK(outer == world / I - 1);
    CHECK(inner == world / I * (I - 1));
    // Outer and inner hops that fly at the same time are in different lanes.
    for (const exchange& x : mine.exchanges) {
      for (const exchange& y : mine.exchanges) {
        if (x.to / I != rank / I && y.to / I == rank / I) CHECK(x.lane != y.lane);
      }
    }
  }
}

TEST_CASE("in a double ring, an outer hop flies behind a whole inner turn") {
  for (const pass p : topologies::every_pass) {
    check_outer_hops<2>(8, p);
    check_outer_hops<3>(9, p);
    check_outer_hops<4>(16, p);
    check_outer_hops<8>(24, p);
  }
}

TEST_CASE("concentric's keys travel along columns, its queries stay in rows") {
  const int world = 24;
  for (int rank = 0; rank < world; ++rank) {
    const program mine = program_of(concentric<4, 2>{}, rank, world);
    INFO(draw_grid(concentric<4, 2>{}, world));
    for (int e = 0; e < mine.exchanges.size(); ++e) {
      const exchange& x = mine.exchanges[e];
      for (const block& b : sent_blocks(mine, x)) {
        if (b.side == side::query) {
          CHECK(x.to / 4 == rank / 4);
        } else {
          CHECK(x.to % 4 == rank % 4);
          CHECK(b.shard % 4 == rank % 4);
        }
      }
    }
    int turns = 0;
    for (const step& now : mine.steps) {
      if (now.tile.empty()) continue;
      CHECK(now.tile.queries.count == 4);
      CHECK(now.tile.keys.count == 2);
      ++turns;
    }
    CHECK(turns == 3);
  }
}

TEST_CASE("a collective is as many messages as there are pairs of members") {
  int found = 0;
  std::set<collective_kind> kinds;
  for (const topologies::entry& topology : topologies::all()) {
    for (const int world : {2, 4, 8, 9, 12, 16}) {
      for (const pass p : topologies::every_pass) {
        if (!topology.admits(world, p) || topology.name == "my_staggered_gather") continue;  // not in one step
        CAPTURE(topology.name);
        CAPTURE(world);
        CAPTURE(std::string{name_of(p)});
        const list<program> programs = topology.programs(world, p);
        INFO(draw_grid(programs));
        // Members number the collectives of one group alike: by kind, group and step.
        std::map<std::vector<int>, gathered_group> groups;
        for (const program& mine : programs) {
          for (const collective& c : mine.collectives) {
            REQUIRE(c.exchanges.count > 0);
            REQUIRE(c.exchanges.end() <= mine.exchanges.size());
            CHECK((mine.rank - c.first_rank) % c.rank_stride == 0);
            CHECK(mine.rank >= c.first_rank);
            CHECK(mine.rank < c.first_rank + c.ranks * c.rank_stride);
            const exchange& first = mine.exchanges[c.exchanges.first];
            const int which = mine.sent[first.sent.first].side == side::key ? 1 : 0;
            const std::vector<int> key{static_cast<int>(c.kind),
                                       c.first_rank,
                                       c.ranks,
                                       c.rank_stride,
                                       first.posted,
                                       first.lane,
                                       c.kind == collective_kind::all_to_all ? 0 : which};
            gathered_group& group = groups[key];
            ++group.ranks;
            // Wallfacer's gradients that passed their home have not all something to send to their mates.
            const bool some =
                c.kind == collective_kind::reduce_scatter && topology.name.find("wallfacer") != topology.name.npos;
            CHECK(c.exchanges.count <= c.ranks - 1);
            if (!some) CHECK(c.exchanges.count == c.ranks - 1);
            group.some = some;
            for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
              const exchange& x = mine.exchanges[e];
              CHECK(x.posted == first.posted);
              CHECK(x.complete_before == first.complete_before);
              CHECK(x.lane == first.lane);
              CHECK((x.payload == payload::partial || c.kind != collective_kind::reduce_scatter));
              CHECK((x.payload == payload::operand || c.kind != collective_kind::all_gather));
              if (x.to != no_rank) CHECK(group.messages.emplace(mine.rank, x.to).second);
            }
            kinds.insert(c.kind);
          }
        }
        for (const auto& [key, group] : groups) {
          const int ranks = key[2];
          CHECK(group.ranks == ranks);
          for (const auto& [from, to] : group.messages) {
            CHECK((to - key[1]) % key[3] == 0);
            CHECK(to < key[1] + ranks * key[3]);
            CHECK(from != to);
          }
          if (group.some) {
            CHECK(group.messages.size() <= static_cast<std::size_t>(ranks * (ranks - 1)));
          } else {
            CHECK(group.messages.size() == static_cast<std::size_t>(ranks * (ranks - 1)));
          }
          ++found;
        }
      }
    }
  }
  CHECK(found > 500);
  CHECK(kinds.size() == 3);
}

TEST_CASE("all-gathers bring homes, reduce-scatters bring partials home") {
  const int world = 16;
  for (int rank = 0; rank < world; ++rank) {
    const program mine = program_of(concentric<4>{}, rank, world);
    REQUIRE(mine.collectives.size() == 2);
    CHECK((mine.collectives[0].kind == collective_kind::all_gather));
    CHECK((mine.collectives[1].kind == collective_kind::reduce_scatter));
    for (const collective& c : mine.collectives) {
      CHECK(c.first_rank == rank / 4 * 4);
      CHECK(c.ranks == 4);
      CHECK(c.rank_stride == 1);
      for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
        const exchange& x = mine.exchanges[e];
        const bool gather = c.kind == collective_kind::all_gather;
        CHECK((sent_blocks(mine, x) == std::vector<block>{{side::query, 0, gather ? rank : x.to, 0}}));
        CHECK((received_blocks(mine, x) == std::vector<block>{{side::query, 0, gather ? x.from : rank, 0}}));
      }
    }
  }
  // Columns are groups with a stride.
  const program mine = program_of(concentric<2, 4>{}, 3, 16);
  REQUIRE(mine.collectives.size() == 3);
  CHECK((mine.collectives[1] == collective{collective_kind::all_gather, 1, 4, 2, mine.collectives[1].exchanges}));
  // And so are those of an inner topology.
  const program nested = program_of(all_to_all<2, concentric<2>>{}, 5, 8);
  REQUIRE(nested.collectives.size() == 4);
  CHECK((nested.collectives[0] == collective{collective_kind::all_to_all, 4, 2, 1, nested.collectives[0].exchanges}));
  CHECK((nested.collectives[1] == collective{collective_kind::all_gather, 5, 2, 2, nested.collectives[1].exchanges}));
}

TEST_CASE("a rank of an all-gather begins with its own keys") {
  for (int rank = 0; rank < 5; ++rank) {
    const program mine = program_of(all_gather{}, rank, 5);
    const tile& t = mine.steps.back().tile;
    REQUIRE(t.keys.count == 5);
    CHECK(mine.keys[t.keys.first].block.shard == rank);
  }
}

TEST_CASE("ulysses computes its slice of the heads over the whole sequence") {
  const int world = 6;
  for (int rank = 0; rank < world; ++rank) {
    const program mine = program_of(ulysses{}, rank, world);
    INFO(draw_grid(ulysses{}, world));
    REQUIRE(mine.steps.size() == 3);
    const tile& t = mine.steps[1].tile;
    REQUIRE(t.queries.count == world);
    REQUIRE(t.keys.count == world);
    std::set<int> shards;
    for (int q = t.queries.first; q < t.queries.end(); ++q) {
      CHECK(mine.queries[q].block.slice == rank);
      shards.insert(mine.queries[q].block.shard);
    }
    CHECK(shards.size() == static_cast<std::size_t>(world));
  }
}

}  // namespace structure_test
