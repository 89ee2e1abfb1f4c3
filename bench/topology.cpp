// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What each topology costs and gives on this machine: one row for each topology and sequence length. See --help.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
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

#include "orrery/orrery.hpp"

#include "alone.hpp"
#include "figures.hpp"
#include "problem.hpp"
#include "topology/candidates.hpp"
#include "topology/flags.hpp"

namespace {

using bench::candidate;
using bench::clock_type;
using bench::flags;
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
  orrery::pass pass = pass::forward;
  std::int64_t tokens = 0;
  double median = 0;  // seconds
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

/// The largest error that is rounding. Sums of n terms err by about sqrt(n) roundings; a few hundred terms by no more
/// than 2e-6 (float) or 1e-10 (double).
template <class T>
double tolerance(std::int64_t tokens) {
  return (std::is_same_v<T, double> ? 1e-10 : 2e-6) * std::sqrt(std::fmax(1, static_cast<double>(tokens) / 256));
}

orrery::attention_shape shape_of(const flags& f, std::int64_t tokens) {
  orrery::attention_shape shape;
  shape.length = tokens;
  shape.query_heads = f.heads;
  shape.key_heads = f.key_heads;
  shape.head_dim = f.dim;
  shape.circulate = f.backward;
  return shape;
}

/// The results of one rank that has the whole sequence.
template <class T, class Mask>
bench::shard<T> whole_sequence(const orrery::attention_shape& shape, const Mask& mask, bool backward) {
  bench::shard<T> whole{shape, orrery::contiguous::shard(0, 1, shape.length)};
  orrery::threads::run(1, [&](auto& world) {
    orrery::attention<orrery::ring, orrery::flash<T>> attend{world, shape, mask};
    whole.forward(attend);
    if (backward) whole.backward(attend);
  });
  return whole;
}

/// What a call's ranks have done, each in its own place; read between barriers.
struct timings {
  explicit timings(int ranks) : begin(static_cast<std::size_t>(ranks)), end(begin) {}

  std::vector<clock_type::time_point> begin;
  std::vector<clock_type::time_point> end;

