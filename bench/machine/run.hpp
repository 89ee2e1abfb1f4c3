// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// bench_machine, whatever its ranks are: threads of one process (machine.cpp) or processes (machine_mpi.cpp).

#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/predict/calibrate.hpp"
#include "orrery/predict/rank_places.hpp"
#include "orrery/predict/simulate.hpp"

#include "common/arguments.hpp"
#include "common/problem.hpp"
#include "common/statistics.hpp"
#include "machine/places.hpp"
#include "machine/sampling.hpp"
#include "topology/candidates.hpp"
#include "topology/intervals.hpp"

namespace bench {

/// The levels of these ranks, without numbers: hosts, if there are several. Throws `std::invalid_argument` if hosts
/// have different numbers of ranks, or are not filled one after the other.
inline orrery::machine frame_of(const std::vector<orrery::rank_place>& places, const std::string& kernel) {
  orrery::machine m;
  m.name = "here";
  m.device.name = kernel;
  m.device.forward.units = 1;
  std::size_t node = 1;
  while (node < places.size() && places[node].host == places[0].host) ++node;
  for (std::size_t rank = 0; rank < places.size(); ++rank) {
    const bool is_first = rank % node == 0;
    if (places.size() % node == 0 && (rank == 0 || (places[rank].host != places[rank - 1].host) == is_first)) continue;
    throw std::invalid_argument{"hosts must have equally many ranks, numbered host by host, but rank " +
                                std::to_string(rank) + " is on " + places[rank].host +
                                "; with mpirun, --map-by ppr:N:node does that"};
  }
  m.levels.push_back({.name = "node", .count = static_cast<int>(node), .link = "memory"});
  if (node < places.size()) {
    m.levels.push_back({.name = "cluster", .count = static_cast<int>(places.size() / node), .link = "network"});
  }
  return m;
}

/// What the program is told.
struct machine_arguments : sampling_options {
  bool every = false;  ///< compare every schedule, of several lengths, and not three
};

/// Reads the arguments that threads and processes share, which are the last ones.
inline machine_arguments read_rest(arguments& given) {
  machine_arguments o;
  o.heads = given.number("query heads", o.heads, 1, 256);
  o.key_heads = given.number("key heads", o.heads, 1, o.heads);
  o.dim = given.number("head dimension", o.dim, 1, 256);
  o.repetitions = static_cast<int>(given.number("repetitions", o.repetitions, 1, 1000));
  o.every = given.word("schedules", "three", "every") == "every";
  given.finish();
  if (o.heads % o.key_heads != 0) given.refuse("key heads must divide query heads");
  return o;
}

/// A schedule's time beside the predicted one, in seconds.
struct comparison {
  std::string schedule;
  orrery::pass pass;
  bool causal;
  std::int64_t tokens;
  double measured;
  double predicted;
};

/// Measures and predicts a schedule's forward and backward. Collective; rows on all ranks.
template <class Kernel, class Mask, class Layout, class World>
void compare(World& world, const orrery::machine& m, const sampling_options& o, std::int64_t tokens, const Mask& mask,
             const Layout& layout, const orrery::any_topology& topology, std::vector<comparison>& rows) {
  using T = typename Kernel::storage;
  const orrery::attention_shape shape{
      .length = tokens, .query_heads = o.heads, .key_heads = o.key_heads, .head_dim = o.dim};
  orrery::attention<orrery::any_topology, Kernel> attend{world, shape, mask, layout, topology};
  shard<T> own{shape, attend.query_positions()};
  for (const orrery::pass p : {orrery::pass::forward, orrery::pass::circulate_keys}) {
    std::vector<interval> calls;
    for (int i = -1; i < o.repetitions; ++i) {
      world.barrier();
      const auto begin = clock_type::now();
      own.call(attend, p);
      const auto end = clock_type::now();
      if (i < 0) continue;
      calls.push_back({std::chrono::duration<double>(begin.time_since_epoch()).count(),
                       std::chrono::duration<double>(end.time_since_epoch()).count()});
    }
    orrery::simulation_options how;
    how.pass = p;
    how.storage_bytes = sizeof(T);
    how.sum_bytes = sizeof(typename Kernel::accumulator);
    const double predicted = simulate(topology, world.size(), m, shape, mask, layout, how).seconds;
    constexpr bool causal = std::is_same_v<Mask, orrery::causal>;
    rows.push_back({topology.name(), p, causal, tokens, median(seconds_of(world, calls)), predicted});
  }
}

inline void print(const std::vector<comparison>& rows, const char* begin) {
  std::printf(
      "%s| schedule | pass | mask | tokens | measured, ms | predicted | |\n%s| --- | --- | --- | --- | --- | "
      "--- | --- |\n",
      begin, begin);
  double sum = 0, worst = 0;
  for (const comparison& r : rows) {
    const double error = r.predicted / r.measured - 1;
    sum += std::fabs(error);
    worst = std::fmax(worst, std::fabs(error));
    std::printf("%s| `%s` | %s | %s | %lld | %.2f | %.2f | %+.1f %% |\n", begin, r.schedule.c_str(),
                r.pass == orrery::pass::forward ? "forward" : "backward", r.causal ? "causal, zigzag" : "full",
                static_cast<long long>(r.tokens), r.measured * 1e3, r.predicted * 1e3, 100 * error);
  }
  std::printf("%soff by %.1f %% on average, by %.1f %% at worst\n", begin, 100 * sum / static_cast<double>(rows.size()),
              100 * worst);
}

/// How far a calibration is from having no refusals: those of needed constants count most, then their residuals.
inline double badness_of(const orrery::calibration& c) {
  double sum = 0;
  for (const orrery::calibration::constant& one : c.constants) {
    if (!one.refusal.empty()) sum += (one.is_needed ? 100 : 1) + std::fmin(one.residual, 0.9);
  }
  return sum;
}

/// "each bound to a core of its own", or what ranks are else.
inline const char* binding_of(const std::vector<orrery::rank_place>& places) {
  for (const orrery::rank_place& one : places) {
    if (one.cores.size() != 1) return "not bound to a core each";
  }
  return "each bound to a core";
}

/// Calibrates, writes the machine, and compares. Returns the status of the program.
template <class Kernel, class World>
int calibrate_and_compare(World& world, const machine_arguments& o, const std::string& described) {
  const bool is_first = world.rank() == 0;
  const auto begun = clock_type::now();
  const auto places = places_of(world, 1);
  if (const std::string why = orrery::why_ranks_share_cores(places); !why.empty()) {
    if (is_first) std::cerr << "bench_machine: " << why << ". Nothing was measured, and nothing is predicted.\n";
    return 1;
  }
  const orrery::machine frame = frame_of(places, Kernel::name());
  if (is_first) std::cerr << "bench_machine: measuring " << world.size() << " ranks, " << described << "\n";
  // Other work disturbs: the first of three attempts that contradicts itself nowhere, else the one that does least.
  orrery::calibration found;
  double share = 1;
  for (int attempt = 0; attempt < 3; ++attempt) {
    sampler<Kernel, World> measuring{world, frame, o};
    const orrery::calibration one = orrery::calibrate(measuring.run(), frame);
    const double share_of_one = measuring.share_of_cores();
    if (attempt > 0 && badness_of(one) >= badness_of(found)) continue;
    found = one;
    share = share_of_one;
    if (found.refusals().empty()) break;
  }
  if (is_first && share < 0.95) {
    std::fprintf(stderr,
                 "bench_machine: ranks had their cores for %.0f %% of the time while they computed: other work runs "
                 "here, and the constants are those of a loaded machine\n",
                 100 * share);
  }
  if (is_first) std::cerr << found.refusals();
  if (!found.is_usable()) {
    if (is_first) std::cerr << "bench_machine: no machine is written, since a constant above is needed\n";
    return 1;
  }
  if (is_first) {
    std::printf(
        "# %d ranks, %s, %s; %s, %lld query heads, %lld key heads of %lld; medians of %d; cores "
        "were the ranks' for %.0f %% of the time\n%s",
        world.size(), described.c_str(), binding_of(places), Kernel::name().c_str(), static_cast<long long>(o.heads),
        static_cast<long long>(o.key_heads), static_cast<long long>(o.dim), o.repetitions, 100 * share,
        to_string(found).c_str());
  }
  std::vector<orrery::any_topology> topologies{orrery::ring{}, orrery::ulysses{}};
  const bool has_usp = world.size() > 2 && world.size() % 2 == 0;
  topologies.push_back(has_usp ? orrery::any_topology{orrery::usp<2>{}} : orrery::any_topology{orrery::all_gather{}});
  std::vector<std::int64_t> lengths{2048};
  if (o.every) {
    topologies.clear();
    const std::vector<orrery::pass> passes{orrery::pass::forward, orrery::pass::circulate_keys};
    for (const candidate& c : admitted(world.size(), static_cast<int>(o.heads), passes)) {
      topologies.push_back(c.as_written);
    }
    lengths = {512, 2048, 4096};
  }
  std::vector<comparison> rows;
  for (const std::int64_t n : lengths) {
    const std::int64_t tokens = n / (2 * world.size()) * 2 * world.size();
    for (const orrery::any_topology& one : topologies) {
      if (one.slices(world.size()) > o.heads) continue;
      compare<Kernel>(world, found.described, o, tokens, orrery::full{}, orrery::contiguous{}, one, rows);
      compare<Kernel>(world, found.described, o, tokens, orrery::causal{}, orrery::zigzag{}, one, rows);
    }
  }
  if (!is_first) return 0;
  std::printf("\n# Schedules that were not fitted:\n#\n");
  print(rows, "# ");
  std::fflush(stdout);
  std::fprintf(stderr, "bench_machine: done in %.0f s\n", seconds_between(begun, clock_type::now()));
  return 0;
}

}  // namespace bench
