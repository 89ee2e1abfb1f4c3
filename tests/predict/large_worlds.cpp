// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Ranks that do the same at the same time are simulated once: what comes out is what the whole world's simulation says.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/predict/detail/attention_schedule.hpp"
#include "orrery/predict/detail/program_simulation.hpp"
#include "orrery/predict/detail/rank_orbits.hpp"
#include "orrery/predict/machine_text.hpp"
#include "orrery/predict/simulate.hpp"
#include "orrery/schedule/symmetric_grid.hpp"
#include "orrery/topology/named.hpp"
#include "orrery/topology/placed.hpp"

#include "support/refusal.hpp"

namespace large_worlds_test {

using orrery::any_topology;
using orrery::machine;
using orrery::pass;
using orrery::prediction;
using orrery::simulate;
using orrery::topology_named;
using orrery::detail::rank_orbits;

namespace {

/// Groups of these sizes, from the inside out, and one more level around them.
machine grouped(const std::vector<int>& counts, bool shared_cards, bool full_duplex = true, int ports = 1) {
  machine m{.name = "grouped", .device = {.name = "device", .forward = {.full = 2e14, .causal = 1.5e14, .units = 100}}};
  m.device.memory = 2e12;
  m.device.call = 1e-5;
  m.device.message = 1e-6;
  m.device.slowed = 0.25;
  m.device.forward.merge = 8;
  double bandwidth = 4e11, latency = 2e-6;
  const char* const names[] = {"node", "rack", "row", "hall"};
  for (std::size_t l = 0; l <= counts.size(); ++l) {
    machine::level one{
        .name = names[l], .count = l < counts.size() ? counts[l] : 4096, .bandwidth = bandwidth, .latency = latency};
    if (l > 0 && shared_cards) one.shared_by = "node";
    one.full_duplex = full_duplex;
    one.ports = shared_cards ? ports : 1;
    m.levels.push_back(one);
    bandwidth /= 7;
    latency *= 3;
  }
  return m;
}

std::vector<machine> machines() {
  machine bus = grouped({4}, false);
  bus.levels[0].shared_by = "node";
  return {grouped({}, false),
          grouped({2}, false),
          grouped({4}, true),
          grouped({4}, false, false),
          bus,
          grouped({3}, true),
          grouped({8}, true, true, 2),
          grouped({2}, true, false),
          grouped({6}, false),
          grouped({2, 3}, true),
          grouped({2, 2, 2}, false)};
}

const char* const topologies[] = {"ring",
                                  "all_gather",
                                  "ulysses",
                                  "double_ring<2>",
                                  "double_ring<4>",
                                  "double_ring<6>",
                                  "concentric<2>",
                                  "concentric<3>",
                                  "concentric<4,2>",
                                  "concentric<2,4>",
                                  "concentric<6,2>",
                                  "usp<2>",
                                  "usp<4>",
                                  "usp<12>",
                                  "all_to_all<3,all_gather>",
                                  "all_to_all<2,concentric<2,2>>",
                                  "all_to_all<2,all_to_all<2,double_ring<2>>>"};

struct compared {
  prediction folded, whole;
  int orbits;
};

/// Simulates both: with a timeline, rank by rank.
template <class Mask>
compared both(const any_topology& t, int world, const machine& m, const orrery::attention_shape& shape,
              const Mask& mask, orrery::simulation_options options) {
  compared found;
  const orrery::zigzag layout;
  const auto timed =
      orrery::detail::time_attention(t, world, m, shape, mask, orrery::detail::layout_source{layout}, options, true);
  found.orbits = timed.orbits.count();
  found.folded = simulate(t, world, m, shape, mask, layout, options);
  options.with_timeline = true;
  found.whole = simulate(t, world, m, shape, mask, layout, options);
  return found;
}

bool is_close(double a, double b) { return std::abs(a - b) <= 1e-9 * (std::max)(std::abs(a), std::abs(b)); }

void expect_equal(const compared& found) {
  const prediction &a = found.folded, &b = found.whole;
  CHECK(a.world == b.world);
  CHECK(a.machine == b.machine);
  CHECK(is_close(a.seconds, b.seconds));
  CHECK(is_close(a.bound_compute, b.bound_compute));
  REQUIRE(a.ranks.size() == b.ranks.size());
  std::size_t different = 0;
  for (std::size_t r = 0; r < a.ranks.size(); ++r) {
    const prediction::rank_times &x = a.ranks[r], &y = b.ranks[r];
    const bool same = is_close(x.tiles, y.tiles) && is_close(x.merges, y.merges) && is_close(x.host, y.host) &&
                      std::abs(x.waits - y.waits) <= 1e-9 * y.end && is_close(x.end, y.end) &&
                      x.peak_bytes == y.peak_bytes && std::abs(x.longest_wait - y.longest_wait) <= 1e-9 * y.end &&
                      (x.waits_for >= 0) == (y.waits_for >= 0) && x.waits_for < a.world &&
                      x.waits_for != static_cast<int>(r);
    different += same ? 0 : 1;
  }
  CHECK(different == 0);
  REQUIRE(a.levels.size() == b.levels.size());
  for (std::size_t l = 0; l < a.levels.size(); ++l) {
    CAPTURE(l);
    CHECK(a.levels[l].bytes == b.levels[l].bytes);
    CHECK(a.levels[l].messages == b.levels[l].messages);
    CHECK(is_close(a.levels[l].busiest_port, b.levels[l].busiest_port));
    CHECK(a.levels[l].port == b.levels[l].port);
  }
}

orrery::attention_shape even_shape(int world) {
  return {.batch = 2, .length = 64 * world, .query_heads = 2 * world, .key_heads = 2 * world, .head_dim = 64};
}

std::string refusal_of_world(const char* topology, int world, const auto& mask) {
  return refusal_of([&] {
    (void)simulate(topology_named(topology), world, grouped({8}, true),
                   {.length = 64 * world, .query_heads = 8, .head_dim = 64}, mask, orrery::zigzag{});
  });
}

}  // namespace

TEST_CASE("representatives take what all ranks take, on every machine") {
  int folded = 0;
  for (const machine& m : machines()) {
    for (const int world : {1, 2, 6, 12, 24}) {
      if (!refusal_of([&] { m.check_world(world); }).empty()) continue;
      for (const char* const name : topologies) {
        const any_topology t = topology_named(name);
        for (const pass p : {pass::forward, pass::circulate_keys, pass::circulate_queries}) {
          if (t.unsupported_reason(world, p) != nullptr) continue;
          // The many machines in few worlds.
          if (world == 24 && p == pass::circulate_queries) continue;
          CAPTURE(m.levels[0].count);
          CAPTURE(world);
          CAPTURE(t.name());
          CAPTURE(std::string{orrery::name_of(p)});
          const compared found = both(t, world, m, even_shape(world), orrery::full{}, {.pass = p});
          expect_equal(found);
          if (found.orbits < world) ++folded;
        }
      }
    }
  }
  CHECK(folded > 500);
}

TEST_CASE("placed rings, and masks that every tile meets whole") {
  const machine m = grouped({2}, true);
  for (const char* const name : {"concentric<4>", "concentric<2,3>", "usp<4>", "double_ring<6>"}) {
    const any_topology t = orrery::placed{topology_named(name), orrery::rings_in_nodes{}};
    CAPTURE(t.name());
    const compared found = both(t, 24, m, even_shape(24), orrery::full{}, {.pass = pass::circulate_keys});
    expect_equal(found);
    CHECK(found.orbits < 24);
    CHECK(
        both(orrery::placed{topology_named(name), orrery::teams_in_nodes{}}, 24, m, even_shape(24), orrery::full{}, {})
            .orbits < 24);
  }
  // All shards in one tile: a causal mask hides as much on every rank.
  const compared causal = both(orrery::ulysses{}, 24, m, even_shape(24), orrery::causal{}, {});
  expect_equal(causal);
  CHECK(causal.orbits == 2);
}

TEST_CASE("ranks that are not alike are simulated one by one") {
  const machine m = grouped({4}, true);
  const orrery::attention_shape even = even_shape(12);
  CHECK(both(orrery::ring{}, 12, m, even, orrery::full{}, {}).orbits == 4);
  CHECK(both(orrery::ring{}, 12, m, even, orrery::causal{}, {}).orbits == 12);  // tiles before and after one's own
  CHECK(both(orrery::wallfacer<2>{}, 12, m, even, orrery::full{}, {}).orbits == 12);
  orrery::attention_shape uneven = even;
  uneven.length += 1;
  CHECK(both(orrery::ring{}, 12, m, uneven, orrery::full{}, {}).orbits == 12);
  uneven = even;
  uneven.query_heads = 14;
  uneven.key_heads = 14;
  CHECK(both(orrery::ulysses{}, 12, m, uneven, orrery::full{}, {}).orbits == 12);
  machine slow = m;
  slow.speed = {1, 1, 0.5};
  CHECK(both(orrery::ring{}, 12, slow, even, orrery::full{}, {}).orbits == 12);
  expect_equal(both(orrery::ring{}, 12, slow, even, orrery::full{}, {}));
}

TEST_CASE("orbits of translations that map nodes to nodes") {
  const auto count = [](int world, const std::vector<int>& extents, const std::vector<int>& groups) {
    orrery::schedule::list<int> grid;
    for (const int one : extents) grid.push_back(one);
    const rank_orbits orbits{world, grid, grouped(groups, false)};
    // Representatives are the first of their orbits, and moving there and back is the identity.
    std::vector<int> sizes(static_cast<std::size_t>(orbits.count()));
    for (int rank = 0; rank < world; ++rank) {
      const int orbit = orbits.orbit_of(rank);
      const int first = orbits.representative(orbit);
      CHECK(first <= rank);
      CHECK(orbits.orbit_of(first) == orbit);
      CHECK(orbits.moved_with(rank, rank) == first);
      CHECK(orbits.moved_back(rank, first) == rank);
      CHECK(orbits.moved_back(rank, orbits.moved_with(rank, (rank * 7 + 3) % world)) == (rank * 7 + 3) % world);
      ++sizes[static_cast<std::size_t>(orbit)];
    }
    for (const int size : sizes) CHECK(size == orbits.size());
    return orbits.count();
  };
  CHECK(count(24, {24}, {}) == 1);
  CHECK(count(24, {24}, {4}) == 4);
  CHECK(count(24, {24}, {2, 3}) == 6);
  CHECK(count(24, {2, 12}, {4}) == 2);    // pairs inside nodes, nodes of two pairs
  CHECK(count(24, {8, 3}, {4}) == 4);     // two nodes a row
  CHECK(count(24, {2, 2, 6}, {4}) == 1);  // stations are nodes
  CHECK(count(24, {12, 2}, {8}) == 24);   // one and a half nodes a row
  CHECK(count(24, {5, 5}, {}) == 24);     // not a grid of 24
  CHECK(count(24, {}, {}) == 24);
  CHECK(count(1, {1}, {}) == 1);
}

TEST_CASE("grids that topologies promise are symmetric") {
  for (const int world : {1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 36}) {
    for (const char* const name : topologies) {
      for (const bool is_placed : {false, true}) {
        any_topology t = topology_named(name);
        if (is_placed && std::string{name} != "ring" && std::string{name} != "all_gather")
          t = orrery::placed{topology_named(name), orrery::rings_in_nodes{}};
        for (const pass p : {pass::forward, pass::circulate_keys, pass::circulate_queries}) {
          if (t.unsupported_reason(world, p) != nullptr) continue;
          CAPTURE(world);
          CAPTURE(t.name());
          CHECK(orrery::schedule::is_symmetric(programs_of(t, world, p), t.symmetric_grid(world)));
        }
      }
    }
  }
  // What is not is told.
  const auto grid = [](int a, int b) {
    orrery::schedule::list<int> extents;
    extents.push_back(a);
    if (b > 0) extents.push_back(b);
    return extents;
  };
  using orrery::schedule::is_symmetric;
  CHECK(is_symmetric(programs_of(orrery::ring{}, 12), grid(12, 0)));
  CHECK_FALSE(is_symmetric(programs_of(orrery::ring{}, 12), grid(4, 3)));
  CHECK_FALSE(is_symmetric(programs_of(orrery::ring{}, 12), grid(6, 0)));
  CHECK_FALSE(is_symmetric(programs_of(orrery::ring{}, 12), {}));
  CHECK_FALSE(is_symmetric(programs_of(orrery::double_ring<4>{}, 12), grid(12, 0)));
  CHECK_FALSE(is_symmetric(programs_of(orrery::wallfacer<2>{}, 16), grid(2, 8)));
  CHECK_FALSE(is_symmetric(programs_of(orrery::half_ring{}, 12), grid(12, 0)));
  orrery::schedule::list<orrery::program> changed = programs_of(orrery::ring{}, 12);
  changed[3].exchanges[0].to = 5;
  CHECK_FALSE(is_symmetric(changed, grid(12, 0)));
  changed = programs_of(orrery::ring{}, 12);
  changed[3].keys[2].block.shard = 7;
  CHECK_FALSE(is_symmetric(changed, grid(12, 0)));
  CHECK(any_topology{orrery::wallfacer<2>{}}.symmetric_grid(16).empty());
}

TEST_CASE("65536 ranks") {
  const machine m = grouped({8, 32}, false);
  orrery::attention_shape shape{.length = 1 << 22, .query_heads = 64, .key_heads = 64, .head_dim = 128};
  // Each of 256 rows of 256 computes all of its columns: 2 * (255 + 255) units of 64 tokens leave a rank.
  const prediction found = simulate(topology_named("concentric<256>"), 1 << 16, m, shape);
  CHECK(found.ranks.size() == 65536);
  const std::int64_t unit = std::int64_t{64} * 64 * 128 * 2, sums = std::int64_t{64} * 64 * 129 * 4;
  std::int64_t bytes = 0, messages = 0;
  for (const prediction::level_use& one : found.levels) {
    bytes += one.bytes;
    messages += one.messages;
  }
  CHECK(bytes == std::int64_t{65536} * (255 * unit + 255 * 2 * unit + 255 * sums));
  CHECK(messages == std::int64_t{65536} * (255 + 255 + 255));
  CHECK(found.seconds >= found.bound_compute);
  CHECK(found.seconds >= found.bound_communication());
  CHECK(found.ranks[65535].end == found.ranks[0].end);
  // Time grows with the world as at sizes that are simulated rank by rank, too.
  shape.length = std::int64_t{64} << 16;
  CHECK(simulate(topology_named("usp<8>"), 1 << 16, m, shape).ranks.size() == 65536);
}

TEST_CASE("worlds that are too large to simulate rank by rank are refused") {
  const auto contains = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  for (const char* const name : {"ring", "wallfacer<2>", "half_ring"}) {
    CAPTURE(name);
    const std::string message = refusal_of_world(name, 1 << 15, orrery::causal{});
    CHECK(contains(message, "over 32768 ranks names about"));
    CHECK(contains(message, "larger worlds need a topology with a symmetric_grid, a mask that hides nothing"));
  }
  CHECK(refusal_of_world("double_ring<64>", 1 << 12, orrery::full{}).empty());
}

}  // namespace large_worlds_test
