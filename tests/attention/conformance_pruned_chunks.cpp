// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Schedules whose shards are cut into chunks and pruned for what a mask shows of these: what they send, and their
// results against the oracle.
#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/layout/named.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/named.hpp"
#include "orrery/verify/detail/specialize.hpp"

#include "attention/matrix.hpp"
#include "support/planned.hpp"

using orrery::pass;
using orrery::detail::specialize;
using orrery::schedule::relation;

namespace {

/// Each query sees itself and the `reach` tokens before it.
struct back_window {
  std::int64_t reach = 9;
  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const {
    return key <= query && query - key <= reach;
  }
  [[nodiscard]] orrery::visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const {
    if (key_first > query_last || query_first - key_last > reach) return orrery::visibility::none;
    if (key_last <= query_first && query_last - key_first <= reach) return orrery::visibility::all;
    return orrery::visibility::some;
  }
  [[nodiscard]] std::string name() const { return "back_window " + std::to_string(reach); }
};

/// What the mask shows of chunks, by its intervals.
template <class Mask>
relation relation_of(const Mask& mask, const orrery::any_layout& layout, int world, std::int64_t length, int chunks) {
  const auto shards = planned::deal(layout, world, length, chunks);
  return relation::of(
      [&](int q, int k) {
        for (const orrery::segment& a : shards[q])
          for (const orrery::segment& b : shards[k])
            if (mask.classify(a.position(0), a.position(a.count - 1), b.position(0), b.position(b.count - 1)) !=
                orrery::visibility::none)
              return true;
        return false;
      },
      world, chunks);
}

/// Units that a rank sends on average.
template <class Topology, class Mask>
double average(const Topology& t, int world, pass p, const Mask& mask, const orrery::any_layout& layout,
               std::int64_t length, int chunks) {
  const auto made = specialize(t, world, p, relation_of(mask, layout, world, length, chunks));
  INFO(made.found.message());
  CHECK(made.found.ok());
  CHECK((made.outcome == orrery::detail::specialization::pruned));
  const auto weights = orrery::weights_of(p);
  double sum = 0;
  for (const auto& one : orrery::traffic(made.programs, weights).ranks) sum += one.sent;
  return sum / world;
}

template <class Mask>
void check(const orrery::any_topology& topology, int world, const Mask& mask, const orrery::any_layout& layout,
           int chunks, std::int64_t length, std::uint64_t& seed) {
  const orrery::attention_shape shape{
      .batch = 1, .length = length, .query_heads = 4, .key_heads = 2, .head_dim = 3, .value_dim = 5};
  const relation seen = planned::relation_of(mask, layout, world, length, length, chunks);
  for (const pass circulate : {pass::circulate_keys, pass::circulate_queries}) {
    if (orrery::unsupported_reason(topology, world, circulate) != nullptr) continue;
    const auto forward = specialize(topology, world, pass::forward, seen);
    const auto backward = specialize(topology, world, circulate, seen);
    INFO(topology.name(), " over ", world, ", ", layout.name(), " in ", chunks, ", ", mask.name(), ", ", length);
    INFO(forward.found.message(), "; ", backward.found.message());
    REQUIRE(forward.found.ok());
    REQUIRE(backward.found.ok());
    CHECK((forward.outcome == orrery::detail::specialization::pruned));
    CHECK(planned::failures<orrery::flash<double>>(forward.programs, backward.programs, shape, mask, layout, ++seed) ==
          "");
  }
}

}  // namespace

TEST_CASE("a causal zigzag ring in two chunks sends a quarter less") {
  const orrery::causal mask;
  const orrery::zigzag layout;
  CHECK(average(orrery::ring{}, 16, pass::forward, mask, layout, 1024, 2) == 22.5);
  CHECK(average(orrery::ring{}, 16, pass::circulate_keys, mask, layout, 1024, 2) == 45);
  CHECK(average(orrery::ring{}, 16, pass::circulate_queries, mask, layout, 1024, 2) == 33.75);
  CHECK(average(orrery::ring{}, 64, pass::forward, mask, layout, 4096, 2) == 94.5);
  CHECK(average(orrery::double_ring<4>{}, 16, pass::forward, mask, layout, 1024, 2) == 22.5);
  CHECK(average(orrery::ring{}, 16, pass::forward, mask, layout, 1024, 1) == 30);
}

TEST_CASE("a window's halo is exact to a chunk") {
  const back_window mask{4095};
  const std::int64_t length = 1 << 20;
  // Of shards of 16384 tokens each rank sends 4095 keys, or the chunks that have them.
  CHECK(average(orrery::ring{}, 64, pass::forward, mask, orrery::contiguous{}, length, 1) == 2.0 * 63 / 64);
  CHECK(average(orrery::ring{}, 64, pass::forward, mask, orrery::contiguous{}, length, 4) == 0.5 * 63 / 64);
  CHECK(average(orrery::ring{}, 64, pass::forward, mask, orrery::contiguous{}, length, 16) == 0.5 * 63 / 64);
  CHECK(average(orrery::ring{}, 64, pass::circulate_keys, mask, orrery::contiguous{}, length, 4) == 1.0 * 63 / 64);
}

TEST_CASE("pruned chunks compute what the oracle does") {
  std::uint64_t seed = 0;
  const orrery::any_layout layouts[] = {orrery::contiguous{}, orrery::zigzag{}, orrery::striped<3>{}};
  for (const char* name :
       {"ring", "double_ring<2>", "concentric<2,2>", "wallfacer<2>", "usp<2>", "all_gather", "ulysses"}) {
    const orrery::any_topology topology = orrery::topology_named(name);
    for (const orrery::any_layout& layout : layouts) {
      for (const int chunks : {2, 4}) {
        check(topology, 4, orrery::causal{}, layout, chunks, 37, seed);
        check(topology, 4, back_window{5}, layout, chunks, 37, seed);
      }
    }
  }
  for (const int world : {1, 2, 3, 5, 8}) {
    for (const std::int64_t length : {1, 7, 53}) {
      check(orrery::ring{}, world, orrery::causal{}, orrery::zigzag{}, 2, length, seed);
      check(orrery::ring{}, world, orrery::causal{-9}, orrery::contiguous{}, 3, length, seed);
      check(my_ring{}, world, back_window{3}, orrery::zigzag{}, 4, length, seed);
    }
  }
}

TEST_CASE("a world that is too large to prune is proven in chunks for every pair") {
  const relation seen = relation_of(orrery::causal{}, orrery::zigzag{}, 8, 64, 2);
  const auto made = specialize(orrery::ring{}, 8, pass::forward, seen, 200);
  CHECK((made.outcome == orrery::detail::specialization::too_many));
  CHECK(made.found.ok());
  CHECK(made.found.chunks == 2);
  CHECK(made.programs.empty());
  // As whole shards it is small enough, but not in its chunks.
  for (const std::int64_t ceiling : {made.block_names, std::int64_t{1} << 20}) {
    const auto cut = specialize(orrery::ring{}, 8, pass::forward, seen, ceiling);
    CHECK((cut.outcome == orrery::detail::specialization::too_many) == (ceiling == made.block_names));
    CHECK(cut.found.ok());
    CHECK(cut.found.chunks == 2);
  }
}
