// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// What topologies have in common, and which of them are the same.

#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/schedule/relabel.hpp"
#include "orrery/verify/verify.hpp"

#include "verify/every_topology.hpp"

namespace equivalences_test {

using namespace orrery;

using namespace orrery::schedule;

namespace {

/// Every rank's program is the same, for every pass, in these worlds.
template <class A, class B>
void check_same(int first_world, int last_world) {
  int compared = 0;
  for (int world = first_world; world <= last_world; ++world) {
    for (const pass p : topologies::every_pass) {
      if (unsupported_reason(A{}, world, p) != nullptr || unsupported_reason(B{}, world, p) != nullptr) continue;
      CAPTURE(name_of(A{}));
      CAPTURE(name_of(B{}));
      CAPTURE(world);
      CAPTURE(std::string{name_of(p)});
      INFO(draw_grid(A{}, world, p));
      INFO(draw_grid(B{}, world, p));
      for (int rank = 0; rank < world; ++rank) {
        CHECK((program_of(A{}, rank, world, p) == program_of(B{}, rank, world, p)));
        ++compared;
      }
    }
  }
  CHECK(compared > 0);
}

}  // namespace

TEST_CASE("with parameters of one, every topology is the ring") {
  check_same<wallfacer<1>, ring>(1, 9);
  check_same<concentric<1, 1>, ring>(1, 9);
  check_same<concentric<1>, ring>(1, 9);
  check_same<all_to_all<1>, ring>(1, 9);
  check_same<usp<1>, ring>(1, 9);
  check_same<double_ring<1>, ring>(1, 9);
}

TEST_CASE("an all-to-all of one rank is what it contains") {
  check_same<all_to_all<1, wallfacer<2>>, wallfacer<2>>(1, 9);
  check_same<all_to_all<1, concentric<2, 2>>, concentric<2, 2>>(1, 9);
  check_same<all_to_all<1, concentric<3>>, concentric<3>>(1, 9);
  check_same<all_to_all<1, all_gather>, all_gather>(1, 9);
  check_same<all_to_all<1, double_ring<2>>, double_ring<2>>(1, 9);
  check_same<all_to_all<1, usp<2>>, usp<2>>(1, 9);
  check_same<all_to_all<1, topologies::my_ring>, topologies::my_ring>(1, 9);
}

TEST_CASE("usp is an all-to-all around a ring") {
  check_same<usp<2>, all_to_all<2, ring>>(1, 9);
  check_same<usp<3>, all_to_all<3, ring>>(1, 9);
  check_same<usp<4>, all_to_all<4, ring>>(1, 9);
}

TEST_CASE("a double ring with a single ring is the ring") {
  check_same<double_ring<2>, ring>(2, 2);
  check_same<double_ring<3>, ring>(3, 3);
  check_same<double_ring<4>, ring>(4, 4);
  check_same<double_ring<5>, ring>(5, 5);
  check_same<double_ring<6>, ring>(6, 6);
  check_same<double_ring<7>, ring>(7, 7);
  check_same<double_ring<8>, ring>(8, 8);
  check_same<double_ring<9>, ring>(9, 9);
}

TEST_CASE("a bundle of all keys is the all-gather") {
  check_same<concentric<1, 2>, all_gather>(2, 2);
  check_same<concentric<1, 3>, all_gather>(3, 3);
  check_same<concentric<1, 5>, all_gather>(5, 5);
  check_same<concentric<1, 8>, all_gather>(8, 8);
}

TEST_CASE("two topologies that should differ do") {
  CHECK_FALSE((program_of(ring{}, 0, 4) == program_of(concentric<2>{}, 0, 4)));
  CHECK_FALSE((program_of(ring{}, 0, 4) == program_of(ring{}, 1, 4)));
  CHECK_FALSE((program_of(ring{}, 0, 4) == program_of(ring{}, 0, 5)));
  CHECK_FALSE((program_of(ring{}, 0, 4) == program_of(ring{}, 0, 4, pass::circulate_keys)));
}

TEST_CASE("one rank communicates nothing") {
  int asked = 0;
  for (const topologies::entry& topology : topologies::all()) {
    for (const pass p : topologies::every_pass) {
      if (!topology.admits(1, p)) continue;
      CAPTURE(topology.name);
      const list<program> alone = topology.programs(1, p);
      INFO(draw_grid(alone));
      REQUIRE(alone.size() == 1);
      CHECK(alone[0].exchanges.empty());
      CHECK(alone[0].collectives.empty());
      CHECK(alone[0].slots == std::array<int, 4>{});
      REQUIRE(alone[0].steps.size() == 1);
      CHECK((alone[0].steps[0].tile == tile{{0, 1}, {0, 1}}));
      ++asked;
    }
  }
  CHECK(asked >= 19);
}

TEST_CASE("ranks may be relabelled") {
  for (const topologies::entry& topology : topologies::all()) {
    for (const int world : {4, 6, 9, 12, 16}) {
      for (const pass p : topologies::every_pass) {
        if (!topology.admits(world, p)) continue;
        CAPTURE(topology.name);
        CAPTURE(world);
        CAPTURE(std::string{name_of(p)});
        list<int> to;
        const int factor = world == 6 ? 5 : world == 4 ? 3 : world == 9 ? 2 : world == 12 ? 7 : 5;  // coprime to it
        for (int rank = 0; rank < world; ++rank) to.push_back((rank * factor + 3) % world);
        std::swap(to[0], to[1]);
        const list<program> programs = topology.programs(world, p);
        list<program> others = relabel(programs, to);
        CHECK_FALSE((others == programs));
        INFO(verify(others).message());
        INFO(draw_grid(others));
        CHECK(verify(others).ok());
        // And what is wrong stays wrong, at the rank of the new name.
        list<program> wrong = programs;
        wrong[1].exchanges[0].lane = 77;
        const verdict found = verify(relabel(wrong, to));
        CHECK(found.found == fault::lane_does_not_exist);
        CHECK(found.rank == to[1]);
      }
    }
  }
}

TEST_CASE("topologies have names") {
  CHECK(name_of(ring{}) == "ring");
  CHECK(name_of(wallfacer<3>{}) == "wallfacer<3>");
  CHECK(name_of(concentric<4>{}) == "concentric<4,1>");
  CHECK(name_of(all_gather{}) == "all_gather");
  CHECK(name_of(ulysses{}) == "ulysses");
  CHECK(name_of(usp<4>{}) == "usp<4>");
  CHECK(name_of(double_ring<8>{}) == "double_ring<8>");
  CHECK(name_of(all_to_all<2, all_to_all<3, concentric<2>>>{}) == "all_to_all<2,all_to_all<3,concentric<2,1>>>");
  CHECK(name_of(topologies::my_ring{}) == "custom topology");
}

TEST_CASE("a refused world says what would work") {
  CHECK(unsupported_reason(ring{}, 7) == nullptr);
  CHECK(std::string{unsupported_reason(ring{}, 0)} == "needs a world of at least one rank");
  CHECK(std::string{unsupported_reason(wallfacer<2>{}, 6)} ==
        "needs a world that C*C divides: choose a smaller C, or concentric<C>, for which C need only divide it");
  CHECK(std::string{unsupported_reason(concentric<2, 2>{}, 6)} ==
        "needs a world that A*B divides: choose A and B from the world's divisors, or ring");
  CHECK(std::string{unsupported_reason(double_ring<4>{}, 6)} ==
        "needs a world that I divides: choose I from the world's divisors, or ring");
  CHECK(std::string{unsupported_reason(usp<4>{}, 6)} ==
        "needs a world that U divides: choose U from the world's divisors, or ring");
  // The inner topology's own reason.
  CHECK(std::string{unsupported_reason(all_to_all<2, wallfacer<2>>{}, 4)} ==
        std::string{unsupported_reason(wallfacer<2>{}, 2)});
  CHECK(unsupported_reason(all_to_all<2, topologies::my_ring>{}, 4, pass::circulate_queries) == nullptr);

  CHECK_THROWS_WITH_AS(
      static_cast<void>(program_of(wallfacer<2>{}, 0, 6)),
      "orrery: topology wallfacer<2> over 6 ranks needs a world that C*C divides: choose a smaller C, or "
      "concentric<C>, for which C need only divide it",
      std::invalid_argument);
}

TEST_CASE("heads are cut into as many slices as groups have ranks") {
  CHECK(slices_of(ring{}, 8) == 1);
  CHECK(slices_of(ulysses{}, 8) == 8);
  CHECK(slices_of(usp<4>{}, 8) == 4);
  CHECK(slices_of(all_to_all<2, all_to_all<3, concentric<2>>>{}, 12) == 6);
  CHECK(slices_of(topologies::my_ring{}, 8) == 1);
}

TEST_CASE("a program on its own is the one among all") {
  for (const int world : {4, 12}) {
    for (int rank = 0; rank < world; ++rank) {
      CHECK((program_of(topologies::my_ring{}, rank, world, pass::circulate_keys) ==
             programs_of(topologies::my_ring{}, world, pass::circulate_keys)[rank]));
      CHECK((program_of(all_to_all<2, topologies::my_ring>{}, rank, world, pass::circulate_keys) ==
             programs_of(all_to_all<2, topologies::my_ring>{}, world, pass::circulate_keys)[rank]));
      CHECK((program_of(concentric<2>{}, rank, world) == programs_of(concentric<2>{}, world)[rank]));
    }
  }
}

}  // namespace equivalences_test
