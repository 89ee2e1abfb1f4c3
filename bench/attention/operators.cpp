// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The attention operator: what it adds to its kernel on one rank, what a ring of eight ranks on two cores adds to the
// kernel on two threads, and each topology, forward and backward. Ranks are threads. `ratio` is the operator's time /
// the bare kernel's, the median over neighbours in time; `cpu_ratio` the same of the process's processor time, which
// other tenants hardly disturb.
#include <cstdint>
#include <ctime>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "orrery/orrery.hpp"

#include "common/problem.hpp"
#include "common/statistics.hpp"

namespace {

using bench::clock_type;
using orrery::pass;
using kernel = orrery::flash<float>;

orrery::attention_shape shape_of(std::int64_t length) {
  orrery::attention_shape shape;
  shape.length = length;
  shape.query_heads = 8;
  shape.head_dim = 64;
  return shape;
}

struct instant {
  clock_type::time_point time = clock_type::now();
  std::clock_t cpu = std::clock();
};

/// One call on each rank's shard, in turn with `bare`, if that is not null.
template <class Topology, class Mask, class Layout>
void call_operator(benchmark::State& state, int ranks, pass p, const Mask& mask, const Layout& layout,
                   const std::function<void()>& bare) {
  const orrery::attention_shape shape = shape_of(state.range(0));
  std::vector<double> ratios, cpu_ratios;
  bool more = true;
  orrery::threads::run(ranks, [&](auto& world) {
    orrery::attention<Topology, kernel> attend{world, shape, mask, layout};
    bench::shard<float> mine{shape, attend.query_positions()};
    mine.forward(attend);
    mine.call(attend, p);
    const auto call = [&] {
      world.barrier();
      if (!more) return false;
      mine.call(attend, p);
      world.barrier();
      return true;
    };
    if (world.rank() != 0) {
      while (call()) {}
      return;
    }
    for ([[maybe_unused]] auto _ : state) {
      const instant begin;
      call();
      const instant middle;
      state.SetIterationTime(bench::seconds_between(begin.time, middle.time));
      if (!bare) continue;
      bare();
      const instant end;
      ratios.push_back(bench::seconds_between(begin.time, middle.time) / bench::seconds_between(middle.time, end.time));
      cpu_ratios.push_back(static_cast<double>(middle.cpu - begin.cpu) / static_cast<double>(end.cpu - middle.cpu));
    }
    more = false;
    call();
  });
  const bool causal = mask.name() == "causal";
  state.counters["flop/s"] =
      benchmark::Counter(bench::flop_of(shape, causal, p), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(shape.length), benchmark::Counter::kIsIterationInvariantRate);
  if (!bare) return;
  state.counters["ratio"] = bench::median(ratios);
  state.counters["cpu_ratio"] = bench::median(cpu_ratios);
}

template <class Topology>
void topology(benchmark::State& state, pass p) {
  call_operator<Topology>(state, 8, p, orrery::causal{}, orrery::zigzag{}, nullptr);
}

/// One rank communicates nothing: what is left is the operator itself.
void one_rank(benchmark::State& state, pass p) {
  const orrery::attention_shape shape = shape_of(state.range(0));
  bench::shard<float> whole{shape, orrery::contiguous::shard(0, 1, shape.length)};
  bench::call_kernel<kernel>(whole, pass::forward, orrery::causal{}, {});
  call_operator<orrery::ring>(state, 1, p, orrery::causal{}, orrery::contiguous{},
                              [&] { bench::call_kernel<kernel>(whole, p, orrery::causal{}, {}); });
}

/// Eight ranks against the bare kernel on two threads, which computes the same and exchanges nothing.
template <class Mask, class Layout>
void ring_of_eight(benchmark::State& state, pass p) {
  const orrery::attention_shape shape = shape_of(state.range(0));
  bench::shard<float> whole{shape, orrery::contiguous::shard(0, 1, shape.length)};
  orrery::thread_team team{2};
  bench::call_kernel<kernel>(whole, pass::forward, Mask{}, {.team = &team});
  call_operator<orrery::ring>(state, 8, p, Mask{}, Layout{},
                              [&] { bench::call_kernel<kernel>(whole, p, Mask{}, {.team = &team}); });
}

/// Times are those of the operator's calls; the processor time is that of all ranks, and of the kernel beside them.
benchmark::internal::Benchmark* timed(benchmark::internal::Benchmark* one) {
  return one->ArgName("tokens")->UseManualTime()->MeasureProcessCPUTime()->Unit(benchmark::kMillisecond);
}

template <class Topology>
void add_topology() {
  for (const pass p : {pass::forward, pass::circulate_keys, pass::circulate_queries}) {
    const std::string name = "topology/" + orrery::name_of(Topology{}) + "/" + orrery::name_of(p);
    timed(benchmark::RegisterBenchmark(name.c_str(), topology<Topology>, p))->Arg(2048);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const pass p : {pass::forward, pass::circulate_keys}) {
    const char* const name = p == pass::forward ? "forward" : "backward";
    const auto add = [&](const char* what, auto* run, std::int64_t tokens, int pairs) {
      timed(benchmark::RegisterBenchmark((std::string{what} + "/" + name).c_str(), run, p))
          ->Arg(tokens)
          ->Iterations(pairs);
    };
    for (const auto& [tokens, pairs] : {std::pair{256, 100}, {1024, 20}, {4096, 5}, {16384, 3}}) {
      if (tokens <= 4096) add("one_rank", one_rank, tokens, pairs);
      add("ring_of_eight/full", ring_of_eight<orrery::full, orrery::contiguous>, tokens, pairs);
      add("ring_of_eight/zigzag_causal", ring_of_eight<orrery::causal, orrery::zigzag>, tokens, pairs);
    }
  }
  add_topology<orrery::ring>();
  add_topology<orrery::all_gather>();
  add_topology<orrery::double_ring<4>>();
  add_topology<orrery::wallfacer<2>>();
  add_topology<orrery::concentric<2>>();
  add_topology<orrery::concentric<4, 2>>();
  add_topology<orrery::ulysses>();
  add_topology<orrery::usp<4>>();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
