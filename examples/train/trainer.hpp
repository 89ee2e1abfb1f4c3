// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// What train.cpp and train_mpi.cpp share: training on one rank and then with every topology, and what is said of it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <orrery/orrery.hpp>

#include "on_threads.hpp"
#include "options.hpp"
#include "places.hpp"
#include "text.hpp"
#include "training.hpp"

#ifndef ORRERY_SOURCE_DIR
#define ORRERY_SOURCE_DIR "."
#endif

namespace train {

/// What to train with, one after the other.
using topologies = std::vector<orrery::any_topology>;

/// Ranks whose processor is the host's; derived classes say how they are started.
struct host_ranks {
  template <class S>
  using kernel = orrery::flash<S>;
  template <class World>
  static on_host place(const World&) {
    return {};
  }
};

/// Ranks that are threads of this process.
struct thread_ranks : on_threads {
  template <class S>
  using kernel = orrery::flash<S>;
};

/// The training of `Ranks` in the host's element types.
template <class Ranks>
training training_on(const Ranks& on) {
  return [on](const std::string& name, const orrery::any_topology& topology, int ranks, const options& o,
              const training_text& text) {
    return o.dtype == "float" ? train_with<float>(on, name, topology, ranks, o, text)
                              : train_with<double>(on, name, topology, ranks, o, text);
  };
}

/// How far apart two right loss curves may be. Topologies add the same numbers up in different orders: attention over
/// keys, losses and gradients over tokens. Each addition rounds by at most half an epsilon, up or down, so that n of
/// them carry a sum about sqrt(n) roundings away, and a training adds up steps * tokens terms. Four such distances are
/// allowed, relative to the loss of a model that knows nothing.
///
/// After 24 steps in double, right curves are 1e-14 apart, and 8e-13 are allowed; if a single query misses a single
/// key, one pair of half a million, they are 1e-5 apart. In float that would drown in rounding: hence double by
/// default.
///
/// Where attention stores bfloat16, the one rank still computes all in float, and what is measured is that rounding:
/// 5e-3 after 24 steps, of 4e-2 that are allowed. Such a curve shows that a training goes the same way, not that every
/// pair was met once.
inline double tolerance(const options& o) {
  const double of_nothing = std::log(static_cast<double>(gpt_shape::vocabulary));
  if (o.dtype == "bfloat16") return static_cast<double>(std::numeric_limits<orrery::bfloat16>::epsilon()) * of_nothing;
  const double terms = static_cast<double>(o.steps * o.batch * o.length);
  const double epsilon = o.dtype == "float" ? static_cast<double>(std::numeric_limits<float>::epsilon())
                                            : std::numeric_limits<double>::epsilon();
  return 4 * std::sqrt(terms) * epsilon * of_nothing;
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
inline std::vector<outcome> train_with_all(const training& chosen, const topologies& all, const options& o,
                                           const training_text& text) {
  const auto number = [](auto n) { return std::to_string(n); };
  const std::string model = number(o.shape.layers) + " layers of width " + number(o.shape.width) + ", " +
                            number(gpt_parameters<double>::count(o.shape)) + " parameters in " +
                            (o.dtype == "bfloat16" ? "float, attention in bfloat16" : o.dtype);
  const std::string work = number(o.steps) + " steps of " + number(o.batch) + " x " + number(o.length) + " tokens";
  std::printf("A byte-level GPT (%s) learns %s bytes of text,\nin %s: on one rank, then split across %s%s.\n\n  %-38s",
              model.c_str(), number(text.bytes()).c_str(), work.c_str(), number(o.ranks).c_str(),
              o.device == "cuda" ? " streams of CUDA devices" : "", "loss after step");
  for (std::int64_t step = 0; step < o.steps; ++step)
    if (shown(step, o.steps)) std::printf("%9s", number(step + 1).c_str());
  const auto train = [&](const training& how, const std::string& name, const orrery::any_topology& topology,
                         std::int64_t ranks) {
    std::printf("\n  %-38s", name.c_str());
    std::fflush(stdout);
    return how(name, topology, static_cast<int>(ranks), o, text);
  };
  std::vector<outcome> outcomes{train(training_on(thread_ranks{}), "one rank", orrery::ring{}, 1)};
  for (const orrery::any_topology& topology : all) {
    if (!o.topology.empty() && o.topology != topology.name()) continue;
    try {
      outcomes.push_back(train(chosen, topology.name(), topology, o.ranks));
    } catch (const std::invalid_argument& refusal) {
      std::printf("  skipped: %s", refusal.what());
    }
  }
  return outcomes;
}

/// Trains, prints the table and the verdict, and returns the exit status.
inline int compare(const training& chosen, const topologies& all, const options& o, const training_text& text) {
  const std::vector<outcome> outcomes = train_with_all(chosen, all, o, text);
  std::printf("\n\n");
  if (outcomes.size() == 1) throw std::invalid_argument{"nothing to compare with, since every topology was skipped"};
  const double allowed = tolerance(o);
  bool same = true;
  std::printf("  %-38s%11s%10s%13s%14s%9s%7s%9s%12s\n", "topology", "last loss", "distance", "units sent", "kB sent",
              "steps", "slots", "seconds", "forward ms");
  for (const outcome& result : outcomes) {
    const double apart = distance(outcomes[0], result);
    same = same && apart <= allowed;
    std::printf("  %-38s%11.6f%10.1e%6.1f + %4.1f%7.0f + %4.0f%4d + %2d%7d%9.1f%12.2f%s\n", result.name.c_str(),
                result.losses.back(), apart, result.forward.sent, result.backward.sent, result.forward_bytes / 1000,
                result.backward_bytes / 1000, result.forward.steps, result.backward.steps,
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
inline int run(const training& chosen, const topologies& all, options o) {
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
  return compare(chosen, all, o, text);
}

}  // namespace train
