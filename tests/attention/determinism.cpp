// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The same call twice gives the same bits: whatever is called in between, and on however many threads.
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/transport/threads.hpp"

#include "support/any.hpp"
#include "support/conformance.hpp"

namespace determinism_test {

namespace {

using kernel = orrery::flash<float>;

constexpr orrery::attention_shape shape{.length = 70, .query_heads = 8, .key_heads = 4, .head_dim = 16};

template <class Attention>
std::string call(Attention& attend, conformance::rank_tensors<kernel>& tensors) {
  tensors.poison();
  tensors.forward(attend);
  tensors.backward(attend);
  return tensors.bits();
}

oracle::problem problem(std::uint64_t seed) {
  return oracle::random_problem<float>(conformance::oracle_shape(shape), seed);
}

}  // namespace

TEST_CASE("the same bits in every run") {
  for (const orrery::any_topology& topology : any::topologies()) {
    const int world = topology.unsupported_reason(8) == nullptr ? 8 : 9;
    const oracle::problem p = problem(1);
    std::vector<std::string> first(static_cast<std::size_t>(world));
    for (int attempt = 0; attempt < 4; ++attempt) {
      orrery::threads::run(world, {.threads_per_rank = 1 + attempt % 3}, [&](auto& on) {
        orrery::attention<orrery::any_topology, kernel> attend{on, shape, orrery::causal{}, orrery::zigzag{}, topology};
        conformance::rank_tensors<kernel> mine{p, attend.query_positions(), attend.key_positions(), {}};
        const std::string bits = call(attend, mine);
        std::string& known = first[static_cast<std::size_t>(on.rank())];
        if (attempt == 0) known = bits;
        if (bits != known)
          throw std::logic_error{topology.name() + ": rank " + std::to_string(on.rank()) + " has other bits"};
      });
    }
  }
}

TEST_CASE("one operator serves several layers, with all forwards before all backwards") {
  const std::vector<oracle::problem> layers{problem(1), problem(2), problem(3)};
  orrery::threads::run(4, [&](auto& on) {
    orrery::attention<orrery::wallfacer<2>, kernel> attend{on, shape, orrery::causal{}, orrery::zigzag{}};
    std::vector<std::string> alone;
    for (const oracle::problem& p : layers) {
      conformance::rank_tensors<kernel> mine{p, attend.query_positions(), attend.key_positions(), {}};
      alone.push_back(call(attend, mine));
    }
    std::deque<conformance::rank_tensors<kernel>> all;
    for (const oracle::problem& p : layers) {
      all.emplace_back(p, attend.query_positions(), attend.key_positions(), conformance::trainer_memory{});
    }
    for (auto& layer : all) layer.forward(attend);
    for (std::size_t i = all.size(); i-- > 0;) all[i].backward(attend);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (all[i].bits() != alone[i]) throw std::logic_error{"layer " + std::to_string(i) + " has other bits"};
    }
  });
}

TEST_CASE("operators that share a world do not disturb each other, interleaved and after one of them is gone") {
  const oracle::problem p = problem(1);
  orrery::threads::run(4, [&](auto& on) {
    using first_type = orrery::attention<orrery::concentric<2>, kernel>;
    using second_type = orrery::attention<orrery::ring, kernel>;
    std::string first_alone, second_alone;
    {
      first_type attend{on, shape, orrery::causal{}, orrery::zigzag{}};
      conformance::rank_tensors<kernel> mine{p, attend.query_positions(), attend.key_positions(), {}};
      first_alone = call(attend, mine);
    }
    second_type second{on, shape, orrery::full{}};
    conformance::rank_tensors<kernel> second_tensors{p, second.query_positions(), second.key_positions(), {}};
    second_alone = call(second, second_tensors);

    second_tensors.poison();
    {
      first_type first{on, shape, orrery::causal{}, orrery::zigzag{}};
      conformance::rank_tensors<kernel> first_tensors{p, first.query_positions(), first.key_positions(), {}};
      first_tensors.forward(first);
      second_tensors.forward(second);
      first_tensors.backward(first);
      if (first_tensors.bits() != first_alone) throw std::logic_error{"the first has other bits"};
    }
    second_tensors.backward(second);
    if (second_tensors.bits() != second_alone) throw std::logic_error{"the second has other bits"};
  });
}

}  // namespace determinism_test
