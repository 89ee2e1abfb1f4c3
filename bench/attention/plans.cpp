// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What a schedule costs before anything is run, against the number of ranks: to write and finish one rank's program and
// those of all ranks, to prove them, to specialize them for contiguous shards under a causal mask and under a window of
// two shards before the query's (to write all, prune, finish and prove them), and to construct an operator on ranks
// that are threads of this process (with the threads' own start and end), the first of its topology and another one.
#include <string>

#include <benchmark/benchmark.h>

#include "orrery/orrery.hpp"
#include "orrery/verify/detail/specialize.hpp"

namespace {

using orrery::pass;

template <class Topology>
void plan_of_one_rank(benchmark::State& state, pass p) {
  const auto ranks = static_cast<int>(state.range(0));
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(orrery::program_of(Topology{}, ranks / 2, ranks, p).exchanges.items);
  }
}

template <class Topology>
void plans_of_all_ranks(benchmark::State& state, pass p) {
  const auto ranks = static_cast<int>(state.range(0));
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(orrery::programs_of(Topology{}, ranks, p).items);
  }
}

template <class Topology>
void verify(benchmark::State& state, pass p) {
  const auto ranks = static_cast<int>(state.range(0));
  for ([[maybe_unused]] auto _ : state) {
    const orrery::verdict found = orrery::verify(Topology{}, ranks, p);
    if (!found.ok()) state.SkipWithError(found.message().c_str());
  }
}

/// `before`: how many shards before its own a query sees.
template <class Topology>
void specialize(benchmark::State& state, pass p, int before) {
  const auto ranks = static_cast<int>(state.range(0));
  const auto visible =
      orrery::schedule::relation::of([&](int query, int key) { return key <= query && key >= query - before; }, ranks);
  for ([[maybe_unused]] auto _ : state) {
    const auto made = orrery::detail::specialize(Topology{}, ranks, p, visible);
    if (!made.found.ok()) state.SkipWithError(made.found.message().c_str());
  }
}

/// The topology with a number, so that a proof of one number is not one of another.
template <class Topology>
struct numbered : Topology {
  int number = 0;
  bool operator==(const numbered& other) const { return number == other.number; }
};

template <class Topology>
void construct(benchmark::State& state, pass circulate, bool first) {
  const auto ranks = static_cast<int>(state.range(0));
  static int number = 0;
  for ([[maybe_unused]] auto _ : state) {
    numbered<Topology> topology;
    topology.number = first ? ++number : 0;
    orrery::threads::run(ranks, [&](auto& world) {
      const orrery::attention<numbered<Topology>, orrery::reference<float>> attend{
          world,
          {.length = ranks, .query_heads = ranks, .head_dim = 1, .circulate = circulate},
          orrery::full{},
          orrery::contiguous{},
          topology};
      benchmark::DoNotOptimize(attend.workspace_bytes());
    });
  }
}

template <class Topology>
void add(int largest, int largest_of_all) {
  constexpr int most_threads = 64;
  for (const pass p : {pass::forward, pass::circulate_keys}) {
    const std::string name = orrery::name_of(Topology{}) + "/" + orrery::name_of(p);
    const auto ranks = [](benchmark::internal::Benchmark* one, int to) {
      return one->ArgName("ranks")->RangeMultiplier(8)->Range(8, to)->Unit(benchmark::kMillisecond);
    };
    ranks(benchmark::RegisterBenchmark(("plan_of_one_rank/" + name).c_str(), plan_of_one_rank<Topology>, p), largest);
    ranks(benchmark::RegisterBenchmark(("plans_of_all_ranks/" + name).c_str(), plans_of_all_ranks<Topology>, p),
          largest_of_all);
    ranks(benchmark::RegisterBenchmark(("verify/" + name).c_str(), verify<Topology>, p), largest);
    ranks(benchmark::RegisterBenchmark(("specialize_causal/" + name).c_str(), specialize<Topology>, p, 1 << 30),
          largest_of_all);
    ranks(benchmark::RegisterBenchmark(("specialize_window/" + name).c_str(), specialize<Topology>, p, 2),
          largest_of_all);
    if (p == pass::forward) continue;
    for (const bool first : {true, false}) {
      const std::string which = first ? "construct_first/" : "construct_another/";
      ranks(benchmark::RegisterBenchmark((which + name).c_str(), construct<Topology>, p, first), most_threads)
          ->UseRealTime();
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  add<orrery::ring>(4096, 1024);
  add<orrery::all_gather>(4096, 1024);
  add<orrery::wallfacer<2>>(4096, 1024);
  add<orrery::concentric<8>>(4096, 1024);
  add<orrery::double_ring<8>>(4096, 1024);
  add<orrery::usp<8>>(4096, 1024);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
