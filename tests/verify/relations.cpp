// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Proofs for a part of all pairs.
#include <string>

#include <doctest/doctest.h>

#include "orrery/schedule/relation.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/verify/detail/verify_once.hpp"
#include "orrery/verify/verify.hpp"

#include "support/topologies.hpp"
#include "verify/editable.hpp"
#include "verify/every_topology.hpp"

using orrery::below_diagonal;
using orrery::every_pair;
using orrery::fault;
using orrery::half_ring;
using orrery::pass;
using orrery::schedule::relation;

static_assert(orrery::verify(half_ring{}, 16, pass::forward, below_diagonal{}));
static_assert(orrery::verify(half_ring{}, 16, pass::circulate_keys, relation::of(below_diagonal{}, 16)));
static_assert(orrery::verify(orrery::ring{}, 64, pass::forward, every_pair{}));
static_assert(orrery::verify(my_ring{}, 8, pass::circulate_keys, [](int query, int key) { return key == query; }));
static_assert(orrery::verify(half_ring{}, 16).found == fault::pair_missing);

TEST_CASE("what is right for all pairs is right for a part of them") {
  for (const topologies::entry& topology : topologies::all()) {
    for (const int world : {4, 12}) {
      for (const pass p : topologies::every_pass) {
        if (!topology.admits(world, p)) continue;
        CAPTURE(topology.name);
        CAPTURE(world);
        const auto programs = topology.programs(world, p);
        CHECK(orrery::verify(programs, below_diagonal{}).ok());
        CHECK(orrery::verify(programs, relation::of(below_diagonal{}, world)).ok());
        CHECK(orrery::verify(programs, relation{world}).ok());
      }
    }
  }
}

namespace {

/// A world of three in which rank 0 computes the pair (query 0, key 1) twice; `several`: in tiles of several blocks.
orrery::schedule::list<orrery::program> with_a_pair_twice(bool several) {
  auto programs = orrery::programs_of(orrery::all_gather{}, several ? 130 : 3);
  editable::change(programs, 0, [&](editable::program& p) {
    const std::size_t last = p.steps.size() - 1;
    p.repeat_tile(static_cast<int>(last));
    auto& keys = p.steps[last + 1].keys;
    std::erase_if(keys, [&](const auto& held) { return held.block.shard != 1 && (!several || held.block.shard < 10); });
  });
  return programs;
}

}  // namespace

TEST_CASE("a pair that is computed twice is a fault only where it is visible") {
  for (const bool several : {false, true}) {
    CAPTURE(several);
    const auto programs = with_a_pair_twice(several);
    const int world = programs.size();
    CHECK(orrery::verify(programs).found == fault::pair_computed_twice);
    CHECK(orrery::verify(programs, below_diagonal{}).ok());
    CHECK(orrery::verify(programs, relation::of(below_diagonal{}, world)).ok());
    const auto visible = [](int query, int key) { return key <= query + 1; };
    for (const orrery::verdict& v :
         {orrery::verify(programs, visible), orrery::verify(programs, relation::of(visible, world))}) {
      CHECK(v.found == fault::pair_computed_twice);
      CHECK(v.rank == 0);
      CHECK(v.block == orrery::schedule::block{orrery::schedule::side::query, 0, 0, 0});
      CHECK(v.peer == 1);
    }
  }
}

TEST_CASE("a key that is twice in one tile is a fault only where one of its queries sees it") {
  const int world = 200;
  auto programs = orrery::programs_of(orrery::all_gather{}, world);
  editable::change(programs, 7, [](editable::program& p) {
    auto& keys = p.steps.back().keys;
    keys.push_back(keys.back());
  });
  const int twice = editable::program{programs[7]}.steps.back().keys.back().block.shard;
  const auto but_for = [&](int query, int key) { return query != 7 || key != twice; };
  const orrery::verdict found = orrery::verify(programs);
  CHECK(found.found == fault::pair_computed_twice);
  CHECK(found.peer == twice);
  CHECK(orrery::verify(programs, but_for).ok());
  CHECK(orrery::verify(programs, relation::of(but_for, world)).ok());
}

TEST_CASE("a visible pair that is missing is named, whatever asks for it") {
  const auto programs = orrery::programs_of(half_ring{}, 130);
  const auto visible = [](int query, int key) { return key <= query || (query == 3 && key == 100); };
  for (const orrery::verdict& v :
       {orrery::verify(programs, visible), orrery::verify(programs, relation::of(visible, 130))}) {
    CHECK(v.found == fault::pair_missing);
    CHECK(v.block == orrery::schedule::block{orrery::schedule::side::query, 0, 3, 0});
    CHECK(v.peer == 100);
  }
}

TEST_CASE("a relation of another world is refused by name") {
  const auto programs = orrery::programs_of(orrery::ring{}, 4);
  for (const int other : {0, 1, 3, 5, 100}) {
    const orrery::verdict v = orrery::verify(programs, relation{other});
    CHECK(v.found == fault::world_refused);
    CHECK(v.message() ==
          "a world of 4 ranks is refused: the topology is asked for the pairs of another world; make the relation for "
          "this number of ranks and of chunks");
  }
  CHECK(orrery::verify(orrery::wallfacer<2>{}, 6, pass::forward, below_diagonal{}).found == fault::world_refused);
  CHECK(orrery::verify(orrery::ring{}, 0, pass::forward, below_diagonal{}).found == fault::world_refused);
}

namespace {

/// Writes a forward, whatever it is asked for.
struct always_forward {
  static constexpr orrery::program program(int rank, int world, pass) { return my_ring{}.program(rank, world); }
};

}  // namespace

TEST_CASE("programs of another pass are refused") {
  CHECK(orrery::verify(always_forward{}, 4, pass::forward, below_diagonal{}).ok());
  CHECK(orrery::verify(always_forward{}, 4, pass::circulate_keys, below_diagonal{}).found == fault::program_of_another);
}

TEST_CASE("a topology that is not for every pair says which it computes") {
  const std::string says =
      "query shard 0 never meets key shard 1: the topology computes only pairs whose key shard is not after the query "
      "shard: use it with a causal mask and the layout contiguous, or take ring";
  CHECK(orrery::verify(half_ring{}, 8).message() == says);
  CHECK(orrery::detail::verify_once(half_ring{}, 8).message() == says);
  CHECK(orrery::verify(orrery::any_topology{half_ring{}}, 8).message() == says);
  CHECK(orrery::verify(half_ring{}, 8, pass::forward, [](int q, int k) { return k <= q + 1; }).message() == says);
  CHECK(orrery::verify(orrery::all_to_all<2, half_ring>{}, 8).message().find("computes only pairs") !=
        std::string::npos);
  CHECK(orrery::verify(orrery::all_to_all<2, half_ring>{}, 8, pass::forward, below_diagonal{}).ok());
  CHECK(orrery::verify(half_ring{}, 1).ok());
}
