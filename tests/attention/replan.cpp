// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// One operator whose mask, layout and topology change between its calls.
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/layout/named.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/topology/precomputed.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/tune/pack.hpp"

#include "support/any.hpp"
#include "support/conformance.hpp"
#include "support/refusal.hpp"

namespace replan_test {

namespace {

using kernel = orrery::flash<orrery::bfloat16>;  // which keeps results apart from the trainer's tensors
using operator_type = orrery::attention<orrery::any_topology, kernel>;

constexpr orrery::attention_shape shape{.batch = 2, .length = 53, .query_heads = 4, .key_heads = 2, .head_dim = 8};

/// Runs a forward and a backward against the oracle. Empty, or what is wrong.
template <class Mask>
std::string wrong_call(operator_type& attend, const Mask& mask, std::uint64_t seed) {
  const oracle::problem p = oracle::random_problem<orrery::bfloat16>(conformance::oracle_shape(shape), seed);
  conformance::rank_tensors<kernel> tensors{p, attend.query_positions(), attend.key_positions(),
                                            conformance::trainer_memory::of(seed)};
  tensors.forward(attend);
  tensors.backward(attend);
  return tensors.mismatch(p, oracle::solve(p, mask), attend.query_positions(), attend.key_positions());
}

constexpr any::mask everything{};
constexpr any::mask causal{.ahead = 0};
constexpr any::mask window{.reach = 9, .ahead = 0};

}  // namespace

TEST_CASE("an operator is planned again and again, each time as a new one would be") {
  const std::vector<std::pair<any::mask, std::pair<conformance::any_layout, orrery::any_topology>>> plans{
      {causal, {orrery::zigzag{}, orrery::ring{}}},
      {everything, {orrery::contiguous{}, orrery::concentric<2>{}}},
      {window, {orrery::contiguous{}, orrery::ring{}}},
      {causal, {orrery::contiguous{}, orrery::half_ring{}}},
      {everything, {orrery::striped<3>{}, orrery::all_to_all<2, orrery::ring>{}}},
      {causal, {orrery::zigzag{}, orrery::ring{}}},
  };
  for (const int ranks : {1, 2, 4}) {
    orrery::threads::run(ranks, [&](auto& world) {
      std::optional<operator_type> attend;
      std::int64_t largest = 0;
      std::uint64_t seed = 0;
      for (const auto& [mask, rest] : plans) {
        if (rest.second.unsupported_reason(ranks) != nullptr) continue;
        if (attend) {
          attend->replan(world, mask, rest.first, rest.second);
        } else {
          attend.emplace(world, shape, mask, rest.first, rest.second);
        }
        const operator_type fresh{world, shape, mask, rest.first, rest.second};
        const std::string wrong = wrong_call(*attend, mask, ++seed);
        if (!wrong.empty()) throw std::logic_error{mask.name() + " on " + rest.second.name() + wrong};
        if (to_string(attend->traffic()) != to_string(fresh.traffic()))
          throw std::logic_error{"the traffic is another plan's"};
        if (attend->workspace_bytes() < fresh.workspace_bytes()) throw std::logic_error{"too little memory"};
        if (attend->workspace_bytes() < largest) throw std::logic_error{"memory was given back"};
        largest = attend->workspace_bytes();
      }
      const std::int64_t before = attend->workspace_bytes();
      attend->replan(world, causal, orrery::zigzag{}, orrery::ring{});
      if (attend->workspace_bytes() != before) throw std::logic_error{"memory was taken for a plan that was there"};
    });
  }
}

TEST_CASE("the next batch of packed documents takes the last one's place") {
  const std::vector<std::vector<std::int64_t>> batches{{53}, {1, 50, 2}, {20, 20, 13}, {7, 7, 7, 32}};
  orrery::threads::run(3, [&](auto& world) {
    std::optional<operator_type> attend;
    std::uint64_t seed = 100;
    for (const std::vector<std::int64_t>& lengths : batches) {
      const auto mask = orrery::documents{lengths} & orrery::causal{};
      const orrery::precomputed plan{"packed", orrery::pack(lengths, 3).work};
      if (attend) {
        attend->replan(world, mask, orrery::contiguous{}, plan);
      } else {
        attend.emplace(world, shape, mask, orrery::contiguous{}, plan);
      }
      const std::string wrong = wrong_call(*attend, mask, ++seed);
      if (!wrong.empty()) throw std::logic_error{wrong};
    }
  });
}

TEST_CASE("what is refused leaves the plan as it was") {
  orrery::threads::run(2, [](auto& world) {
    operator_type attend{world, shape, causal, orrery::zigzag{}, orrery::ring{}};
    const std::string refused =
        refusal_of([&] { attend.replan(world, everything, orrery::zigzag{}, orrery::concentric<3>{}); });
    if (refused.find("concentric<3,1> over 2 ranks") == std::string::npos)
      throw std::logic_error{"not refused: " + refused};
    // Each rank gives another mask.
    const std::string disagreement = refusal_of(
        [&] { attend.replan(world, world.rank() == 0 ? causal : window, orrery::zigzag{}, orrery::ring{}); });
    if (disagreement.find("mask") == std::string::npos) throw std::logic_error{"not refused: " + disagreement};
    const std::string wrong = wrong_call(attend, causal, 7);
    if (!wrong.empty()) throw std::logic_error{wrong};
  });
}

TEST_CASE("an operator is not planned while a forward is under way, nor after it was moved from") {
  orrery::threads::run(2, [](auto& world) {
    operator_type attend{world, shape, causal, orrery::zigzag{}, orrery::ring{}};
    const oracle::problem p = oracle::random_problem<orrery::bfloat16>(conformance::oracle_shape(shape), 1);
    conformance::rank_tensors<kernel> tensors{p, attend.query_positions(), attend.key_positions(), {}};
    const auto message = [&](const std::function<void()>& call) {
      try {
        call();
      } catch (const std::logic_error& e) {
        return std::string{e.what()};
      }
      return std::string{};
    };
    const auto again = [&] { attend.replan(world, causal, orrery::zigzag{}, orrery::ring{}); };
    {
      auto call = attend.begin_forward(tensors.out.view(), tensors.lse.view());
      if (message(again).find("replan: a forward was begun") == std::string::npos) throw std::runtime_error{"begun"};
      call.queries(tensors.q.view());
      call.keys(tensors.k.view());
      call.values(tensors.v.view());
      call.finish();
    }
    operator_type other = std::move(attend);
    if (message(again).find("replan: this operator was moved from") == std::string::npos)
      throw std::runtime_error{"moved"};
  });
}

TEST_CASE("an operator plans in another world, of another kind, too") {
  orrery::threads::run(2, [](auto& world) {
    operator_type attend{world, shape, causal, orrery::zigzag{}, orrery::ring{}};
    orrery::counted with_counts{world};
    attend.replan(with_counts, window, orrery::contiguous{}, orrery::ring{});
    const std::string wrong = wrong_call(attend, window, 9);
    if (!wrong.empty()) throw std::logic_error{wrong};
  });
}

}  // namespace replan_test
