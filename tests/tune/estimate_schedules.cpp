// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Quick estimates of schedules: equal to simulations where ranks are alike, and near them where work is balanced.
#include "orrery/tune/estimate_schedules.hpp"

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/predict/machine_text.hpp"

#include "support/refusal.hpp"

namespace estimate_schedules_test {

using orrery::estimate_schedules;
using orrery::recommend;

namespace {

const orrery::attention_shape shape{.length = 1 << 18, .query_heads = 16, .key_heads = 4, .head_dim = 128};

orrery::machine cluster() {
  orrery::machine m = orrery::machine_named("h100");
  m.levels[0].count = 4;
  m.levels[1].count = 4;
  return m;
}

}  // namespace

TEST_CASE("without a mask estimates are simulations") {
  const auto quick = estimate_schedules(16, cluster(), shape);
  const auto found = recommend(16, cluster(), shape);
  REQUIRE(quick.size() > 10);
  std::size_t compared = 0;
  for (const orrery::schedule_estimate& one : quick) {
    for (const orrery::recommendation::entry& exact : found.ranked) {
      if (!(exact.topology == one.topology) || exact.circulate != one.circulate) continue;
      CAPTURE(one.topology.name());
      CHECK(std::abs(one.seconds / exact.seconds() - 1) < 1e-9);
      CHECK(one.peak_bytes == exact.peak_bytes());
      ++compared;
    }
  }
  CHECK(compared >= quick.size() - 2);  // equal values of placed topologies may be met twice, or not
  for (std::size_t i = 1; i < quick.size(); ++i) CHECK(quick[i - 1].seconds <= quick[i].seconds);
}

TEST_CASE("balanced work under a causal mask is estimated within a few per cent") {
  const auto quick = estimate_schedules(16, cluster(), shape, orrery::causal{});
  std::vector<orrery::any_topology> few;
  for (const auto& one : quick) {
    if (few.size() < 5) few.push_back(one.topology);
  }
  const auto all = recommend(16, cluster(), shape, orrery::causal{}, orrery::zigzag{});
  const auto best = recommend(16, cluster(), shape, orrery::causal{}, orrery::zigzag{}, {}, few);
  // Of five, simulated, the best is within 1 % of the best of all.
  double fastest = all.ranked[0].seconds(), found = best.ranked[0].seconds();
  for (const auto& one : all.ranked) fastest = one.seconds() < fastest ? one.seconds() : fastest;
  for (const auto& one : best.ranked) found = one.seconds() < found ? one.seconds() : found;
  CHECK(found <= 1.01 * fastest);
  CHECK(std::abs(quick[0].seconds / found - 1) < 0.03);
}

TEST_CASE("what cannot be used is left out, and what nobody can do is refused") {
  orrery::attention_shape few_heads = shape;
  few_heads.query_heads = 2;
  few_heads.key_heads = 2;
  for (const auto& one : estimate_schedules(16, cluster(), few_heads)) CHECK(one.topology.name() != "ulysses");
  orrery::machine little = cluster();
  little.device.capacity = 1 << 20;
  CHECK(estimate_schedules(16, little, shape).empty());
  orrery::attention_shape forward = shape;
  forward.forward_only = true;
  for (const auto& one : estimate_schedules(16, cluster(), forward)) CHECK(one.circulate == orrery::pass::forward);
  CHECK(refusal_of([] { (void)estimate_schedules(17, cluster(), shape); }).find("world is 17") != std::string::npos);
  CHECK(refusal_of([] { (void)estimate_schedules(16, cluster(), {.length = 0, .head_dim = 8}); }).find("length is 0") !=
        std::string::npos);
  // A length that the world does not divide is rounded up.
  orrery::attention_shape odd = shape;
  odd.length -= 3;
  CHECK(estimate_schedules(16, cluster(), odd)[0].seconds == estimate_schedules(16, cluster(), shape)[0].seconds);
}

}  // namespace estimate_schedules_test
