// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "orrery/attention.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/transport/device.hpp"
#include "orrery/transport/device_graph.hpp"

#include "common/device_shard.hpp"
#include "common/statistics.hpp"
#include "kernels.cuh"
#include "report.hpp"
#include "sizes.hpp"
#include "topology/intervals.hpp"

namespace bench {

inline double seconds_since_epoch() {
  return std::chrono::duration<double>(clock_type::now().time_since_epoch()).count();
}

/// Seconds of `call()`, made by all ranks at once, until their streams have done it: the median. Collective.
template <class Call>
double seconds_of_all(orrery::device::world& world, int warm_up, int times, const Call& call) {
  std::vector<interval> kept;
  for (int i = -warm_up; i < times; ++i) {
    world.synchronize();
    world.barrier();
    const double begin = seconds_since_epoch();
    call();
    world.synchronize();
    const double end = seconds_since_epoch();
    world.barrier();
    if (i >= 0) kept.push_back({begin, end});
  }
  return median(seconds_of(world, kept));
}

/// Seconds for which `call()` occupies the rank's thread: the median, of the rank where it is largest. Collective.
template <class Call>
double seconds_of_host(orrery::device::world& world, int warm_up, int times, const Call& call) {
  std::vector<double> kept;
  for (int i = -warm_up; i < times; ++i) {
    world.synchronize();
    world.barrier();
    const double begin = seconds_since_epoch();
    call();
    const double end = seconds_since_epoch();
    if (i >= 0) kept.push_back(end - begin);
  }
  world.synchronize();
  return largest(world, median(kept));
}

/// The operator with several ranks on one device, as a ratio to one call of its kernel over the same work: called, and
/// launched as a graph.
template <class Kernel, class Mask, class Layout>
void measure_operator(report& to, const gpu_sizes& sizes, const Mask& mask, const Layout& layout) {
  const orrery::attention_shape shape{
      .length = sizes.operator_tokens, .query_heads = sizes.operator_heads, .head_dim = sizes.operator_dim};
  const orrery::pass passes[] = {orrery::pass::forward, orrery::pass::circulate_keys};
  double alone[2] = {};
  orrery::device::run(1, {.deadline = 600, .devices = {0}}, [&](auto& world) {
    const kernel_calls<Kernel, Mask> calls{world.stream(), shape, mask};
    for (int p = 0; p < 2; ++p) {
      alone[p] = seconds_of_all(world, sizes.warm_up, sizes.operator_times, [&] { calls.call(passes[p]); });
      calls.finish(passes[p]);
    }
  });
  for (const orrery::any_topology& topology : sizes.topologies) {
    orrery::device::run(sizes.operator_ranks, {.deadline = 600, .devices = {0}}, [&](auto& world) {
      orrery::attention<orrery::any_topology, Kernel> attend{world, shape, mask, layout, topology};
      device_shard<typename Kernel::storage> mine{world.stream(), shape, attend.query_positions()};
      for (int p = 0; p < 2; ++p) {
        const auto call = [&] { mine.call(attend, passes[p]); };
        const double called = seconds_of_all(world, sizes.warm_up, sizes.operator_times, call);
        auto graph = orrery::device::capture(world, call);
        const double launched = seconds_of_all(world, sizes.warm_up, sizes.operator_times, [&] { graph.launch(); });
        if (world.rank() != 0) continue;
        to.add("operator", {{"kernel", Kernel::name()},
                            {"topology", topology.name()},
                            {"ranks", std::int64_t{sizes.operator_ranks}},
                            {"pass", p == 0 ? "forward" : "backward"},
                            {"mask", name_of_mask(mask)},
                            {"dim", shape.head_dim},
                            {"tokens", shape.length},
                            {"heads", shape.query_heads},
                            {"kernel_ms", alone[p] * 1e3},
                            {"ms", called * 1e3},
                            {"graph_ms", launched * 1e3},
                            {"ratio", alone[p] / called},
                            {"graph_ratio", alone[p] / launched}});
      }
    });
  }
}

/// What a step costs the host's threads, called and launched as a graph: the device's work is small.
template <class Kernel>
void measure_enqueuing(report& to, const gpu_sizes& sizes) {
  const orrery::attention_shape shape{
      .length = sizes.enqueued_tokens, .query_heads = sizes.operator_heads, .head_dim = 64};
  for (const orrery::any_topology& topology : sizes.topologies) {
    orrery::device::run(sizes.operator_ranks, {.deadline = 600, .devices = {0}}, [&](auto& world) {
      orrery::attention<orrery::any_topology, Kernel> attend{world, shape, orrery::causal{}, orrery::zigzag{},
                                                             topology};
      device_shard<typename Kernel::storage> mine{world.stream(), shape, attend.query_positions()};
      for (const orrery::pass p : {orrery::pass::forward, orrery::pass::circulate_keys}) {
        const auto call = [&] { mine.call(attend, p); };
        const double called = seconds_of_host(world, sizes.warm_up, sizes.enqueued_times, call);
        auto graph = orrery::device::capture(world, call);
        const double launched = seconds_of_host(world, sizes.warm_up, sizes.enqueued_times, [&] { graph.launch(); });
        if (world.rank() != 0) continue;
        const int steps = orrery::traffic(topology, sizes.operator_ranks, p).steps;
        to.add("host", {{"topology", topology.name()},
                        {"ranks", std::int64_t{sizes.operator_ranks}},
                        {"pass", p == orrery::pass::forward ? "forward" : "backward"},
                        {"steps", std::int64_t{steps}},
                        {"us", called * 1e6},
                        {"us_per_step", called * 1e6 / steps},
                        {"graph_us", launched * 1e6},
                        {"graph_us_per_step", launched * 1e6 / steps}});
      }
    });
  }
}

}  // namespace bench
