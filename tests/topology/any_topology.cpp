// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/topology/any_topology.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/topology/named.hpp"
#include "orrery/tune/least_egress.hpp"
#include "orrery/verify/verify.hpp"

#include "support/topologies.hpp"

namespace {

constexpr orrery::pass passes[] = {orrery::pass::forward, orrery::pass::circulate_keys,
                                   orrery::pass::circulate_queries};

std::string text_of(const char* reason) { return reason == nullptr ? "admitted" : reason; }

/// Empty, or how two topologies differ.
std::string difference(const orrery::any_topology& a, const orrery::any_topology& b) {
  if (a.name() != b.name()) return a.name() + " is not " + b.name();
  for (const int world : {1, 2, 3, 4, 8, 9, 16}) {
    for (const orrery::pass p : passes) {
      const std::string where = a.name() + " over " + std::to_string(world) + ": ";
      const char* const reason = orrery::unsupported_reason(a, world, p);
      if (text_of(reason) != text_of(orrery::unsupported_reason(b, world, p))) return where + "other refusals";
      if (reason != nullptr) continue;
      if (a.slices(world) != b.slices(world)) return where + "other slices";
      if (a.team(world) != b.team(world)) return where + "other teams";
      if (!(orrery::programs_of(a, world, p) == orrery::programs_of(b, world, p))) return where + "other programs";
      if (!(orrery::program_of(a, world / 2, world, p) == orrery::program_of(b, world / 2, world, p)))
        return where + "another program";
    }
  }
  return "";
}

template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "nothing";
}

}  // namespace

TEST_CASE_TEMPLATE("any_topology is what it holds", Topology, ORRERY_TEST_TOPOLOGIES) {
  const Topology topology{};
  const orrery::any_topology any = topology;
  CHECK(any.name() == orrery::name_of(topology));
  if constexpr (requires { topology.name(); }) CHECK(difference(orrery::topology_named(topology.name()), any) == "");
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

TEST_CASE("names of topologies: defaults, spaces, nests, numbers of which no type was written") {
  using orrery::topology_named;
  CHECK(topology_named("concentric<2>").name() == "concentric<2,1>");
  CHECK(topology_named(" concentric < 2 , 2 > ").name() == "concentric<2,2>");
  CHECK(topology_named("all_to_all<3>").name() == "all_to_all<3,ring>");
  CHECK(topology_named("all_to_all<2, all_to_all<2, double_ring<3>>>").name() ==
        "all_to_all<2,all_to_all<2,double_ring<3>>>");
  CHECK(orrery::verify(topology_named("double_ring<6>"), 12).ok());
  CHECK(orrery::verify(topology_named("all_to_all<5,concentric<3,2>>"), 30).ok());
  CHECK(topology_named("concentric<7,5>") == topology_named("concentric<7,5>"));
  CHECK(!(topology_named("concentric<7,5>") == topology_named("concentric<5,7>")));
  CHECK(!(topology_named("usp<2>") == topology_named("all_to_all<2>")));
  CHECK(topology_named("usp<2>") == topology_named("usp<2>"));
  // A refused world, of which nothing may overflow.
  const auto huge = topology_named("all_to_all<32768,all_to_all<32768,all_to_all<32768>>>");
  CHECK(huge.slices(4) == 1);
  CHECK(huge.unsupported_reason(4) != nullptr);
}

TEST_CASE("names that no topology has") {
  using orrery::topology_named;
  const auto said = [](const std::string& name) { return refusal([&] { static_cast<void>(topology_named(name)); }); };
  const std::string known =
      "here are ring, half_ring, all_gather, double_ring<I>, wallfacer<C>, concentric<A,B>, ulysses, usp<U>, "
      "all_to_all<U>, all_to_all<U,Inner>";
  const std::string begin = "orrery: topology_named: ";
  CHECK(said("wallfcer<2>") == begin + "\"wallfcer<2>\" is no topology; did you mean wallfacer<C>? T" + known);
  CHECK(said("rings") == begin + "\"rings\" is no topology; did you mean ring? T" + known);
  CHECK(said("Ulysses") == begin + "\"Ulysses\" is no topology; did you mean ulysses? T" + known);
  CHECK(said("") == begin + "\"\" is no topology; t" + known);
  CHECK(said("hypercube") == begin + "\"hypercube\" is no topology; t" + known);
  CHECK(said("all_to_all<2,rng>") == begin + "\"rng\" is no topology; did you mean ring? T" + known);
  CHECK(said("ring<2>") == begin + "\"ring<2>\" has 1 argument, expected ring");
  CHECK(said("wallfacer") == begin + "\"wallfacer\" has 0 arguments, expected wallfacer<C>");
  CHECK(said("concentric<1,2,3>") == begin + "\"concentric<1,2,3>\" has 3 arguments, expected concentric<A,B>");
  for (const std::string wrong : {"0", "-1", "2x", "+2", "32769", "99999999999999999999", "1.5", "ring"}) {
    CHECK(said("usp<" + wrong + ">") ==
          begin + "\"usp<" + wrong + ">\" has argument " + wrong + ", expected a number from 1 to 32768 in usp<U>");
  }
  CHECK(said("usp<>") == begin + "\"usp<>\" has argument nothing, expected a number from 1 to 32768 in usp<U>");
  CHECK(said("usp<2") == begin + "\"usp<2\" lacks a >");
  CHECK(said("all_to_all<2,usp<2>") == begin + "\"all_to_all<2,usp<2>\" lacks a >");
  CHECK(said("usp<2>>") == begin + "\"usp<2>>\" has something behind its last >");
  CHECK(said("usp>2<") == begin + "\"usp>2<\" lacks a >");
  std::string nested = "ring";
  for (int i = 0; i < 16; ++i) nested = "all_to_all<1," + nested + ">";
  CHECK(topology_named(nested).name() == nested);
  CHECK(said("all_to_all<1," + nested + ">").find("is nested too deeply") != std::string::npos);
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
