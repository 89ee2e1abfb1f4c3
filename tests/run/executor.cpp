// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The executor with an interaction of a user's own: every pair of tokens meets exactly once, whatever the topology.
#include "orrery/run/executor.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include "orrery/transport/threads.hpp"
#include "orrery/verify/verify.hpp"

#include "run/pairs.hpp"
#include "topologies.hpp"

TEST_CASE_TEMPLATE("every pair meets once, in every slice, in every pass", Topology, ORRERY_TEST_TOPOLOGIES) {
  for (const int world : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16}) {
    for (const orrery::pass p :
         {orrery::pass::forward, orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      if (orrery::refuses(Topology{}, world, p) != nullptr) continue;
      INFO(orrery::name_of(Topology{}), " over ", world, ", ", orrery::name_of(p));
      for (const std::int64_t length : {37, 5}) {
        CHECK_NOTHROW(orrery::threads::run(world, [&](auto& on) { pairs::check_rank<Topology>(on, p, length, 23); }));
      }
    }
  }
}

namespace {

/// A ring that forgets its last tile, and does not hide it from `work`.
struct forgetful {
  constexpr orrery::program program(int rank, int world) const {
    orrery::program p = my_ring{}.program(rank, world);
    if (rank == 1) p.steps.back().tile = {{0, 0}, {0, 0}};
    return p;
  }
};

}  // namespace

TEST_CASE("a pair that is missing is found by the verifier, and by the meetings alike") {
  CHECK_FALSE(orrery::verify(forgetful{}, 3).ok());
  std::string found;
  try {
    orrery::threads::run(3, [](auto& on) { pairs::check_rank<forgetful>(on, orrery::pass::forward, 9, 9); });
  } catch (const std::logic_error& e) {
    found = e.what();
  }
  CHECK(found == "query token 3 in slice 0 has met 6 of 9");
}

TEST_CASE("the workspace holds the slots and the packed operands, each on lines of its own") {
  orrery::threads::run(4, [](auto& on) {
    const orrery::program steps = orrery::program_of(orrery::ring{}, on.rank(), 4, orrery::pass::forward);
    pairs::work mine{{40, 4}, {44, 4}, steps};
    orrery::executor run{on, steps, mine};
    // Two key slots and one packed key operand of 11 names, 88 bytes, each rounded up to 128.
    if (run.workspace_bytes() != 3 * 128) throw std::logic_error{std::to_string(run.workspace_bytes())};
  });
}
