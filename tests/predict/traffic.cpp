// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/predict/traffic.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"

#include "verify/every_topology.hpp"

namespace traffic_test {

using namespace orrery;

using namespace orrery::schedule;

namespace {

/// What each rank of a schedule should cost; the same for all, since balance is part of the formulas.
struct costs {
  double units;
  std::int64_t messages;
  int steps;
};

/// Query operands and partials, key operands and partials: what one block of each weighs.
struct weights {
  double q, o, k, dk;
};
constexpr weights weights_for(pass p, double g = 1) {
  return p == pass::forward ? weights{1, 1, 2 / g, 0} : weights{2, 1, 2 / g, 2 / g};
}
/// Of what stays and what travels, operand and partial together.
constexpr double staying(pass p, double g = 1) {
  const weights w = weights_for(p, g);
  return p == pass::circulate_queries ? w.k + w.dk : w.q + w.o;
}
constexpr double travelling(pass p, double g = 1) {
  const weights w = weights_for(p, g);
  return p == pass::circulate_queries ? w.q + w.o : w.k + w.dk;
}

bool near(double a, double b) { return std::abs(a - b) <= 1e-9 * (1 + std::abs(b)); }

template <class Topology>
void check_costs(int world, pass p, const costs& expected, double g = 1) {
  CAPTURE(name_of(Topology{}));
  CAPTURE(world);
  CAPTURE(std::string{name_of(p)});
  CAPTURE(g);
  const traffic_report report = traffic(Topology{}, world, p, g);
  INFO(draw_grid(Topology{}, world, p));
  CHECK(report.world == world);
  CHECK((report.pass == p));
  CHECK(near(report.sent, expected.units));
  CHECK(report.messages_sent == expected.messages);
  CHECK(report.steps == expected.steps);
  REQUIRE(report.ranks.size() == world);
  std::int64_t pairs = 0;
  for (const rank_traffic& mine : report.ranks) {
    CHECK(near(mine.sent, expected.units));
    CHECK(mine.messages_sent == expected.messages);
    CHECK(mine.steps == expected.steps);
    pairs += mine.pairs;
  }
  CHECK(pairs == std::int64_t{world} * world * report.slices);
}

constexpr int hop_home(pass p) { return p == pass::forward ? 0 : 1; }

template <class Topology>
void check_ring(int world, double g) {
  for (const pass p : topologies::every_pass) {
    const int hops = world - 1;
    const costs expected{travelling(p, g) * hops, hops * (p == pass::forward ? 1 : 2),
                         world + (hops > 0 ? hop_home(p) : 0)};
    check_costs<Topology>(world, p, expected, g);
  }
}

/// Rows of A, columns of world / A, bundles of B.
template <int A, int B>
void check_concentric(int world, double g = 1) {
  for (const pass p : topologies::every_pass) {
    const int columns = world / A;
    const int turns = columns / B;
    const int directions = p == pass::forward ? 1 : 2;
    const bool home = p != pass::forward && turns > 1;
    costs expected{};
    expected.units = staying(p, g) * (A - 1) + travelling(p, g) * (columns - 1);
    expected.messages = 2 * (A - 1) + directions * (B - 1) + directions * (turns - 1);
    const bool gathers = A > 1 || B > 1;
    const bool scatters = A > 1 || (p != pass::forward && B > 1);
    // The hop home has a step; the reduce-scatters share it where they need not wait for it.
    expected.steps = (gathers ? 1 : 0) + turns + (home ? (B > 1 ? 2 : 1) : scatters ? 1 : 0);
    check_costs<concentric<A, B>>(world, p, expected, g);
  }
}

/// At run time: a compiler would try to evaluate `traffic` of constants itself, at length.
template <class Topology>
traffic_report measure(const Topology& topology, int world, pass p = pass::forward, double g = 1) {
  return traffic(topology, world, p, g);
}

/// Wallfacer's ranks differ: some are their own starting place, and a gradient that passes its home stays there.
template <int C>
void check_wallfacer(int world) {
  const int G = world / (C * C);
  const auto start_of = [&](int rank) { return (rank % C * G + rank / C / C) * C + rank / C % C; };
  for (const pass p : topologies::every_pass) {
    CAPTURE(C);
    CAPTURE(world);
    CAPTURE(std::string{name_of(p)});
    const traffic_report report = traffic(wallfacer<C>{}, world, p);
    INFO(draw_grid(wallfacer<C>{}, world, p));
    const weights w = weights_for(p);
    const bool queries_travel = p == pass::circulate_queries;
    const double operand = queries_travel ? w.q : w.k;
    const double partial = queries_travel ? w.o : w.dk;
    const double published = (C - 1) * (w.q + w.o + w.k + w.dk) + (operand + partial) * (C * (G - 1) + C);
    double total = 0;
    for (int rank = 0; rank < world; ++rank) {
      CAPTURE(rank);
      const int start = start_of(rank);
      int starts_here = 0;
      while (start_of(starts_here) != rank) ++starts_here;
      const bool moves = start != rank;
      // Does this rank's own team pass here, in this rank's sub-ring?
      bool passes_home = false;
      for (int mate = 0; mate < C; ++mate) {
        const int at = start_of(rank / C * C + mate);
        passes_home = passes_home || (at % C == rank % C && at / C / G == rank / C / G);
      }
      double expected = (C - 1) * (w.q + w.k) + (C - 1) * (queries_travel ? w.dk : w.o);  // gathers; what stays reduces
      expected += operand * (C * (G - 1) + (moves ? C : 0));
      if (p != pass::forward) {
        int partials = C * (G - 1) + (moves ? C : 0) + (C - 1);
        // One's own shard does not go on from home (a rank that is its own starting place sends nothing there anyway),
        if (passes_home && (moves || G > 1) && !(start == rank && starts_here == rank)) --partials;
        // and what a mate has passed it already need not be sent again.
        if (moves && start / C == rank / C) --partials;
        expected += partial * partials;
      }
      const double units = report.ranks[rank].sent;
      CHECK(near(units, expected));
      CHECK(units <= published + 1e-9);
      if (p == pass::forward) {
        CHECK(near(units, published - (moves ? 0 : 2 * C)));
        CHECK(report.ranks[rank].messages_sent == 3 * (C - 1) + (G - 1) + (moves ? 1 : 0));
        CHECK(report.ranks[rank].steps == G + 3 - (G + 3 > 3 && C > 1 && !moves && starts_here == rank ? 1 : 0));
      } else {
        CHECK(units >= published - (operand + partial) * C - partial * 2);
      }
      CHECK(report.ranks[rank].tiles == G);
      CHECK(report.ranks[rank].pairs == std::int64_t{C} * C * G);
      total += units;
    }
    CHECK(total <= published * world);
    CHECK(total >= (published - operand - 2 * partial - (operand + partial) * C) * world);
  }
}

}  // namespace

TEST_CASE("ring: 2(P-1) forward, 4(P-1) or 3(P-1) backward, from every rank") {
  for (const int world : {1, 2, 3, 4, 5, 7, 8, 16, 31}) {
    for (const double g : {1.0, 4.0, 8.0}) check_ring<ring>(world, g);
  }
  CHECK(measure(ring{}, 8).sent == 14);
  CHECK(measure(ring{}, 8, pass::circulate_keys).sent == 28);
  CHECK(measure(ring{}, 8, pass::circulate_queries).sent == 21);
}

TEST_CASE("double ring: as a ring, of which 2(P/I-1) between groups") {
  const auto check = [](auto topology, int world, int inner) {
    using topology_type = decltype(topology);
    for (const pass p : topologies::every_pass) {
      const traffic_report report = measure(topology_type{}, world, p);
      INFO(draw_grid(topology_type{}, world, p));
      CHECK(near(report.sent, travelling(p) * (world - 1)));
      for (int rank = 0; rank < world; ++rank) {
        CHECK(near(report.ranks[rank].sent, travelling(p) * (world - 1)));
        double outside = 0;
        for (int to = 0; to < world; ++to)
          outside += to / inner != rank / inner ? report.between[rank * world + to] : 0;
        CHECK(near(outside, travelling(p) * (world / inner - 1)));
      }
      CHECK(near(report.node_egress(inner), inner * travelling(p) * (world / inner - 1)));
    }
  };
  check(double_ring<2>{}, 8, 2);
  check(double_ring<4>{}, 8, 4);
  check(double_ring<3>{}, 9, 3);
  check(double_ring<8>{}, 32, 8);
}

TEST_CASE("all-gather: the ring's volume at once") {
  for (const int world : {1, 2, 3, 8, 13}) {
    for (const pass p : topologies::every_pass) {
      const int messages = (world - 1) * (p == pass::forward ? 1 : 2);
      const int steps = world == 1 ? 1 : p == pass::forward ? 2 : 3;
      check_costs<all_gather>(world, p, {travelling(p) * (world - 1), messages, steps});
    }
  }
}

TEST_CASE("concentric: rows and columns") {
  for (const double g : {1.0, 4.0}) {
    check_concentric<1, 1>(6, g);
    check_concentric<2, 1>(2, g);
    check_concentric<2, 1>(8, g);
    check_concentric<4, 1>(16, g);
    check_concentric<3, 1>(15, g);
    check_concentric<2, 2>(4, g);
    check_concentric<2, 2>(8, g);
    check_concentric<2, 2>(16, g);
    check_concentric<1, 3>(12, g);
    check_concentric<3, 2>(24, g);
    check_concentric<4, 4>(16, g);
    check_concentric<4, 4>(64, g);
    check_concentric<5, 7>(35, g);
  }
  // As the header says it.
  CHECK(measure(concentric<4>{}, 32).sent == 2 * 3 + 2 * 7);
  CHECK(measure(concentric<4>{}, 32, pass::circulate_keys).sent == 3 * 3 + 4 * 7);
  CHECK(measure(concentric<4>{}, 32, pass::circulate_queries).sent == 4 * 3 + 3 * 7);
}

TEST_CASE("concentric meets the lower bound of all pairs at A = sqrt(P), or sqrt(P / g)") {
  const auto bound = [](int world) { return 4 * (std::sqrt(world) - 1); };
  CHECK(near(measure(concentric<2>{}, 4).sent, bound(4)));
  CHECK(near(measure(concentric<3>{}, 9).sent, bound(9)));
  CHECK(near(measure(concentric<4>{}, 16).sent, bound(16)));
  CHECK(near(measure(concentric<8>{}, 64).sent, bound(64)));
  CHECK(near(measure(concentric<4, 4>{}, 16).sent, bound(16)));
  // No other grid is better, with one query head to a key head or with four.
  const std::vector<double> of_one{measure(concentric<1>{}, 64).sent,  measure(concentric<2>{}, 64).sent,
                                   measure(concentric<4>{}, 64).sent,  measure(concentric<8>{}, 64).sent,
                                   measure(concentric<16>{}, 64).sent, measure(concentric<32>{}, 64).sent};
  for (const double units : of_one) CHECK(units >= of_one[3]);
  const std::vector<double> of_four{
      measure(concentric<1>{}, 64, pass::forward, 4).sent, measure(concentric<2>{}, 64, pass::forward, 4).sent,
      measure(concentric<4>{}, 64, pass::forward, 4).sent, measure(concentric<8>{}, 64, pass::forward, 4).sent,
      measure(concentric<16>{}, 64, pass::forward, 4).sent};
  for (const double units : of_four) CHECK(units >= of_four[2]);
  CHECK(of_four[2] == 2 * 3 + 0.5 * 15);
  for (const topologies::entry& topology : topologies::all()) {
    for (const int world : {4, 9, 16, 36}) {
      if (!topology.admits(world, pass::forward) || topology.name.find("all_to_all") != std::string::npos) continue;
      if (topology.name == "ulysses" || topology.name.substr(0, 3) == "usp") continue;  // heads are another matter
      CAPTURE(topology.name);
      CHECK(traffic(topology.programs(world, pass::forward), weights_of(pass::forward)).sent >= bound(world) - 1e-9);
    }
  }
}

TEST_CASE("wallfacer: collectives, placement and rings, rank by rank") {
  for (const int world : {4, 8, 12, 16, 32, 36, 64}) check_wallfacer<2>(world);
  for (const int world : {9, 18, 27, 36}) check_wallfacer<3>(world);
  for (const int world : {16, 32, 48, 64}) check_wallfacer<4>(world);
  // The paper's worked example, in units of 2BNH/P: its rings have P/C - C and its collectives 2(C - 1) of them.
  const traffic_report report = measure(wallfacer<4>{}, 64);
  CHECK(report.sent == 4 * 3 + 2 * (64 / 4 - 4) + 2 * 4);
  CHECK(measure(ring{}, 64).sent == 2 * 63);
}

TEST_CASE("all-to-all: 4(U-1)/U, and what the inner topology sends") {
  const auto expected = [](pass p, int U) { return (staying(p) + travelling(p)) * (U - 1) / U; };
  for (const pass p : topologies::every_pass) {
    for (const int world : {1, 2, 3, 5, 8, 12}) {
      check_costs<ulysses>(world, p, {expected(p, world), 2 * (world - 1), world == 1 ? 1 : 3});
    }
    for (const int world : {2, 4, 8, 12, 24}) {
      const traffic_report inner = measure(ring{}, world / 2, p);
      check_costs<usp<2>>(world, p, {expected(p, 2) + inner.sent, 2 + inner.messages_sent, 2 + inner.steps});
    }
    for (const int world : {4, 8, 12, 24}) {
      const traffic_report inner = measure(ring{}, world / 4, p);
      check_costs<usp<4>>(world, p, {expected(p, 4) + inner.sent, 6 + inner.messages_sent, 2 + inner.steps});
    }
    const traffic_report grid = measure(concentric<3, 2>{}, 12, p);
    check_costs<all_to_all<2, concentric<3, 2>>>(24, p,
                                                 {expected(p, 2) + grid.sent, 2 + grid.messages_sent, 2 + grid.steps});
    // Nested: the outer transposition is of whole shards, the inner one of halves twice as long.
    check_costs<all_to_all<2, all_to_all<3>>>(
        12, p,
        {expected(p, 2) + expected(p, 3) + travelling(p), 2 + 4 + (p == pass::forward ? 1 : 2), 4 + 2 + hop_home(p)});
  }
  CHECK(near(measure(ulysses{}, 8).sent, 4 * 7.0 / 8));
  CHECK(near(measure(ulysses{}, 8, pass::circulate_keys).sent, 7 * 7.0 / 8));
}

TEST_CASE("wider sums weigh more: 16-bit storage, whose partials are float") {
  CHECK((weights_of(pass::forward, 1, 2).of == std::array<double, 4>{1, 2, 2, 0}));
  CHECK((weights_of(pass::circulate_keys, 1, 2).of == std::array<double, 4>{2, 2, 2, 4}));
  CHECK((weights_of(pass::circulate_queries, 4, 2).of == std::array<double, 4>{2, 2, 0.5, 1}));
  const auto check = [](auto topology, int world, double forward, double keys, double queries) {
    CAPTURE(name_of(topology));
    CHECK(near(traffic(topology, world, pass::forward, 1, 2).sent, forward));
    CHECK(near(traffic(topology, world, pass::circulate_keys, 1, 2).sent, keys));
    CHECK(near(traffic(topology, world, pass::circulate_queries, 1, 2).sent, queries));
  };
  // The README's formulas of 16-bit storage.
  check(ring{}, 16, 2 * 15, 6 * 15, 4 * 15);
  check(double_ring<4>{}, 16, 2 * 15, 6 * 15, 4 * 15);
  check(all_gather{}, 16, 2 * 15, 6 * 15, 4 * 15);
  check(concentric<4>{}, 64, 3 * 3 + 2 * 15, 4 * 3 + 6 * 15, 6 * 3 + 4 * 15);
  check(concentric<8>{}, 64, 35, 4 * 7 + 6 * 7, 6 * 7 + 4 * 7);
  check(ulysses{}, 16, 5 * 15.0 / 16, 10 * 15.0 / 16, 10 * 15.0 / 16);
  check(usp<4>{}, 16, 5 * 3.0 / 4 + 2 * 3, 10 * 3.0 / 4 + 6 * 3, 10 * 3.0 / 4 + 4 * 3);
  CHECK(traffic(wallfacer<2>{}, 64, pass::forward, 1, 2).sent == 5 * 1 + 2 * (64 / 2 - 2) + 2 * 2);
}

TEST_CASE("a cost is any function of a block") {
  const list<program> programs = programs_of(ulysses{}, 3);
  const auto blocks = [](side, payload, const block&) { return std::int64_t{1}; };
  static_assert(block_cost<decltype(blocks)> && !block_cost<int>);
  const byte_report counted = traffic(programs, blocks);
  CHECK(counted.sent == 2 + 2 + 2);  // slices of Q, K and O to two ranks
  CHECK(counted.total == 3 * counted.sent);
  const auto slice_1 = [](side s, payload c, const block& b) {
    return b.slice == 1 && s == side::key && c == payload::operand ? 0.5 : 0.0;
  };
  const traffic_report keys = traffic(programs, slice_1);
  CHECK(keys.ranks[0].sent == 0.5);
  CHECK(keys.ranks[1].sent == 0);
  CHECK(keys.ranks[1].received == 1);
  CHECK(keys.total == 1);
  CHECK(keys.sent == 0.5);
  CHECK(keys.received == 1);
  CHECK(keys.node_egress(1) == 0.5);
  CHECK(keys.node_ingress(1) == 1);
}

TEST_CASE("what is sent is received") {
  for (const topologies::entry& topology : topologies::all()) {
    for (const int world : {4, 12, 16}) {
      for (const pass p : topologies::every_pass) {
        if (!topology.admits(world, p)) continue;
        CAPTURE(topology.name);
        CAPTURE(world);
        const traffic_report report = traffic(topology.programs(world, p), weights_of(p));
        double busiest = 0;
        std::int64_t sent = 0, received = 0;
        for (int b = 0; b < world; ++b) {
          double sum = 0;
          for (int a = 0; a < world; ++a) sum += report.between[a * world + b];
          CHECK(near(sum, report.ranks[b].received));
          busiest = std::max(busiest, sum);
          sent += report.ranks[b].messages_sent;
          received += report.ranks[b].messages_received;
        }
        CHECK(near(report.received, busiest));
        CHECK(near(report.node_ingress(1), busiest));
        CHECK(report.node_ingress(world) == 0);
        CHECK(sent == received);
      }
    }
  }
}

TEST_CASE("fewer key heads weigh less") {
  CHECK((weights_of(pass::forward).of == std::array<double, 4>{1, 1, 2, 0}));
  CHECK((weights_of(pass::forward, 4).of == std::array<double, 4>{1, 1, 0.5, 0}));
  CHECK((weights_of(pass::circulate_keys, 4).of == std::array<double, 4>{2, 1, 0.5, 0.5}));
  CHECK((weights_of(pass::circulate_queries).of == std::array<double, 4>{2, 1, 2, 2}));
  CHECK(weights_of(pass::forward, 8)(side::key, payload::operand) == 0.25);
  CHECK(weights_of(pass::forward, 8)(side::query, payload::partial) == 1);
  CHECK(measure(ring{}, 8, pass::forward, 8).sent == 14.0 / 8);
  CHECK(measure(ring{}, 8, pass::circulate_keys, 8).sent == 28.0 / 8);
  CHECK(measure(ring{}, 8, pass::circulate_queries, 8).sent == 21);
  CHECK(near(measure(ulysses{}, 4, pass::forward, 4).sent, (2 + 0.5) * 3 / 4));
}

TEST_CASE("the units between two ranks add up") {
  for (const topologies::entry& topology : topologies::all()) {
    for (const int world : {4, 12, 16}) {
      for (const pass p : topologies::every_pass) {
        if (!topology.admits(world, p)) continue;
        CAPTURE(topology.name);
        CAPTURE(world);
        const list<program> programs = topology.programs(world, p);
        const traffic_report report = traffic(programs, weights_of(p));
        REQUIRE(report.between.size() == world * world);
        double busiest = 0;
        for (int a = 0; a < world; ++a) {
          CHECK(report.between[a * world + a] == 0);
          double sum = 0;
          for (int b = 0; b < world; ++b) sum += report.between[a * world + b];
          const double sent = report.ranks[a].sent;
          CHECK(near(sum, sent));
          busiest = sent > busiest ? sent : busiest;
        }
        CHECK(near(report.sent, busiest));
        CHECK(near(report.node_egress(1), busiest));
        CHECK(report.node_egress(world) == 0);
      }
    }
  }
}

TEST_CASE("a node's egress is the published one") {
  // WallFacer's clusters of 32 GPUs, in units of 2NH, that is, of the keys and values of all 32 shards.
  const double unit = 2 * 32;
  CHECK(measure(ring{}, 32).node_egress(16) / unit == 31.0 / 32);  // "0.97"
  CHECK(measure(ring{}, 32).node_egress(8) / unit == 31.0 / 32);
  CHECK(measure(wallfacer<2>{}, 32).node_egress(16) / unit == 0.50);
  CHECK(measure(wallfacer<4>{}, 32).node_egress(16) / unit == 1.00);
  CHECK(measure(wallfacer<2>{}, 32).node_egress(8) / unit == 1.375);
  CHECK(measure(wallfacer<4>{}, 32).node_egress(8) / unit == 0.75);
}

TEST_CASE("a node's egress, counted by hand") {
  // Rows inside a node of 4 ranks: their collectives stay there, and each rank's keys leave in every hop.
  CHECK(measure(concentric<4>{}, 16).node_egress(4) == 4 * 2 * 3);
  // Two rows of a node: of the keys that hop, half stay.
  CHECK(measure(concentric<2>{}, 16).node_egress(4) == 2 * 2 * 7);
  // Rows of four on nodes of two: with the others' queries and outputs.
  CHECK(measure(concentric<4>{}, 16).node_egress(2) == 2 * (2 * 2 + 2 * 3));
  // Everyone to everyone else: Q, K, V and O of 12 of 16 peers.
  CHECK(near(measure(ulysses{}, 16).node_egress(4), 4 * 12 * 4.0 / 16));
  // The groups inside nodes, the ring between them.
  CHECK(near(measure(usp<4>{}, 16).node_egress(4), 4 * 2 * 3));
  CHECK(measure(all_gather{}, 16).node_egress(4) == 4 * 12 * 2);
}

TEST_CASE("nodes must divide the world") {
  const traffic_report report = measure(ring{}, 8);
  CHECK_THROWS_WITH_AS(static_cast<void>(report.node_egress(3)),
                       "orrery: node_egress: ranks_per_node is 3, expected a divisor of the world, 8",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(static_cast<void>(report.node_egress(0)),
                       "orrery: node_egress: ranks_per_node is 0, expected a divisor of the world, 8",
                       std::invalid_argument);
  CHECK_THROWS_AS(static_cast<void>(report.node_egress(16)), std::invalid_argument);
  CHECK_THROWS_WITH_AS(static_cast<void>(report.node_ingress(5)),
                       "orrery: node_ingress: ranks_per_node is 5, expected a divisor of the world, 8",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      static_cast<void>(measure(concentric<3>{}, 8)),
      "orrery: topology concentric<3,1> over 8 ranks needs a world that A*B divides: choose A and B from "
      "the world's divisors, or ring",
      std::invalid_argument);
}

TEST_CASE("slots: what has to be held beside one's own shard") {
  const auto slots = [](auto topology, int world, pass p = pass::forward) {
    const traffic_report report = measure(topology, world, p);
    for (const rank_traffic& mine : report.ranks) CHECK(mine.slots == report.ranks[0].slots);
    return report.ranks[0].slots;
  };
  using of = std::array<int, 4>;  // query operands and partials, key operands and partials
  CHECK(slots(ring{}, 1) == of{0, 0, 0, 0});
  CHECK(slots(ring{}, 2) == of{0, 0, 1, 0});
  for (const int world : {3, 4, 5, 8, 17, 64, 128}) {
    CHECK(slots(ring{}, world) == of{0, 0, 2, 0});
    CHECK(measure(ring{}, world).peak_slots == 2);
  }
  for (const int world : {4, 5, 8, 17, 64}) {
    const of keys = slots(ring{}, world, pass::circulate_keys);
    const of queries = slots(ring{}, world, pass::circulate_queries);
    CHECK(keys[2] == 2);
    CHECK(keys[3] == 3);  // going, coming, and the one that is being added to
    CHECK((queries == of{keys[2], keys[3], 0, 0}));
  }
  for (const int world : {2, 8, 13}) CHECK(slots(all_gather{}, world) == of{0, 0, world - 1, 0});
  // Partials: those that go to the row's mates, and those that come from them at the same time.
  CHECK(slots(concentric<4>{}, 16) == of{3, 6, 2, 0});
  CHECK(slots(concentric<4>{}, 8) == of{3, 6, 1, 0});
  CHECK(slots(concentric<2, 3>{}, 18) == of{1, 2, 6, 0});
  CHECK(slots(concentric<2, 3>{}, 12) == of{1, 2, 5, 0});
  CHECK(slots(concentric<4, 4>{}, 16) == of{3, 6, 3, 0});
  for (const int world : {8, 16, 24}) CHECK(slots(double_ring<4>{}, world)[2] <= 4);
  CHECK(slots(double_ring<4>{}, 24)[2] == 4);
  CHECK(slots(ulysses{}, 6)[0] == 5);
  CHECK(slots(ulysses{}, 6)[1] == 10);
  CHECK(slots(ulysses{}, 6)[2] == 5);
}

TEST_CASE("the figures of a report are those of its busiest rank, whichever it is") {
  // One of three ranks sends its keys twice to the next one, which alone computes and needs slots.
  for (int busiest = 0; busiest < 3; ++busiest) {
    CAPTURE(busiest);
    const int receiver = (busiest + 1) % 3;
    list<program> all(3);
    for (int rank = 0; rank < 3; ++rank) {
      builder schedule{rank, 3};
      for (int message = 0; message < 2; ++message) {
        schedule.begin_exchange(rank == busiest ? receiver : no_rank, rank == receiver ? busiest : no_rank);
        schedule.send(key(busiest));
        schedule.receive(key(busiest));
      }
      schedule.next_step();
      if (rank == receiver) schedule.interact(query(rank), key(busiest));
      all[rank] = schedule;
      finish(all[rank]);
    }
    const traffic_report report = traffic(all, weights_of(pass::forward));
    CHECK(report.sent == 2 * 2);
    CHECK(report.messages_sent == 2);
    CHECK(report.steps == 2);
    CHECK(report.peak_slots == 2);
    CHECK(report.between[busiest * 3 + receiver] == 2 * 2);
    for (int rank = 0; rank < 3; ++rank) {
      const rank_traffic& mine = report.ranks[rank];
      CHECK(mine.messages_sent == (rank == busiest ? 2 : 0));
      CHECK(mine.blocks_sent == std::array<std::int64_t, 4>{0, 0, rank == busiest ? 2 : 0, 0});
      CHECK(mine.slots == std::array<int, 4>{0, 0, rank == receiver ? 2 : 0, 0});
      CHECK(mine.steps == (rank == receiver ? 2 : rank == busiest ? 1 : 0));
      CHECK(mine.tiles == (rank == receiver ? 1 : 0));
      CHECK(mine.pairs == (rank == receiver ? 1 : 0));
    }
    CHECK(report.node_egress(1) == 2 * 2);
    CHECK(report.node_egress(3) == 0);
  }
}

TEST_CASE("a report can be had at compile time") {
  static_assert(traffic(ring{}, 8).sent == 14);
  static_assert(traffic(concentric<2>{}, 8).node_egress(4) == 2 * 2 * 3);
  CHECK(measure(ring{}, 8).messages_sent == 7);
}

}  // namespace traffic_test
