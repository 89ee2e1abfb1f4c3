// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/topology/half_ring.hpp"

#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/named.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/verify/verify.hpp"

#include "support/conformance.hpp"
#include "support/planned.hpp"
#include "verify/every_topology.hpp"

using orrery::half_ring;
using orrery::pass;

static_assert(orrery::topology<half_ring> && orrery::topology_with_backward<half_ring>);
static_assert(orrery::verify(half_ring{}, 16, pass::circulate_queries, orrery::below_diagonal{}));

namespace {

/// Its forward alone: the backward is derived.
struct forward_of_half_ring {
  static constexpr orrery::program program(int rank, int world) { return half_ring::program(rank, world); }
};

double average(const orrery::traffic_report& report) { return report.total / report.world; }

}  // namespace

TEST_CASE("the half ring is right for every world") {
  for (int world = 1; world <= 66; ++world) {
    for (const pass p : topologies::every_pass) {
      CAPTURE(world);
      const orrery::verdict v = orrery::verify(half_ring{}, world, p, orrery::below_diagonal{});
      INFO(v.message());
      INFO(orrery::draw_grid(orrery::programs_of(half_ring{}, world, p)));
      CHECK(v.ok());
    }
    CHECK(orrery::verify(forward_of_half_ring{}, world, pass::circulate_keys, orrery::below_diagonal{}).ok());
  }
}

TEST_CASE("the half ring computes each pair below the diagonal once, and no other, alike on all ranks") {
  for (const int world : {5, 16}) {
    std::int64_t pairs = 0;
    const auto report = orrery::traffic(half_ring{}, world);
    for (const orrery::rank_traffic& rank : report.ranks) {
      pairs += rank.pairs;
      CHECK(rank.pairs == rank.tiles);
      CHECK((rank.tiles == world / 2 + 1 || (world % 2 == 0 && rank.tiles == world / 2)));
    }
    CHECK(pairs == world * (world + 1) / 2);
  }
}

TEST_CASE("the half ring's traffic is what its header says") {
  const auto forward = orrery::traffic(half_ring{}, 16);
  CHECK(average(forward) == 15);
  CHECK(forward.sent == 17);
  CHECK(forward.node_egress(4) == 19);
  CHECK(forward.steps == 9);
  const auto backward = orrery::traffic(half_ring{}, 16, pass::circulate_keys);
  CHECK(average(backward) == 28.25);
  CHECK(backward.sent == 34);
  CHECK(backward.node_egress(4) == 44);
  CHECK(average(orrery::traffic(half_ring{}, 16, pass::circulate_queries)) == 28.25);
  const auto derived = orrery::traffic(forward_of_half_ring{}, 16, pass::circulate_keys);
  CHECK(average(derived) == 28.25);
  CHECK(derived.sent == 34);
  CHECK(orrery::traffic(half_ring{}, 64).sent == 65);
  CHECK(orrery::traffic(half_ring{}, 64).node_egress(8) == 72);
}

TEST_CASE("the half ring has a name") {
  CHECK(orrery::topology_named("half_ring").name() == "half_ring");
  CHECK(orrery::topology_named("all_to_all<2,half_ring>").name() == "all_to_all<2,half_ring>");
}

TEST_CASE("causal attention over a half ring") {
  std::uint64_t seed = 0;
  for (const int world : {1, 2, 3, 4, 5, 8, 16}) {
    for (const pass p : {pass::circulate_keys, pass::circulate_queries}) {
      for (const std::int64_t offset : {0, -30}) {
        CAPTURE(world);
        CAPTURE(offset);
        CHECK(planned::failures<orrery::flash<double>>(
                  orrery::programs_of(half_ring{}, world), orrery::programs_of(half_ring{}, world, p),
                  {.length = 83, .query_heads = 4, .key_heads = 2, .head_dim = 8, .value_dim = 4},
                  orrery::causal{offset}, orrery::contiguous{}, ++seed) == "");
      }
    }
    CHECK(planned::failures<orrery::reference<float>>(
              orrery::programs_of(half_ring{}, world),
              orrery::programs_of(forward_of_half_ring{}, world, pass::circulate_keys),
              {.batch = 2, .length = 29, .query_heads = 2, .head_dim = 4}, orrery::causal{}, orrery::contiguous{},
              ++seed) == "");
  }
}

TEST_CASE("an operator over a half ring is right under a causal mask and refuses others") {
  const auto on_threads = [](int ranks, auto&& body) { orrery::threads::run(ranks, body); };
  const orrery::attention_shape shape{.length = 53, .query_heads = 4, .key_heads = 2, .head_dim = 4};
  const auto failures = [&](int world, const auto& mask, const conformance::any_layout& layout) {
    return conformance::failures<orrery::any_topology, orrery::flash<double>, orrery::threads::world>(
        on_threads, world, shape, mask, layout, static_cast<std::uint64_t>(world), orrery::any_topology{half_ring{}});
  };
  for (const int world : {1, 2, 5, 8}) {
    CAPTURE(world);
    CHECK(failures(world, orrery::causal{}, orrery::contiguous{}) == "");
    CHECK(failures(world, orrery::causal{-20}, orrery::contiguous{}) == "");
  }
  CHECK(failures(1, orrery::full{}, orrery::contiguous{}) == "");
  const std::string why = ": the topology computes only pairs whose key shard is not after the query shard";
  const std::string of_full = failures(8, orrery::full{}, orrery::contiguous{});
  CHECK(of_full.find("query shard 0 never meets key shard 1" + why) != std::string::npos);
  const std::string of_zigzag = failures(8, orrery::causal{}, orrery::zigzag{});
  CHECK(of_zigzag.find("chunk q0.1 never meets chunk k1.0" + why) != std::string::npos);
}
