// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// The trainer, whatever its ranks are: threads of one process (train.cpp) or processes (train_mpi.cpp). `Ranks` has
// `run(ranks, body)`, which calls `body` with each rank's world, and `reports(world)`: does this rank leave the results
// to its process?

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <orrery/orrery.hpp>

#include "adamw.hpp"
#include "matrix.hpp"
#include "model.hpp"
#include "options.hpp"
#include "text.hpp"

#ifndef ORRERY_SOURCE_DIR
#define ORRERY_SOURCE_DIR "."
#endif

namespace train {

/// What to train with, one after the other.
using topologies = std::vector<orrery::any_topology>;

/// Ranks that are threads of this process.
struct thread_ranks {
  template <class Body>
  static void run(int ranks, const Body& body) {
    orrery::threads::run(ranks, body);
  }
  template <class World>
  static bool reports(const World& world) {
    return world.rank() == 0;
  }
};

/// What one training leaves for the table. Bytes are those that the busiest rank sends in one call.
struct outcome {
  std::string name;
  orrery::traffic_report forward, backward;
  std::vector<double> losses{};
  double forward_bytes = 0, backward_bytes = 0;
  double seconds = 0;
  double forward_milliseconds = 0;  // of the model in one step, the median
};

/// Is the loss of this step shown while the training goes on? About six are, the first and the last among them.
inline bool shown(std::int64_t step, std::int64_t steps) {
  return step == 0 || (steps - 1 - step) % ((steps + 5) / 6) == 0;
}

/// The trainer. Every rank has all parameters and its tokens of each sequence; gradients are summed over the ranks.
template <class T, class Ranks>
outcome train_with(const Ranks& on, const std::string& name, const orrery::any_topology& topology, int ranks,
                   const options& o, const training_text& text) {
  const auto sharing = static_cast<double>(o.shape.query_heads) / static_cast<double>(o.shape.key_heads);
  outcome result{name, orrery::traffic(topology, ranks, orrery::pass::forward, sharing),
                 orrery::traffic(topology, ranks, orrery::pass::circulate_keys, sharing)};
  const auto begin = std::chrono::steady_clock::now();

  on.run(ranks, [&](auto& world) {
    orrery::counted counted{world};
    const orrery::attention_shape shape{.batch = o.batch,
                                        .length = o.length,
                                        .query_heads = o.shape.query_heads,
                                        .key_heads = o.shape.key_heads,
                                        .head_dim = o.shape.head_dim(),
                                        .hand_over = o.hand_over};
    orrery::attention<orrery::any_topology, orrery::flash<T>> attend{counted, shape, orrery::causal{}, orrery::zigzag{},
                                                                     topology};
    gpt<T, decltype(attend)> model{o.shape, o.batch, o.length, attend};
    gpt_parameters<T> parameters{o.shape}, gradients{o.shape};
    parameters.initialise(o.seed);
    adamw<T> optimiser{parameters.values().size()};
    std::vector<double> losses, forward_milliseconds;
    std::int64_t forward_bytes = 0, backward_bytes = 0;

    for (std::int64_t step = 0; step < o.steps; ++step) {
      const std::vector<std::uint8_t> inputs = text.tokens(step, attend.query_positions(), 0);
      const std::vector<std::uint8_t> targets = text.tokens(step, attend.query_positions(), 1);
      counted.reset();
      const auto forward_begin = std::chrono::steady_clock::now();
      T loss = model.forward(parameters, inputs, targets);
      const std::chrono::duration<double, std::milli> forward_time = std::chrono::steady_clock::now() - forward_begin;
      forward_milliseconds.push_back(forward_time.count());
      forward_bytes += counted.bytes_sent();
      counted.reset();
      std::ranges::fill(gradients.values(), T{0});
      model.backward(parameters, gradients, inputs);
      backward_bytes += counted.bytes_sent();

      world.all_reduce_sum(std::span<T>{&loss, 1});
      world.all_reduce_sum(gradients.values());
      clip(gradients.values(), 1.0);
      optimiser.step(parameters.values(), gradients.values(), learning_rate(step, o.steps, 5e-3));

      losses.push_back(static_cast<double>(loss));
      if (world.rank() == 0) {
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

/// How far apart two right loss curves may be. Topologies add the same numbers up in different orders: attention over
/// keys, losses and gradients over tokens. Each addition rounds by at most half an epsilon, up or down, so that n of
/// them carry a sum about sqrt(n) roundings away, and a training adds up steps * tokens terms. Four such distances are
/// allowed, relative to the loss of a model that knows nothing.
///
/// After 24 steps in double, right curves are 1e-14 apart, and 8e-13 are allowed; if a single query misses a single
/// key, one pair of half a million, they are 1e-5 apart. In float that would drown in rounding: hence double by
/// default.
template <class T>
double tolerance(const options& o) {
  const double terms = static_cast<double>(o.steps * o.batch * o.length);
  const double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
  return 4 * std::sqrt(terms) * epsilon * std::log(static_cast<double>(gpt_shape::vocabulary));
}

/// The largest distance of two loss curves; infinite where they cannot be compared.
inline double distance(const outcome& one, const outcome& other) {
  double largest = 0;
  for (std::size_t i = 0; i < one.losses.size(); ++i) {
    const double d = std::abs(one.losses[i] - other.losses[i]);
    largest = std::isnan(d) ? std::numeric_limits<double>::infinity() : std::max(largest, d);
  }
  return largest;
}

/// Trains on one rank, a thread, and then with the topologies that were chosen, and shows the losses while they fall.
template <class T, class Ranks>
std::vector<outcome> train_with_all(const Ranks& on, const topologies& all, const options& o,
                                    const training_text& text) {
  const auto number = [](auto n) { return std::to_string(n); };
  const std::string model = number(o.shape.layers) + " layers of width " + number(o.shape.width) + ", " +
                            number(gpt_parameters<T>{o.shape}.values().size()) + " parameters in " +
                            (o.use_float ? "float" : "double");
  const std::string work = number(o.steps) + " steps of " + number(o.batch) + " x " + number(o.length) + " tokens";
  std::printf("A byte-level GPT (%s) learns %s bytes of text,\nin %s: on one rank, then split across %s.\n\n  %-38s",
              model.c_str(), number(text.bytes()).c_str(), work.c_str(), number(o.ranks).c_str(), "loss after step");
  for (std::int64_t step = 0; step < o.steps; ++step)
    if (shown(step, o.steps)) std::printf("%9s", number(step + 1).c_str());
  const auto train = [&](const auto& ranks_are, const std::string& name, const orrery::any_topology& topology,
                         std::int64_t ranks) {
    std::printf("\n  %-38s", name.c_str());
    std::fflush(stdout);
    return train_with<T>(ranks_are, name, topology, static_cast<int>(ranks), o, text);
  };
  std::vector<outcome> outcomes{train(thread_ranks{}, "one rank", orrery::ring{}, 1)};
  for (const orrery::any_topology& topology : all) {
    if (!o.topology.empty() && o.topology != topology.name()) continue;
    try {
      outcomes.push_back(train(on, topology.name(), topology, o.ranks));
    } catch (const std::invalid_argument& refusal) {
      std::printf("  skipped: %s", refusal.what());
    }
  }
  return outcomes;
}

/// Trains, prints the table and the verdict, and returns the exit status.
template <class T, class Ranks>
int compare(const Ranks& on, const topologies& all, const options& o, const training_text& text) {
  const std::vector<outcome> outcomes = train_with_all<T>(on, all, o, text);
  std::printf("\n\n");
  if (outcomes.size() == 1) throw std::invalid_argument{"nothing to compare with, since every topology was skipped"};
  const double allowed = tolerance<T>(o);
  bool same = true;
  std::printf("  %-38s%11s%10s%13s%14s%9s%7s%9s%12s\n", "topology", "last loss", "distance", "units sent", "kB sent",
              "steps", "slots", "seconds", "forward ms");
  for (const outcome& result : outcomes) {
    const double apart = distance(outcomes[0], result);
    same = same && apart <= allowed;
    std::printf("  %-38s%11.6f%10.1e%6.1f + %4.1f%7.0f + %4.0f%4d + %2d%7d%9.1f%12.2f%s\n", result.name.c_str(),
                result.losses.back(), apart, result.forward.units_sent, result.backward.units_sent,
                result.forward_bytes / 1000, result.backward_bytes / 1000, result.forward.steps, result.backward.steps,
                std::max(result.forward.peak_slots, result.backward.peak_slots), result.seconds,
                result.forward_milliseconds, apart <= allowed ? "" : "  <- differs");
  }
  std::printf(
      "\nDistance is the largest between the loss curve and that of one rank. Sent is by the busiest rank in one\n"
      "layer, forward + backward; a unit is one tensor's shard. Slots are block buffers beside the own shard. The\n"
      "model's forward of one step is the median on rank 0.\n\n");
  if (!same) {
    std::printf("FAILED: a loss curve leaves that of one rank by more than rounding, %.1e.\n", allowed);
    return 1;
  }
  std::printf("All loss curves are that of one rank, but for rounding (less than %.1e).\n", allowed);
  return 0;
}

/// Everything; returns the exit status. Throws `std::invalid_argument` for arguments that make no sense.
template <class Ranks>
int run(const Ranks& on, const topologies& all, options o) {
  if (o.help) {
    std::fputs(usage, stdout);
    return 0;
  }
  std::string names;
  for (const orrery::any_topology& topology : all) names += ' ' + topology.name();
  if (!o.topology.empty() && (names + ' ').find(' ' + o.topology + ' ') == std::string::npos)
    throw std::invalid_argument{"there is no topology '" + o.topology + "'; there are" + names};
  if (o.text.empty())
    for (const char* file : {ORRERY_SOURCE_DIR "/LICENSE", ORRERY_SOURCE_DIR "/README.md"})
      if (std::filesystem::exists(file)) o.text.emplace_back(file);
  const training_text text{o.text, o.steps, o.batch, o.length, o.seed};
  return o.use_float ? compare<float>(on, all, o, text) : compare<double>(on, all, o, text);
}

}  // namespace train
