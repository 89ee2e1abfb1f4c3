// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// One training, whatever its ranks are: threads or streams of one process (train.cpp) or processes (train_mpi.cpp).
// `Ranks` has
//
// - `run(ranks, body)`, which calls `body` with each rank's world;
// - `reports(world)`: does this rank leave the results to its process?
// - `kernel<S>`, the attention of numbers that are stored as S;
// - `place(world)`, where this rank's numbers are: see places.hpp.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <orrery/layout/layout.hpp>
#include <orrery/mask/causal.hpp>
#include <orrery/predict/traffic.hpp>
#include <orrery/topology/any_topology.hpp>
#include <orrery/transport/counted.hpp>

#include "adamw.hpp"
#include "model.hpp"
#include "options.hpp"
#include "text.hpp"

namespace train {

/// What one training leaves for the table. Bytes are those that the busiest rank sends in one call.
struct outcome {
  std::string name;
  orrery::traffic_report forward, backward;
  std::vector<double> losses{};
  double forward_bytes = 0, backward_bytes = 0;
  double seconds = 0;
  double forward_milliseconds = 0;  // of the model in one step, the median
};

/// Trains with one topology over so many ranks, shows losses while they fall, and returns what came of it.
using training = std::function<outcome(const std::string& name, const orrery::any_topology& topology, int ranks,
                                       const options& o, const training_text& text)>;

/// Is the loss of this step shown while the training goes on? About six are, the first and the last among them.
inline bool shown(std::int64_t step, std::int64_t steps) {
  return step == 0 || (steps - 1 - step) % ((steps + 5) / 6) == 0;
}

/// The trainer. Every rank has all parameters and its tokens of each sequence; gradients are summed over the ranks. The
/// model computes in T, its attention stores S. Sums over the ranks and the optimiser are the host's.
template <class T, class S = T, class Ranks>
outcome train_with(const Ranks& on, const std::string& name, const orrery::any_topology& topology, int ranks,
                   const options& o, const training_text& text) {
  const auto sharing = static_cast<double>(o.shape.query_heads) / static_cast<double>(o.shape.key_heads);
  constexpr double sum_width = sizeof(S) == 2 ? 2 : 1;  // 16-bit types are summed in float
  outcome result{name, orrery::traffic(topology, ranks, orrery::pass::forward, sharing, sum_width),
                 orrery::traffic(topology, ranks, orrery::pass::circulate_keys, sharing, sum_width)};
  const auto begin = std::chrono::steady_clock::now();

  on.run(ranks, [&](auto& world) {
    orrery::counted counted{world};
    const orrery::attention_shape shape{.batch = o.batch,
                                        .length = o.length,
                                        .query_heads = o.shape.query_heads,
                                        .key_heads = o.shape.key_heads,
                                        .head_dim = o.shape.head_dim(),
                                        .operand_messages = o.operand_messages};
    orrery::attention<orrery::any_topology, typename Ranks::template kernel<S>> attend{counted, shape, orrery::causal{},
                                                                                       orrery::zigzag{}, topology};
    const auto place = Ranks::place(world);
    using place_type = std::remove_const_t<decltype(place)>;
    gpt<T, decltype(attend), place_type> model{o.shape, o.batch, o.length, attend, place};
    std::vector<T> parameter_values = initial_parameters<T>(o.shape, o.seed), gradient_values(parameter_values.size());
    typename place_type::template mirror<T> placed_parameters{place, parameter_values};
    typename place_type::template mirror<T> placed_gradients{place, gradient_values};
    const gpt_parameters<T> parameters{o.shape, placed_parameters.data()}, gradients{o.shape, placed_gradients.data()};
    adamw<T> optimiser{parameter_values.size()};
    std::vector<double> losses, forward_milliseconds;
    std::int64_t forward_bytes = 0, backward_bytes = 0;

    for (std::int64_t step = 0; step < o.steps; ++step) {
      const std::vector<std::uint8_t> inputs = text.tokens(step, attend.query_positions(), 0);
      const std::vector<std::uint8_t> targets = text.tokens(step, attend.query_positions(), 1);
      placed_parameters.bring();
      counted.reset();
      const auto forward_begin = std::chrono::steady_clock::now();
      T loss = model.forward(parameters, inputs, targets);
      const std::chrono::duration<double, std::milli> forward_time = std::chrono::steady_clock::now() - forward_begin;
      forward_milliseconds.push_back(forward_time.count());
      forward_bytes += counted.bytes_sent();
      counted.reset();
      placed_gradients.clear();
      model.backward(parameters, gradients);
      backward_bytes += counted.bytes_sent();
      placed_gradients.fetch();

      world.all_reduce_sum(std::span<T>{&loss, 1});
      world.all_reduce_sum(std::span{gradient_values});
      clip(std::span{gradient_values}, 1.0);
      optimiser.step(std::span{parameter_values}, std::span<const T>{gradient_values},
                     learning_rate(step, o.steps, 5e-3));

      losses.push_back(static_cast<double>(loss));
      if (world.rank() == 0 && !o.quiet) {
        if (shown(step, o.steps)) std::printf("%9.4f", static_cast<double>(loss));
        std::fflush(stdout);
      }
    }

    const auto of_busiest_rank = [&](std::int64_t bytes) {
      std::int64_t largest = 0;
      for (const std::string& sent : world.all_gather(std::to_string(bytes)))
        largest = std::max(largest, static_cast<std::int64_t>(std::stoll(sent)));
      return static_cast<double>(largest) / static_cast<double>(o.steps * o.shape.layers);
    };
    const double forward_call = of_busiest_rank(forward_bytes), backward_call = of_busiest_rank(backward_bytes);
    if (!on.reports(world)) return;
    result.losses = losses;
    result.forward_bytes = forward_call;
    result.backward_bytes = backward_call;
    const auto middle = forward_milliseconds.begin() + static_cast<std::ptrdiff_t>(forward_milliseconds.size() / 2);
    std::nth_element(forward_milliseconds.begin(), middle, forward_milliseconds.end());
    result.forward_milliseconds = *middle;
  });

  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace train
