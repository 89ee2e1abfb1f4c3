// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/verify/verify.hpp"

#include "verify/every_topology.hpp"

namespace {

using orrery::fault;
using orrery::pass;

constexpr int worlds[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 24, 27, 36, 64, 81};

}  // namespace

TEST_CASE("every topology is right for every world that it admits, and refuses the others") {
  int right = 0;
  int refused = 0;
  for (const topologies::entry& topology : topologies::all()) {
    for (const int world : worlds) {
      for (const pass p : topologies::every_pass) {
        CAPTURE(topology.name);
        CAPTURE(world);
        CAPTURE(std::string{name_of(p)});
        const orrery::verdict by_symmetry = topology.verify(world, p);
        CHECK(by_symmetry.world == world);
        if (!topology.admits(world, p)) {
          CHECK(by_symmetry.found == fault::world_refused);
          CHECK(by_symmetry.reason != nullptr);
          ++refused;
          continue;
        }
        const orrery::schedule::list<orrery::program> programs = topology.programs(world, p);
        const orrery::verdict by_all_ranks = orrery::verify(programs);
        INFO(by_symmetry.message());
        INFO(by_all_ranks.message());
        INFO(orrery::draw_grid(programs));
        CHECK(by_symmetry.ok());
        CHECK(by_all_ranks.ok());
        ++right;
      }
    }
  }
  CHECK(right > 800);
  CHECK(refused > 1000);
}

TEST_CASE("a world without ranks is refused") {
  for (const topologies::entry& topology : topologies::all()) {
    CAPTURE(topology.name);
    CHECK(topology.verify(0, pass::forward).found == fault::world_refused);
    CHECK(topology.verify(-8, pass::forward).found == fault::world_refused);
  }
  CHECK(orrery::verify(orrery::schedule::list<orrery::program>{}).found == fault::world_refused);
}

TEST_CASE("a thousand ranks") {
  CHECK(orrery::verify(orrery::concentric<32>{}, 1024).ok());
  CHECK(orrery::verify(orrery::wallfacer<16>{}, 1024, pass::circulate_queries).ok());
}

TEST_CASE("a mask's invisible pairs need not be computed, its visible ones must") {
  const int world = 6;
  orrery::schedule::list<orrery::program> programs(world);
  for (int rank = 0; rank < world; ++rank) {  // a causal ring: keys go up to the last rank, and not around
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop <= rank; ++hop) {
      const int shard = rank - hop;
      schedule.begin_exchange(rank + 1 < world ? rank + 1 : orrery::schedule::no_rank, orrery::schedule::no_rank);
      schedule.send(orrery::key(shard));
      schedule.begin_exchange(orrery::schedule::no_rank, shard > 0 ? rank - 1 : orrery::schedule::no_rank);
      schedule.receive(orrery::key(shard - 1));
      schedule.interact(orrery::query(rank), orrery::key(shard));
      schedule.next_step();
    }
    programs[rank] = schedule;
    finish(programs[rank]);
  }
  INFO(orrery::draw_grid(programs));
  CHECK(orrery::verify(programs, [](int query, int key) { return key <= query; }).ok());
  const orrery::verdict missing = orrery::verify(programs, [](int query, int key) { return key <= query + 1; });
  CHECK(missing.found == fault::pair_missing);
  CHECK(missing.block == orrery::schedule::block{orrery::schedule::side::query, 0, 0, 0});
  CHECK(missing.peer == 1);
  CHECK(orrery::verify(programs).found == fault::pair_missing);
}

TEST_CASE("ranks that are a step apart are right if none waits in a circle") {
  for (const int world : {2, 3, 8}) {
    CHECK(orrery::verify(topologies::my_staggered_gather{}, world).ok());
    CHECK(orrery::verify(topologies::my_staggered_gather{}, world, pass::circulate_keys).ok());
  }
}