  /// From the first rank's beginning to the last rank's end.
  [[nodiscard]] double seconds() const {
    return bench::seconds_between(*std::min_element(begin.begin(), begin.end()),
                                  *std::max_element(end.begin(), end.end()));
  }
};

template <class T, class Mask>
std::vector<row> measure(const flags& f, const candidate& topology, std::int64_t tokens, const Mask& mask,
                         const bench::shard<T>* whole) {
  const orrery::attention_shape shape = shape_of(f, tokens);
  const chosen_layout layout{f.layout};
  const auto ranks = static_cast<std::size_t>(f.ranks);
  const std::size_t passes = f.passes.size();
  std::vector<std::vector<double>> total(passes), alone(passes);
  std::vector<std::vector<std::int64_t>> bytes(passes, std::vector<std::int64_t>(ranks));
  std::vector<std::vector<double>> errors(passes, std::vector<double>(ranks));
  std::vector<std::int64_t> workspace(ranks);
  timings now{f.ranks};

  orrery::threads::options how;
  how.deadline = 3600;
  orrery::threads::run(f.ranks, how, [&](auto& world) {
    const auto me = static_cast<std::size_t>(world.rank());
    orrery::counted counting{world};
    orrery::attention<candidate, orrery::flash<T>> attend{counting, shape, mask, layout, topology};
    bench::unmoved<T, std::remove_reference_t<decltype(world)>> nothing_moves{world};
    orrery::attention<candidate, bench::tiles_of<orrery::flash<T>>> compute{nothing_moves, shape, mask, layout,
                                                                            topology};
    bench::shard<T> mine{shape, attend.query_positions()};
    bench::shard<T> meaningless{shape, attend.query_positions()};
    workspace[me] = attend.workspace_bytes();
    if (f.passes[0] != pass::forward) mine.forward(attend);

    const auto timed = [&](auto&& call, std::vector<double>* kept) {
      world.barrier();
      now.begin[me] = clock_type::now();
      call();
      now.end[me] = clock_type::now();
      world.barrier();
      if (me == 0 && kept != nullptr) kept->push_back(now.seconds());
    };
    for (std::size_t p = 0; p < passes; ++p) {
      for (int i = -f.warm_up; i < f.iterations; ++i) {
        counting.reset();
        timed([&] { mine.call(attend, f.passes[p]); }, i < 0 ? nullptr : &total[p]);
        bytes[p][me] = counting.bytes_sent();
        // Neighbours in time, because clocks and other tenants vary.
        timed([&] { meaningless.call(compute, f.passes[p]); }, i < 0 ? nullptr : &alone[p]);
      }
      if (whole != nullptr) errors[p][me] = mine.error_against(*whole, f.passes[p]);
    }
  });

  std::vector<row> rows;
  for (std::size_t p = 0; p < passes; ++p) {
    const orrery::traffic_report traffic = orrery::traffic(
        topology, f.ranks, f.passes[p], static_cast<double>(f.heads) / static_cast<double>(f.key_heads));
    row r;
    r.topology = topology.title;
    r.pass = f.passes[p];
    r.tokens = tokens;
    r.median = bench::median(total[p]);
    r.p99 = bench::quantile(total[p], 0.99);
    r.alone = bench::median(alone[p]);
    r.overlap = r.alone / r.median;
    r.tokens_per_second = static_cast<double>(tokens) / r.median;
    r.flop_per_second = bench::flop_of(shape, f.mask == "causal", r.pass) / r.median;
    r.bytes_sent = *std::max_element(bytes[p].begin(), bytes[p].end());
    const double tensors = r.pass == pass::forward ? 2 : 4;  // K, V and their gradients
    const double size = tensors * static_cast<double>(tokens * f.key_heads * f.dim) * static_cast<double>(sizeof(T));
    r.algbw = size / r.median;
    r.busbw = static_cast<double>(r.bytes_sent) / r.median;
    if (whole != nullptr) r.error = *std::max_element(errors[p].begin(), errors[p].end());
    r.steps = traffic.steps;
    r.slots = traffic.peak_slots;
    r.egress = traffic.node_egress(f.ranks / f.nodes);
    r.workspace = *std::max_element(workspace.begin(), workspace.end());
    rows.push_back(r);
  }
  return rows;
}

std::string processor() {
  std::ifstream information{"/proc/cpuinfo"};
  for (std::string line; std::getline(information, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

std::string compiler() {
#if defined(__clang__)
  return __VERSION__;
#else
  return std::string{"g++ "} + __VERSION__;
#endif
}

const char* instructions() {
  switch (orrery::flash<float>::instructions()) {
    case orrery::instruction_set::avx512:
      return "AVX-512";
    case orrery::instruction_set::avx2:
      return "AVX2";
    default:
      return "baseline";
  }
}

void print_header(const flags& f) {
  std::printf("# bench_topology: %d ranks, threads of one process; %s %s; %s\n", f.ranks, f.mask.c_str(),
              f.layout.c_str(), f.dtype.c_str());
  std::printf("# machine: %s, %u cores, %s; compiler: %s\n", processor().c_str(), std::thread::hardware_concurrency(),
              instructions(), compiler().c_str());
  std::printf("# shape: batch 1, %lld query heads, %lld key heads, dim %lld; %d calls after %d warm-up\n",
              static_cast<long long>(f.heads), static_cast<long long>(f.key_heads), static_cast<long long>(f.dim),
              f.iterations, f.warm_up);
  std::puts("#");
  std::puts("# time     of a call: from the first rank's beginning to the last rank's end");
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
  std::printf("# %-29s %-17s %8s %10s %10s %10s %8s %9s %8s %8s %8s %9s %6s %6s %7s\n", "topology", "pass", "length",
              "time", "p99", "speed", "speed", "sent", "algbw", "busbw", "overlap", "error", "steps", "slots",
              "egress");
  std::printf("# %-29s %-17s %8s %10s %10s %10s %8s %9s %8s %8s %8s %9s %6s %6s %7s\n", "", "", "(tokens)", "(ms)",
              "(ms)", "(tokens/s)", "(Gflop/s)", "(MB)", "(GB/s)", "(GB/s)", "(%)", "", "", "", "(units)");
}

void print(const row& r) {
  char error[32] = "-";
  if (r.error) std::snprintf(error, sizeof error, "%.1e", *r.error);
  std::printf("  %-29s %-17s %8lld %10.3f %10.3f %10.0f %9.1f %8.3f %8.3f %8.3f %8.1f %9s %6d %6d %7.2f\n",
              r.topology.c_str(), orrery::name_of(r.pass), static_cast<long long>(r.tokens), r.median * 1e3,
              r.p99 * 1e3, r.tokens_per_second, r.flop_per_second * 1e-9, static_cast<double>(r.bytes_sent) * 1e-6,
              r.algbw * 1e-9, r.busbw * 1e-9, r.overlap * 100, error, r.steps, r.slots, r.egress);
  std::fflush(stdout);
}

std::string quoted(const std::string& text) {
  std::string all = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') all += '\\';
    if (static_cast<unsigned char>(c) >= ' ') all += c;
  }
  return all + '"';
}

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

void write_json(std::ostream& to, const flags& f, const std::vector<row>& rows) {
  to << "{\n  \"transport\": \"threads\", \"processor\": " << quoted(processor())
     << ", \"cores\": " << std::thread::hardware_concurrency() << ", \"instructions\": " << quoted(instructions())
     << ", \"compiler\": " << quoted(compiler()) << ",\n  \"ranks\": " << f.ranks << ", \"nodes\": " << f.nodes
     << ", \"batch\": 1, \"query_heads\": " << f.heads << ", \"key_heads\": " << f.key_heads
     << ", \"head_dim\": " << f.dim << ",\n  \"mask\": " << quoted(f.mask) << ", \"layout\": " << quoted(f.layout)
     << ", \"dtype\": " << quoted(f.dtype) << ", \"iterations\": " << f.iterations << ", \"warm_up\": " << f.warm_up
     << ",\n  \"rows\": [";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const row& r = rows[i];
    to << (i > 0 ? "," : "") << "\n    {\"topology\": " << quoted(r.topology)
       << ", \"pass\": " << quoted(orrery::name_of(r.pass)) << ", \"tokens\": " << r.tokens
       << ", \"seconds_median\": " << number(r.median) << ", \"seconds_p99\": " << number(r.p99)
       << ", \"seconds_compute_alone\": " << number(r.alone)
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

template <class T, class Mask>
int run(const flags& f, std::ostream* json, const Mask& mask) {
  std::vector<row> all;
  std::string too_large;
  for (std::int64_t tokens = f.smallest; tokens <= f.largest; tokens *= f.factor) {
    std::optional<bench::shard<T>> whole;
    if (f.check) whole = whole_sequence<T>(shape_of(f, tokens), mask, f.passes.back() != pass::forward);
    for (const candidate& topology : f.topologies) {
      for (const row& r : measure<T>(f, topology, tokens, mask, whole ? &*whole : nullptr)) {
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
    write_json(*json, f, all);
    json->flush();
    if (!*json) throw std::runtime_error{"--json: cannot write " + f.json};
  }
  if (f.check && too_large.empty()) std::puts("# all errors are no more than rounding");
  std::fflush(stdout);
  std::cerr << too_large;
  return too_large.empty() ? 0 : 1;
}

template <class T>
int run(const flags& f, std::ostream* json) {
  return f.mask == "causal" ? run<T>(f, json, orrery::causal{}) : run<T>(f, json, orrery::full{});
}

}  // namespace

int main(int argc, char** argv) {
  flags f;
  std::ofstream json;
  try {
    f = bench::read_flags({argv + 1, argv + argc});
    if (f.help) {
      std::fputs(bench::usage(), stdout);
      return 0;
    }
    if (!f.json.empty()) {
      json.open(f.json);
      if (!json) throw std::invalid_argument{"--json: cannot write " + f.json};
    }
  } catch (const std::invalid_argument& e) {
    std::cerr << "bench_topology: " << e.what() << '\n';
    return 2;
  }
  try {
    print_header(f);
    std::ostream* const to = f.json.empty() ? nullptr : &json;
    return f.dtype == "double" ? run<double>(f, to) : run<float>(f, to);
  } catch (const std::exception& e) {
    std::cerr << "bench_topology: " << e.what() << '\n';
    return 1;
  }
}
