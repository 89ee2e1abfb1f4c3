// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// The topology microbenchmark, whatever its ranks are: threads of one process (topology.cpp), processes
// (topology_mpi.cpp) or streams of CUDA devices (topology_cuda.cu).

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "orrery/attention.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/transport/counted.hpp"

#include "candidates.hpp"
#include "common/compute_only.hpp"
#include "common/problem.hpp"
#include "common/statistics.hpp"
#include "flags.hpp"
#include "intervals.hpp"

namespace bench {

using orrery::pass;

/// A layout chosen at run time.
struct chosen_layout {
  std::string chosen;

  [[nodiscard]] std::string name() const { return chosen; }
  [[nodiscard]] orrery::segments shard(int rank, int world, std::int64_t length) const {
    if (chosen == "zigzag") return orrery::zigzag::shard(rank, world, length);
    if (chosen == "striped") return orrery::striped<1>::shard(rank, world, length);
    return orrery::contiguous::shard(rank, world, length);
  }
};

struct row {
  std::string topology;
  std::string placement;
  orrery::pass pass = pass::forward;
  std::int64_t tokens = 0;
  std::vector<double> seconds;  // of each call
  double median = 0;            // seconds
  double p99 = 0;
  double alone = 0;  // seconds of the computation alone
  double tokens_per_second = 0;
  double flop_per_second = 0;
  std::int64_t bytes_sent = 0;  // by the rank that sends most
  double algbw = 0;             // bytes per second
  double busbw = 0;
  double overlap = 0;
  std::optional<double> error;
  int steps = 0;
  int slots = 0;
  double egress = 0;
  std::int64_t workspace = 0;  // bytes, of the rank with most
};

inline orrery::attention_shape shape_of(const flags& f, std::int64_t tokens) {
  orrery::attention_shape shape;
  shape.length = tokens;
  shape.query_heads = f.heads;
  shape.key_heads = f.key_heads;
  shape.head_dim = f.dim;
  shape.circulate = f.backward;
  return shape;
}

/// The rows of one topology, on the first rank; elsewhere none.
template <class Kernel, class Ranks, class Mask>
std::vector<row> measure(const Ranks& ranks, const flags& f, const candidate& topology, std::int64_t tokens,
                         const Mask& mask, const shard<typename Kernel::storage>* whole) {
  using T = typename Kernel::storage;
  const orrery::attention_shape shape = shape_of(f, tokens);
  const chosen_layout layout{f.layout};
  const std::size_t passes = f.passes.size();
  std::vector<row> rows;

  ranks.run(f.ranks, [&](auto& world) {
    orrery::counted counting{world};
    orrery::attention<candidate, Kernel> attend{counting, shape, mask, layout, topology};
    auto nothing_moves = ranks.template nothing_moves<T>(world);
    orrery::attention<candidate, tiles_of<Kernel>> compute{nothing_moves, shape, mask, layout, topology};
    auto mine = ranks.template tensors<T>(world, shape, attend.query_positions());
    auto meaningless = ranks.template tensors<T>(world, shape, attend.query_positions());
    const std::int64_t workspace = largest(world, attend.workspace_bytes());
    if (f.passes[0] != pass::forward) mine.forward(attend);

    const auto timed = [&](auto&& call, std::vector<interval>& kept, bool keep) {
      ranks.complete(world);
      world.barrier();
      const clock_type::time_point begin = clock_type::now();
      call();
      ranks.complete(world);
      const clock_type::time_point end = clock_type::now();
      world.barrier();
      if (!keep) return;
      kept.push_back({std::chrono::duration<double>(begin.time_since_epoch()).count(),
                      std::chrono::duration<double>(end.time_since_epoch()).count()});
    };
    for (std::size_t p = 0; p < passes; ++p) {
      std::vector<interval> calls, computations;
      std::int64_t bytes = 0;
      for (int i = -f.warm_up; i < f.iterations; ++i) {
        counting.reset();
        timed([&] { mine.call(attend, f.passes[p]); }, calls, i >= 0);
        bytes = counting.bytes_sent();
        // Neighbours in time, because clocks and other tenants vary.
        timed([&] { meaningless.call(compute, f.passes[p]); }, computations, i >= 0);
      }
      row r;
      r.topology = topology.title();
      r.placement = topology.placement;
      r.pass = f.passes[p];
      r.tokens = tokens;
      r.seconds = seconds_of(world, calls);
      r.alone = median(seconds_of(world, computations));
      r.bytes_sent = largest(world, bytes);
      r.workspace = workspace;
      if (whole != nullptr) r.error = largest(world, mine.error_against(*whole, f.passes[p]));
      if (world.rank() == 0) rows.push_back(r);
    }
  });

  for (row& r : rows) {
    const orrery::traffic_report traffic =
        orrery::traffic(topology, f.ranks, r.pass, static_cast<double>(f.heads) / static_cast<double>(f.key_heads),
                        static_cast<double>(sizeof(typename Kernel::accumulator)) / sizeof(T));
    r.median = median(r.seconds);
    r.p99 = quantile(r.seconds, 0.99);
    r.overlap = r.alone / r.median;
    r.tokens_per_second = static_cast<double>(tokens) / r.median;
    r.flop_per_second = flop_of(shape, f.mask == "causal", r.pass) / r.median;
    const double tensors = r.pass == pass::forward ? 2 : 4;  // K, V and their gradients
    const double size = tensors * static_cast<double>(tokens * f.key_heads * f.dim) * static_cast<double>(sizeof(T));
    r.algbw = size / r.median;
    r.busbw = static_cast<double>(r.bytes_sent) / r.median;
    r.steps = traffic.steps;
    r.slots = traffic.peak_slots;
    r.egress = traffic.node_egress(f.ranks / f.nodes);
  }
  return rows;
}

inline std::string processor() {
  std::ifstream information{"/proc/cpuinfo"};
  for (std::string line; std::getline(information, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

inline std::string compiler() {
#if defined(__clang__)
  return __VERSION__;
#else
  return std::string{"g++ "} + __VERSION__;
#endif
}

template <class Ranks>
void print_header(const flags& f, const Ranks& ranks) {
  std::printf("# bench_topology: %d ranks, %s; %s %s; %s<%s>\n", f.ranks, Ranks::described, f.mask.c_str(),
              f.layout.c_str(), f.kernel.c_str(), f.dtype.c_str());
  std::printf("# machine: %s, %u cores, %s; compiler: %s\n", processor().c_str(), std::thread::hardware_concurrency(),
              ranks.computes_with().c_str(), compiler().c_str());
  std::printf("# shape: batch 1, %lld query heads, %lld key heads, dim %lld; %d calls after %d warm-up\n",
              static_cast<long long>(f.heads), static_cast<long long>(f.key_heads), static_cast<long long>(f.dim),
              f.iterations, f.warm_up);
  std::puts("#");
  std::puts("# time     of a call: from the first rank's beginning to the last rank's end, by the host's clock");
  std::puts("# sent     bytes that the busiest rank sends in a call");
  std::puts("# algbw    bytes of the whole sequence's K and V (backward: and of their gradients) / time");
  std::puts(
      "# busbw    sent / time: algbw times sent / those bytes, which for a ring's forward is (ranks - 1) / ranks");
  std::puts(
      "# overlap  time of the kernel alone, on the same tiles and as many threads / time; 100 %: all else is hidden");
  std::puts(
      "# error    largest, against a run on one rank, relative to the larger of 1 and the tensor's largest element");
  std::puts("# slots    block buffers beside a rank's own shard; a block is one slice of the heads of one shard");
  std::printf("# egress   shard units that the busiest of %d nodes sends to others; one unit: Q of one rank\n#\n",
              f.nodes);
  std::printf("# %-29s %-9s %-17s %8s %10s %10s %10s %8s %9s %8s %8s %8s %9s %6s %6s %7s\n", "topology", "placement",
              "pass", "length", "time", "p99", "speed", "speed", "sent", "algbw", "busbw", "overlap", "error", "steps",
              "slots", "egress");
  std::printf("# %-29s %-9s %-17s %8s %10s %10s %10s %8s %9s %8s %8s %8s %9s %6s %6s %7s\n", "", "", "", "(tokens)",
              "(ms)", "(ms)", "(tokens/s)", "(Gflop/s)", "(MB)", "(GB/s)", "(GB/s)", "(%)", "", "", "", "(units)");
}

inline void print(const row& r) {
  char error[32] = "-";
  if (r.error) std::snprintf(error, sizeof error, "%.1e", *r.error);
  std::printf("  %-29s %-9s %-17s %8lld %10.3f %10.3f %10.0f %9.1f %8.3f %8.3f %8.3f %8.1f %9s %6d %6d %7.2f\n",
              r.topology.c_str(), r.placement.c_str(), orrery::name_of(r.pass), static_cast<long long>(r.tokens),
              r.median * 1e3, r.p99 * 1e3, r.tokens_per_second, r.flop_per_second * 1e-9,
              static_cast<double>(r.bytes_sent) * 1e-6, r.algbw * 1e-9, r.busbw * 1e-9, r.overlap * 100, error, r.steps,
              r.slots, r.egress);
  std::fflush(stdout);
}

inline std::string quoted(const std::string& text) {
  std::string all = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') all += '\\';
    if (static_cast<unsigned char>(c) >= ' ') all += c;
  }
  return all + '"';
}

inline std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

template <class Ranks>
void write_json(std::ostream& to, const Ranks& ranks, const flags& f, const std::vector<row>& rows) {
  to << "{\n  \"transport\": " << quoted(Ranks::transport) << ", \"processor\": " << quoted(processor())
     << ", \"cores\": " << std::thread::hardware_concurrency()
     << ", \"instructions\": " << quoted(ranks.computes_with()) << ", \"compiler\": " << quoted(compiler())
     << ",\n  \"ranks\": " << f.ranks << ", \"nodes\": " << f.nodes << ", \"batch\": 1, \"query_heads\": " << f.heads
     << ", \"key_heads\": " << f.key_heads << ", \"head_dim\": " << f.dim << ",\n  \"mask\": " << quoted(f.mask)
     << ", \"layout\": " << quoted(f.layout) << ", \"dtype\": " << quoted(f.dtype)
     << ", \"kernel\": " << quoted(f.kernel) << ", \"iterations\": " << f.iterations << ", \"warm_up\": " << f.warm_up
     << ",\n  \"rows\": [";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const row& r = rows[i];
    to << (i > 0 ? "," : "") << "\n    {\"topology\": " << quoted(r.topology)
       << ", \"placement\": " << quoted(r.placement) << ", \"pass\": " << quoted(orrery::name_of(r.pass))
       << ", \"tokens\": " << r.tokens << ", \"seconds_median\": " << number(r.median)
       << ", \"seconds_p99\": " << number(r.p99) << ", \"seconds_compute_alone\": " << number(r.alone)
       << ", \"tokens_per_second\": " << number(r.tokens_per_second)
       << ", \"flop_per_second\": " << number(r.flop_per_second) << ", \"bytes_sent\": " << r.bytes_sent
       << ", \"algbw_bytes_per_second\": " << number(r.algbw) << ", \"busbw_bytes_per_second\": " << number(r.busbw)
       << ", \"overlap_efficiency\": " << number(r.overlap)
       << ", \"max_error\": " << (r.error ? number(*r.error) : "null") << ", \"steps\": " << r.steps
       << ", \"peak_slots\": " << r.slots << ", \"node_egress_units\": " << number(r.egress)
       << ", \"workspace_bytes\": " << r.workspace << "}";
  }
  to << "\n  ]\n}\n";
}

template <class Kernel, class Ranks, class Mask>
int run(const Ranks& ranks, const flags& f, std::ostream* json, const Mask& mask) {
  using T = typename Kernel::storage;
  std::vector<row> all;
  std::string too_large;
  for (std::int64_t tokens = f.smallest; tokens <= f.largest; tokens *= f.factor) {
    std::optional<shard<T>> whole;
    if (f.check) whole = ranks.template whole<T>(shape_of(f, tokens), mask, f.passes.back() != pass::forward);
    for (const candidate& topology : f.topologies) {
      for (const row& r : measure<Kernel>(ranks, f, topology, tokens, mask, whole ? &*whole : nullptr)) {
        print(r);
        all.push_back(r);
        const double most = tolerance<T>(tokens);
        if (!r.error || *r.error <= most) continue;
        too_large += "bench_topology: the error of " + r.topology + ", " + orrery::name_of(r.pass) + ", " +
                     std::to_string(r.tokens) + " tokens is " + number(*r.error) + ", larger than " + number(most) +
                     "\n";
      }
    }
  }
  if (json != nullptr) {
    write_json(*json, ranks, f, all);
    json->flush();
    if (!*json) throw std::runtime_error{"--json: cannot write " + f.json};
  }
  if (f.check && too_large.empty() && ranks.first()) std::puts("# all errors are no more than rounding");
  std::fflush(stdout);
  std::cerr << too_large;
  return too_large.empty() ? 0 : 1;
}

/// Everything. `Ranks` has
///
/// - `transport` and `described`, what ranks are; `can()`, what they can do; `computes_with()`, with which instructions
///   or devices;
/// - `count()`, how many there are (0: as many as the flags say), `first()`, whether this process has rank 0 and so
///   prints; and `run(ranks, body)`, which calls `body` with each rank's world;
/// - `with_kernel(flags, work)`, which calls `work(std::type_identity<Kernel>{})` with the kernel that they name;
/// - `tensors<T>(world, shape, positions)`, a rank's shard; `nothing_moves<T>(world)`, the transport of
/// `compute_only.hpp`;
///   `complete(world)`, which returns when the rank's calls have done their work;
/// - `whole<T>(shape, mask, backward)`, the whole sequence with the results of one rank, in the host's memory.
template <class Ranks>
int run(const Ranks& ranks, const std::vector<std::string>& arguments) {
  flags f;
  std::ofstream json;
  try {
    f = read_flags(arguments, ranks.count(), Ranks::can());
    if (f.help) {
      if (ranks.first()) std::fputs(usage(), stdout);
      return 0;
    }
    if (!f.json.empty() && ranks.first()) {
      json.open(f.json);
      if (!json) throw std::invalid_argument{"--json: cannot write " + f.json};
    }
  } catch (const std::invalid_argument& e) {
    if (ranks.first()) std::cerr << "bench_topology: " << e.what() << '\n';
    return 2;
  }
  if (ranks.first()) print_header(f, ranks);
  std::ostream* const to = json.is_open() ? &json : nullptr;
  return ranks.with_kernel(f, [&]<class Kernel>(std::type_identity<Kernel>) {
    return f.mask == "causal" ? run<Kernel>(ranks, f, to, orrery::causal{}) : run<Kernel>(ranks, f, to, orrery::full{});
  });
}

}  // namespace bench
