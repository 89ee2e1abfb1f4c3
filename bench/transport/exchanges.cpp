// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Exchanges of each transport, without any computation: a hop of a ring, and gathering everyone's block. As nccl-tests
// count, algbw = bytes / time and busbw = algbw × factor. Hop: bytes that a rank sends, factor 1. Gather: bytes that a
// rank has in the end, factor (ranks - 1) / ranks.
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include <benchmark/benchmark.h>

#include "orrery/schedule/builder.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/threads.hpp"

#include "common/statistics.hpp"

namespace {

struct hop {
  static std::string name() { return "hop"; }
  static double bytes(double block, int) { return block; }
  static double factor(int) { return 1; }
  static orrery::program program(int rank, int world) {
    orrery::builder schedule{rank, world};
    schedule.shift(orrery::key(rank), +1);
    schedule.next_step();
    return schedule;
  }
};

struct gather {
  static std::string name() { return "gather"; }
  static double bytes(double block, int ranks) { return block * ranks; }
  static double factor(int ranks) { return static_cast<double>(ranks - 1) / ranks; }
  static orrery::program program(int rank, int world) {
    orrery::builder schedule{rank, world};
    schedule.all_gather({0, world}, orrery::schedule::side::key);
    schedule.next_step();
    return schedule;
  }
};

/// Every rank's own block is one buffer, and each block that comes has one.
template <class Memory>
struct buffers {
  buffers(const orrery::program& p, std::int64_t bytes) : own{bytes} {
    for (int r = 0; r < p.received.size(); ++r) received.emplace_back(bytes);
    for (const orrery::schedule::exchange& x : p.exchanges) {
      orrery::exchange_pieces& one = pieces.emplace_back();
      for (int s = 0; s < x.sent.count; ++s) one.sent.push_back({own.data(), bytes});
      for (int r = x.received.first; r < x.received.end(); ++r) {
        one.received.push_back({received[static_cast<std::size_t>(r)].data(), bytes});
      }
    }
  }

  Memory own;
  std::vector<Memory> received;
  std::vector<orrery::exchange_pieces> pieces;
};

// A transport is a function that calls its argument with each rank's world.
struct threads {
  static std::string name() { return "threads"; }
  template <class Body>
  static void run(int ranks, const Body& body) {
    orrery::threads::run(ranks, body);
  }
};

struct counted_threads {
  static std::string name() { return "counted<threads>"; }
  template <class Body>
  static void run(int ranks, const Body& body) {
    orrery::threads::run(ranks, [&](auto& world) {
      orrery::counted counting{world};
      body(counting);
    });
  }
};

/// All ranks post and await once for each call; a call's time is rank 0's, between two barriers.
template <class Transport, class Pattern>
void exchange(benchmark::State& state, int ranks) {
  const std::int64_t bytes = state.range(0);
  bool more = true;
  Transport::run(ranks, [&](auto& world) {
    using memory = typename std::remove_reference_t<decltype(world)>::memory;
    orrery::program p = Pattern::program(world.rank(), world.size());
    orrery::schedule::finish(p);
    buffers<memory> mine{p, bytes};
    auto channel = world.open(p, mine.pieces);
    const auto call = [&] {
      channel.begin();
      for (int e = 0; e < p.exchanges.size(); ++e) channel.post(e);
      for (int e = 0; e < p.exchanges.size(); ++e) channel.await(e);
    };
    call();
    if (world.rank() != 0) {
      while (true) {
        world.barrier();
        if (!more) return;
        call();
        world.barrier();
      }
    }
    for ([[maybe_unused]] auto _ : state) {
      world.barrier();
      const auto begin = bench::clock_type::now();
      call();
      world.barrier();
      state.SetIterationTime(bench::seconds_between(begin, bench::clock_type::now()));
    }
    more = false;
    world.barrier();
  });
  const double size = Pattern::bytes(static_cast<double>(bytes), ranks);
  using benchmark::Counter;
  state.counters["algbw"] = Counter(size, Counter::kIsIterationInvariantRate);
  state.counters["busbw"] = Counter(size * Pattern::factor(ranks), Counter::kIsIterationInvariantRate);
}

template <class Transport, class Pattern>
void add(int ranks, std::int64_t largest) {
  const std::string name = Transport::name() + "/" + Pattern::name() + "/ranks:" + std::to_string(ranks);
  benchmark::RegisterBenchmark(name.c_str(), exchange<Transport, Pattern>, ranks)
      ->ArgName("bytes")
      ->RangeMultiplier(4)
      ->Range(1 << 10, largest)
      ->UseManualTime()
      ->MeasureProcessCPUTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  constexpr std::int64_t mebi = std::int64_t{1} << 20;
  add<threads, hop>(2, 64 * mebi);
  add<threads, hop>(8, 64 * mebi);
  add<threads, gather>(8, 16 * mebi);
  add<counted_threads, hop>(2, 64 * mebi);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
