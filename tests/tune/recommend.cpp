// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Which schedule a machine should run: order, ties, refusals and their reasons.
#include "orrery/tune/recommend.hpp"

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/predict/machine_text.hpp"
#include "orrery/topology/half_ring.hpp"

#include "support/refusal.hpp"
#include "support/relative.hpp"
#include "support/topologies.hpp"

using orrery::any_topology;
using orrery::machine;
using orrery::pass;
using orrery::recommend;
using orrery::recommendation;

namespace {

/// Two nodes of 8 that share a card of this rate.
machine cluster(const char* card) {
  return orrery::read_machine(std::string{"machine 2 nodes of 8\nlike h100\nlevel cluster 2 nodes "} + card +
                              " 20 us shared by node\n");
}

constexpr orrery::attention_shape shape{.length = 32768, .query_heads = 32, .key_heads = 8, .head_dim = 128};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

const recommendation::refused* refused(const recommendation& r, const std::string& name) {
  for (const recommendation::refused& one : r.others) {
    if (contains(one.name, name)) return &one;
  }
  return nullptr;
}

}  // namespace

TEST_CASE("schedules are ranked by time, and of equal ones that with the least memory is first") {
  const recommendation found = recommend(16, cluster("50 GB/s"), shape, orrery::causal{}, orrery::zigzag{});
  REQUIRE(found.ranked.size() > 40);
  double fastest = found.ranked[0].seconds();
  for (const recommendation::entry& one : found.ranked) fastest = one.seconds() < fastest ? one.seconds() : fastest;
  for (std::size_t i = 0; i < found.ranked.size(); ++i) {
    const recommendation::entry& one = found.ranked[i];
    CAPTURE(one.name());
    CHECK(one.forward.pass == pass::forward);
    CHECK(one.backward.pass == one.circulate);
    CHECK(one.circulate != pass::forward);
    CHECK(one.is_tie == (one.seconds() <= 1.03 * fastest));
    if (one.is_tie) CHECK(found.best().peak_bytes() <= one.peak_bytes());
    if (i > 1) CHECK(found.ranked[i - 1].seconds() <= one.seconds());
    const auto alone = simulate(one.topology, 16, cluster("50 GB/s"), shape, orrery::causal{}, orrery::zigzag{},
                                {.pass = one.circulate});
    if (i % 7 == 0) CHECK(alone.seconds == one.backward.seconds);
  }
}

TEST_CASE("what is best depends on the machine") {
  const auto best = [](const char* card, std::int64_t length = shape.length) {
    orrery::attention_shape s = shape;
    s.key_heads = 32;
    s.length = length;
    return recommend(16, cluster(card), s).best();
  };
  // Over a slow card, what a node sends decides: a ring sends 30 units over it, the best of them a fraction.
  const recommendation::entry slow = best("1 GB/s");
  const recommendation all = recommend(16, cluster("1 GB/s"), shape, orrery::full{}, orrery::contiguous{}, {},
                                       {orrery::ring{}, slow.topology});
  REQUIRE(all.ranked.size() == 4);
  CHECK(all.best().topology.name() == slow.topology.name());
  CHECK(slow.topology.name() != "ring");
  // Over fast ones and for long sequences, computing does, and all tie: the ring needs the least memory.
  CHECK(best("50 TB/s", 1 << 22).topology.name() == "ring");
}

TEST_CASE("behind the one with the least memory, the others stay in the order of their times") {
  orrery::attention_shape s = shape;
  s.key_heads = 32;
  s.length = 1 << 22;
  const recommendation found = recommend(16, cluster("50 TB/s"), s);
  for (std::size_t i = 2; i < found.ranked.size(); ++i) {
    CHECK(found.ranked[i - 1].seconds() <= found.ranked[i].seconds());
  }
}

namespace {

/// A topology whose backward has one policy.
struct queries_circulate {
  [[nodiscard]] static orrery::program program(int rank, int world, pass p) {
    return orrery::program_of(orrery::concentric<2>{}, rank, world, p);
  }
  [[nodiscard]] static const char* unsupported_reason(int, pass p) {
    return p == pass::circulate_keys ? "circulates queries" : nullptr;
  }
  [[nodiscard]] static std::string name() { return "queries_circulate"; }
};

}  // namespace

