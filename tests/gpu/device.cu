// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The transport `device` on GPUs: the conformance suite with 1 to 16 ranks, on one GPU or on all that there are, and a
// graph of a whole step.
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_reference.cuh"
#include "orrery/layout/layout.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/transport/device.hpp"
#include "orrery/transport/device_graph.hpp"

#include "support/topologies.hpp"
#include "transport/device/conformance.hpp"

namespace {

namespace device = orrery::device;
using kernel = orrery::device_reference<double>;

void check_topologies(int world, const device::options& how) {
  static std::uint64_t seed = 0;
  const auto on_gpus = [&](int ranks, auto&& body) { device::run(ranks, how, body); };
  const std::vector<orrery::any_topology> topologies{
      orrery::ring{},           orrery::all_gather{}, orrery::wallfacer<2>{}, orrery::concentric<2>{},
      orrery::double_ring<2>{}, orrery::ulysses{},    orrery::usp<2>{},       my_ring{}};
  for (const orrery::any_topology& topology : topologies) {
    for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      if (topology.unsupported_reason(world, orrery::pass::forward) != nullptr ||
          topology.unsupported_reason(world, circulate) != nullptr)
        continue;
      const orrery::attention_shape shape{.length = 83,
                                          .query_heads = world > 8 ? 16 : 8,
                                          .key_heads = 4,
                                          .head_dim = 6,
                                          .value_dim = 5,
                                          .circulate = circulate};
      const std::string found = cuda_test::failures<orrery::any_topology, kernel, device::world>(
          on_gpus, world, shape, orrery::causal{}, orrery::zigzag{}, ++seed, topology);
      INFO(topology.name(), " over ", world, ", ", orrery::name_of(circulate));
      CHECK(found == "");
    }
  }
}

}  // namespace

TEST_CASE("results on one GPU") {
  for (const int world : {1, 2, 3, 4, 7, 8, 16}) check_topologies(world, {.devices = {0}});
}

TEST_CASE("results on all GPUs") {
  for (const int world : {2, 4, 8}) check_topologies(world, {});
}

TEST_CASE("all kernels of the program are loaded when an operator is made, not at their first launch") {
  CHECK(orrery::detail::program_kernels::count() > 0);
}

TEST_CASE("a graph, launched again and again, gives the same bits as the calls") {
  device::run(4, {.devices = {0}}, [](auto& on) {
    cuda_test::trainer<orrery::ring, kernel, device::world> mine{
        on, {.length = 256, .query_heads = 4, .head_dim = 16}, orrery::causal{}};
    mine.step();
    const std::string expected = mine.results(on);
    auto graph = device::capture(on, [&] { mine.step(); });
    for (int i = 0; i < 3; ++i) {
      graph.launch();
      if (mine.results(on) != expected)
        throw std::runtime_error{"rank " + std::to_string(on.rank()) + " has other bits"};
    }
  });
}
