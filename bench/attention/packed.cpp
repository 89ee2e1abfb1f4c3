// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What the next batch of packed documents costs before its first call: to plan it, to prove the plan, and to give it to
// an operator on ranks that are threads of this process. Batches are drawn anew for each iteration, from 20 seeds.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "orrery/attention/relation_of.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/orrery.hpp"
#include "orrery/topology/precomputed.hpp"
#include "orrery/tune/pack.hpp"
#include "orrery/verify/detail/specialize.hpp"

#include "support/document_lengths.hpp"

namespace {

using orrery::pass;
using batch = std::vector<std::int64_t>;

constexpr unsigned seeds = 20;

std::vector<batch> batches(std::int64_t length) {
  std::vector<batch> all;
  for (unsigned seed = 0; seed < seeds; ++seed) all.push_back(document_lengths::of(length, seed));
  return all;
}

auto mask_of(const batch& lengths) { return orrery::documents{lengths} & orrery::causal{}; }

orrery::schedule::relation visible_pairs(const batch& lengths, std::int64_t length, const orrery::assignment& work) {
  orrery::schedule::list<orrery::segments> shards;
  const orrery::contiguous layout;
  const std::string wrong = orrery::detail::layout_source{layout}.deal(work.world, length, work.chunks, shards);
  return orrery::detail::relation_of(mask_of(lengths), shards, shards, work.chunks);
}

/// Of 16,384 tokens a rank.
void plan(benchmark::State& state) {
  const auto ranks = static_cast<int>(state.range(0));
  const std::vector<batch> all = batches(std::int64_t{16384} * ranks);
  std::size_t next = 0;
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(orrery::pack(all[next++ % seeds], ranks).busiest_pairs);
  }
}

/// And of both passes the programs, their pruning and the proof. Counters: milliseconds.
void plan_and_prove(benchmark::State& state) {
  const auto ranks = static_cast<int>(state.range(0));
  const std::int64_t length = std::int64_t{16384} * ranks;
  const std::vector<batch> all = batches(length);
  std::size_t next = 0;
  std::vector<double> milliseconds;
  for ([[maybe_unused]] auto _ : state) {
    const batch& lengths = all[next++ % seeds];
    const auto begin = std::chrono::steady_clock::now();
    const orrery::assignment work = orrery::pack(lengths, ranks).work;
    const orrery::precomputed topology{"packed", work};
    const orrery::schedule::relation visible = visible_pairs(lengths, length, work);
    for (const pass p : {pass::forward, pass::circulate_keys}) {
      if (!orrery::detail::specialize(topology, ranks, p, visible).found.ok()) state.SkipWithError("not proven");
    }
    milliseconds.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  state.counters["median"] = milliseconds[milliseconds.size() / 2];
  state.counters["worst"] = milliseconds.back();
}

/// Gives an operator plans in turn. Counts the time of the slowest rank, in which all agree. `known`: two plans, both
/// of which this process has proven; else 20, which it has forgotten by the time they come again.
void replan(benchmark::State& state, bool known) {
  const auto ranks = static_cast<int>(state.range(0));
  const std::int64_t length = std::int64_t{128} * ranks;
  std::vector<batch> all = batches(length);
  if (known) all.resize(2);
  std::vector<orrery::precomputed> plans;
  for (const batch& lengths : all) plans.emplace_back("packed", orrery::pack(lengths, ranks).work);
  orrery::threads::run(ranks, [&](auto& world) {
    orrery::attention<orrery::precomputed, orrery::reference<float>> attend{
        world, {.length = length, .query_heads = 1, .head_dim = 8}, mask_of(all[0]), orrery::contiguous{}, plans[0]};
    std::size_t next = 0;
    const auto measured = [&] {
      ++next;
      const batch& lengths = all[next % all.size()];
      world.barrier();
      const auto begin = std::chrono::steady_clock::now();
      attend.replan(world, mask_of(lengths), orrery::contiguous{}, plans[next % all.size()]);
      world.barrier();
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    measured();
    bool going = true;
    while (true) {
      float again = 0;
      if (world.rank() == 0) again = (going = state.KeepRunning()) ? 1.0F : 0.0F;
      world.all_reduce_sum(std::span{&again, 1});
      if (again == 0) break;
      const double seconds = measured();
      if (world.rank() == 0) state.SetIterationTime(seconds);
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const int ranks : {16, 64}) {
    benchmark::RegisterBenchmark("plan", plan)->ArgName("ranks")->Arg(ranks)->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark("plan_and_prove", plan_and_prove)
        ->ArgName("ranks")
        ->Arg(ranks)
        ->Unit(benchmark::kMillisecond);
  }
  for (const bool known : {true, false}) {
    benchmark::RegisterBenchmark(known ? "replan_known" : "replan_new", replan, known)
        ->ArgName("ranks")
        ->Arg(8)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