TEST_CASE("a schedule whose first backward is refused has a forward of its own") {
  const std::vector<any_topology> candidates{orrery::ring{}, queries_circulate{}};
  const recommendation found =
      recommend(8, cluster("50 GB/s"), shape, orrery::full{}, orrery::contiguous{}, {}, candidates);
  REQUIRE(found.ranked.size() == 3);
  CHECK(refused(found, "queries_circulate, circulate_keys") != nullptr);
  for (const recommendation::entry& one : found.ranked) {
    CHECK(one.forward.seconds == simulate(one.topology, 8, cluster("50 GB/s"), shape).seconds);
  }
}

TEST_CASE("schedules are proposed that can be used, and in nodes only where there are several") {
  for (const int world : {4, 8, 12, 16, 24}) {
    for (const any_topology& one : orrery::schedules_for(world, cluster("50 GB/s"))) {
      CAPTURE(world);
      CAPTURE(one.name());
      CHECK(one.unsupported_reason(world) == nullptr);
      if (world <= 8) CHECK_FALSE(contains(one.name(), "placed"));
    }
  }
}

TEST_CASE("your own topologies are candidates like others, and repeat nothing") {
  const std::vector<any_topology> candidates{my_ring{}, orrery::ring{}};
  const recommendation found =
      recommend(8, cluster("50 GB/s"), shape, orrery::full{}, orrery::contiguous{}, {}, candidates);
  REQUIRE(found.ranked.size() == 4);
  CHECK(found.ranked[0].forward.seconds == relative(found.ranked[3].forward.seconds));
  std::set<std::string> names;
  for (const any_topology& one : orrery::schedules_for(16, cluster("50 GB/s"))) {
    CAPTURE(one.name());
    CHECK(names.insert(one.name()).second);
  }
  CHECK(names.count("ulysses") == 1);
  CHECK(names.count("double_ring<8>") == 1);
  CHECK(names.count("placed<wallfacer<4>,rings_in_nodes>") == 1);
  CHECK(orrery::schedules_for(1, cluster("50 GB/s")).size() == 2);
}

TEST_CASE("what cannot be used is named with its reason") {
  orrery::attention_shape few = shape;
  few.query_heads = few.key_heads.emplace(4);
  const machine m = cluster("50 GB/s");
  const recommendation heads = recommend(16, m, few);
  REQUIRE(refused(heads, "ulysses") != nullptr);
  CHECK(contains(refused(heads, "ulysses")->reason, "cuts the heads into 16 slices, but query_heads is 4"));
  CHECK(contains(to_string(heads), "refused: "));

  const auto only = [&](const any_topology& t, int world, const machine& on, const auto& mask) {
    return recommend(world, on, shape, mask, orrery::contiguous{}, {}, {t});
  };
  const recommendation wallfacer = only(orrery::wallfacer<2>{}, 2, m, orrery::full{});
  CHECK(wallfacer.ranked.empty());
  CHECK(contains(refused(wallfacer, "wallfacer<2>")->reason, "topology wallfacer<2> over 2 ranks"));
  CHECK(only(orrery::half_ring{}, 8, m, orrery::causal{}).ranked.size() == 2);
  CHECK(
      contains(refused(only(orrery::half_ring{}, 8, m, orrery::full{}), "half_ring")->reason, "is wrong for 8 ranks"));

  machine narrow = m;
  narrow.device.capacity = 1000000;
  const recommendation none = only(orrery::ring{}, 8, narrow, orrery::full{});
  CHECK(none.ranked.empty());
  CHECK(contains(refused(none, "ring")->reason, "on a rank, and a device has 1.00 MB"));
  CHECK(contains(refusal_of([&] { (void)none.best(); }), "no schedule can be used; ring, circulate_keys: needs"));

  CHECK(contains(refusal_of([&] { (void)recommend(17, m, shape); }), "world is 17, but the machine has 16 ranks"));
  CHECK(contains(refusal_of([&] { (void)recommend(16, m, {.length = -1, .head_dim = 8}); }), "length is -1"));
}

TEST_CASE("inference has no backward") {
  orrery::attention_shape inference = shape;
  inference.forward_only = true;
  const recommendation found = recommend(8, cluster("50 GB/s"), inference);
  for (const recommendation::entry& one : found.ranked) {
    CHECK(one.circulate == pass::forward);
    CHECK(one.backward.seconds == 0);
    CHECK(one.seconds() == one.forward.seconds);
  }
  const std::string table = to_string(found, 3);
  CHECK(contains(table, "slower ones"));
  CHECK(contains(table, "; forward "));
}
