// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/topology/any_topology.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/tune/least_egress.hpp"
#include "orrery/verify/verify.hpp"

#include "support/topologies.hpp"

namespace {

constexpr orrery::pass passes[] = {orrery::pass::forward, orrery::pass::circulate_keys,
                                   orrery::pass::circulate_queries};

std::string text_of(const char* reason) { return reason == nullptr ? "admitted" : reason; }

}  // namespace

TEST_CASE_TEMPLATE("any_topology is what it holds", Topology, ORRERY_TEST_TOPOLOGIES) {
  const Topology topology{};
  const orrery::any_topology any = topology;
  CHECK(any.name() == orrery::name_of(topology));
  for (const int world : {1, 2, 3, 4, 8, 9, 16}) {
    for (const orrery::pass p : passes) {
      CHECK(text_of(orrery::unsupported_reason(any, world, p)) ==
            text_of(orrery::unsupported_reason(topology, world, p)));
      if (orrery::unsupported_reason(topology, world, p) != nullptr) continue;
      CHECK(orrery::slices_of(any, world) == orrery::slices_of(topology, world));
      CHECK(orrery::verify(any, world, p).ok());
      CHECK((orrery::programs_of(any, world, p) == orrery::programs_of(topology, world, p)));
      const int rank = world / 2;
      CHECK((orrery::program_of(any, rank, world, p) == orrery::program_of(topology, rank, world, p)));
    }
  }
}

TEST_CASE("topologies of a list are placed, nest in each other's copies, and say what is missing") {
  using orrery::any_topology;
  const std::vector<any_topology> some{orrery::wallfacer<2>{}, my_ring{}, any_topology{orrery::usp<2>{}}};
  const orrery::placed inside{some[0], orrery::rings_in_nodes{}};
  const orrery::placed<orrery::wallfacer<2>, orrery::rings_in_nodes> known{};
  CHECK((orrery::programs_of(inside, 8) == orrery::programs_of(known, 8)));
  CHECK(any_topology{inside}.name() == "placed<wallfacer<2>,rings_in_nodes>");
  CHECK(some[2].name() == "usp<2>");
  std::string said;
  try {
    static_cast<void>(orrery::placed{some[1], orrery::rings_in_nodes{}}.ranks(8));
  } catch (const std::invalid_argument& e) {
    said = e.what();
  }
  CHECK(
      said ==
      "orrery: topology custom topology does not say how large its teams are: give it `int team(int world) const`, or "
      "place it by least_egress, which need not know");
}
