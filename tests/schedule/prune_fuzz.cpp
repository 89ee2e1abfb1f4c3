// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Random relations × topologies × passes × worlds × chunks: each pruned schedule is proven, moves no more than before,
// is not pruned any further by a second time, and, of a sample, gives the oracle's numbers. The environment may ask for
// more: ORRERY_FUZZ_CASES cases, those of ORRERY_FUZZ_SEED.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/prune.hpp"
#include "orrery/schedule/refine.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/verify/verify.hpp"

#include "schedule/random_routes.hpp"
#include "support/any.hpp"
#include "support/finished.hpp"
#include "support/planned.hpp"
#include "verify/every_topology.hpp"

using orrery::pass;
using orrery::schedule::list;
using orrery::schedule::relation;
using random_routes::below;

namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

/// A relation as masks make them, or as none would.
relation random_relation(std::mt19937_64& random, int ranks, int chunks) {
  const int world = ranks * chunks;
  const int kind = below(random, 6);
  const int a = below(random, world + 1);
  const int b = below(random, world + 1) - world / 2;
  const int of_8 = below(random, 9);
  return relation::of(
      [&](int query, int key) {
        switch (kind) {
          case 0:
            return key <= query + b;
          case 1:
            return key <= query && key + a >= query;
          case 2:
            return (query < a) == (key < a) && key <= query;  // two documents
          case 3:
            return below(random, 8) < of_8;
          case 4:
            return key == a % world || query == key;
          default:
            return query % 3 != 1 && key != a;  // whole rows and columns are missing
        }
      },
      ranks, chunks);
}

int longest(const list<orrery::program>& all) {
  int steps = 0;
  for (const orrery::program& p : all) steps = (std::max)(steps, p.steps.size());
  return steps;
}

/// Does no rank, and no node of any size, send more of any kind than before?
bool moves_no_more(const list<orrery::program>& before, const list<orrery::program>& after) {
  const auto weights = orrery::weights_of(before[0].pass);
  const orrery::traffic_report old = orrery::traffic(before, weights);
  const orrery::traffic_report now = orrery::traffic(after, weights);
  bool no_more = true;
  for (int rank = 0; rank < old.world; ++rank) {
    for (unsigned kind = 0; kind < 4; ++kind)
      no_more = no_more && now.ranks[rank].blocks_sent[kind] <= old.ranks[rank].blocks_sent[kind];
  }
  for (int node = 1; node < old.world; ++node)
    if (old.world % node == 0) no_more = no_more && now.node_egress(node) <= old.node_egress(node) + 1e-9;
  return no_more && longest(after) <= longest(before);
}

}  // namespace

TEST_CASE("random relations, topologies, passes and worlds") {
  const std::uint64_t cases = from_environment("ORRERY_FUZZ_CASES", 2000);
  const std::uint64_t seed = from_environment("ORRERY_FUZZ_SEED", 1);
  const std::uint64_t between_runs = 50;
  std::mt19937_64 random{seed};
  std::vector<orrery::any_topology> topologies = any::topologies();
  topologies.emplace_back(orrery::all_to_all<3, orrery::double_ring<2>>{});
  topologies.emplace_back(topologies::my_staggered_gather{});
  topologies.emplace_back(orrery::half_ring{});
  std::uint64_t pruned_something = 0;
  std::uint64_t took_shortcuts = 0;
  std::uint64_t ran = 0;
  for (std::uint64_t i = 0; i < cases;) {
    const int choice = below(random, static_cast<int>(topologies.size()) + 6);
    const orrery::any_topology topology = choice < static_cast<int>(topologies.size())
                                              ? topologies[static_cast<std::size_t>(choice)]
                                              : orrery::any_topology{random_routes::topology{random()}};
    const int world = 1 + below(random, choice < static_cast<int>(topologies.size()) ? 18 : 9);
    const pass p = topologies::every_pass[below(random, 3)];
    const pass other = p == pass::forward ? pass::circulate_keys : pass::forward;
    const int chunks = below(random, 3) == 0 ? 2 + below(random, 2) : 1;
    relation visible = random_relation(random, world, chunks);
    if (topology.unsupported_reason(world, p) != nullptr) continue;
    ++i;
    if (topology.pairs_left_out() != nullptr)
      visible = relation::of([&](int q, int k) { return k <= q && visible(q, k); }, world, chunks);
    INFO("case ", i, ": ", topology.name(), " over ", world, " in ", chunks, " chunks, ",
         std::string{orrery::name_of(p)});
    const auto whole = orrery::detail::unallocated_programs(topology, world, p);
    const auto unpruned = refine(whole, chunks);
    REQUIRE(orrery::verify(finished(unpruned), visible).ok());
    const auto pruned = prune(unpruned, visible);
    const auto programs = finished(pruned);
    const orrery::verdict v = orrery::verify(programs, visible);
    INFO(v.message());
    INFO(orrery::draw_grid(finished(unpruned)));
    INFO(orrery::draw_grid(programs));
    REQUIRE(v.ok());
    REQUIRE(moves_no_more(finished(unpruned), programs));
    REQUIRE(prune(pruned, visible) == pruned);
    const auto without = finished(prune(unpruned, visible, orrery::schedule::shortcuts::no));
    REQUIRE(orrery::verify(without, visible).ok());
    REQUIRE(moves_no_more(without, programs));
    if (chunks > 1) {  // as operators do it: whole shards first
      const auto in_turn = prune(refine(prune(whole, visible.coarse()), chunks), visible);
      REQUIRE(orrery::verify(finished(in_turn), visible).ok());
      REQUIRE(moves_no_more(finished(unpruned), finished(in_turn)));
      REQUIRE(prune(in_turn, visible) == in_turn);
    }
    pruned_something += pruned == unpruned ? 0U : 1U;
    took_shortcuts += programs == without ? 0U : 1U;

    if (i % between_runs != 0 || topology.unsupported_reason(world, other) != nullptr) continue;
    const auto more =
        finished(prune(refine(orrery::detail::unallocated_programs(topology, world, other), chunks), visible));
    const std::int64_t length = 1 + below(random, 40);  // uneven, some shards empty
    const orrery::attention_shape shape{.length = length,
                                        .query_heads = programs[0].slices * (1 + below(random, 2)),
                                        .key_heads = 1,
                                        .head_dim = 4,
                                        .key_length = 1 + below(random, 40)};
    const planned::shard_mask mask{visible, length, *shape.key_length};
    ++ran;
    REQUIRE(planned::failures<orrery::flash<double>>(p == pass::forward ? programs : more,
                                                     p == pass::forward ? more : programs, shape, mask,
                                                     planned::contiguous_chunks{chunks}, random()) == "");
  }
  CHECK(pruned_something > cases / 2);
  CHECK(took_shortcuts > cases / 5);
  CHECK(ran > cases / between_runs / 2);
}
