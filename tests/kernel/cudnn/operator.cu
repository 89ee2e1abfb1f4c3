// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The adapter for cuDNN on a GPU: the conformance suite, beside device_flash, and a graph of a whole step.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_cudnn.cuh"
#include "orrery/kernel/device_flash.cuh"
#include "orrery/layout/layout.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/transport/device.hpp"
#include "orrery/transport/device_graph.hpp"

#include "kernel/cudnn/engine.hpp"
#include "support/topologies.hpp"
#include "transport/device/conformance.hpp"

namespace {

namespace device = orrery::device;
using orrery::bfloat16;
template <class T>
using cudnn = orrery::device_cudnn<T, cudnn_test::engine>;

template <class Kernel>
void check(int world, const orrery::attention_shape& shape, std::int64_t offset, const conformance::any_layout& layout,
           const orrery::any_topology& topology) {
  static std::uint64_t seed = 0;
  const device::options one_gpu{.devices = {0}};
  const auto on_gpu = [&](int ranks, auto&& body) { device::run(ranks, one_gpu, body); };
  const std::string kernel = Kernel::name(), of_topology = topology.name(), of_layout = layout.name();
  INFO(kernel, ", ", of_topology, " over ", world, ", offset ", offset, ", ", of_layout);
  CHECK(cuda_test::failures<orrery::any_topology, Kernel, device::world>(on_gpu, world, shape, orrery::causal{offset},
                                                                         layout, ++seed, topology) == "");
}

}  // namespace

TEST_CASE("results over topologies, both backwards") {
  const std::vector<orrery::any_topology> topologies{orrery::ring{},         orrery::all_gather{},
                                                     orrery::wallfacer<2>{}, orrery::concentric<2>{},
                                                     orrery::ulysses{},      orrery::usp<2>{}};
  for (const int world : {1, 2, 4, 8}) {
    for (const orrery::any_topology& topology : topologies) {
      for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
        if (topology.unsupported_reason(world, orrery::pass::forward) != nullptr ||
            topology.unsupported_reason(world, circulate) != nullptr) {
          continue;
        }
        check<cudnn<bfloat16>>(
            world,
            {.batch = 2, .length = 203, .query_heads = 8, .key_heads = 4, .head_dim = 64, .circulate = circulate}, 0,
            orrery::zigzag{}, topology);
      }
    }
  }
}

TEST_CASE("results of masks, layouts, head dimensions and types") {
  const std::vector<conformance::any_layout> layouts{orrery::contiguous{}, orrery::zigzag{}, orrery::striped<1>{}};
  for (const conformance::any_layout& layout : layouts) {
    for (const std::int64_t offset : {0, 37, -50, 100000}) {
      const orrery::attention_shape shape{
          .length = 300, .query_heads = 4, .key_heads = 2, .head_dim = 128, .key_length = 333};
      check<cudnn<bfloat16>>(3, shape, offset, layout, orrery::ring{});
      check<cudnn<orrery::float16>>(3, shape, offset, layout, orrery::ring{});
    }
  }
  for (const std::int64_t dim : {8, 40, 96, 128}) {
    check<cudnn<bfloat16>>(2, {.length = 130, .query_heads = 2, .head_dim = dim, .value_dim = 64}, 0, orrery::zigzag{},
                           orrery::ring{});
  }
}

TEST_CASE("the same results as device_flash, of thousands of tokens") {
  const orrery::attention_shape shape{.length = 2048, .query_heads = 8, .key_heads = 2, .head_dim = 128};
  const auto p = oracle::random_problem<bfloat16>(conformance::oracle_shape(shape), 6);
  const auto results = [&]<class Kernel>(const Kernel&) {
    std::vector<std::vector<float>> all;
    device::run(1, {.devices = {0}}, [&](auto& on) {
      orrery::attention<orrery::ring, Kernel> attend{on, shape, orrery::causal{}};
      conformance::rank_tensors<Kernel> host{p, attend.query_positions(), attend.key_positions(),
                                             conformance::trainer_memory::of(6)};
      cuda_test::device_tensors<Kernel> tensors{host, on.stream()};
      tensors.forward(attend);
      tensors.backward(attend);
      tensors.fetch();
      on.synchronize();
      for (const auto* one : {&host.out, &host.grad_q, &host.grad_k, &host.grad_v}) {
        std::vector<float> numbers;
        for (const bfloat16 x : conformance::values(*one)) numbers.push_back(static_cast<float>(x));
        all.push_back(numbers);
      }
      all.push_back(host.lse.values());
    });
    return all;
  };
  const auto mine = results(cudnn<bfloat16>{});
  const auto other = results(orrery::device_flash<bfloat16, 128>{});
  for (std::size_t tensor = 0; tensor < mine.size(); ++tensor) {
    float largest = 0, distance = 0;
    for (std::size_t i = 0; i < mine[tensor].size(); ++i) {
      largest = (std::max)(largest, std::abs(other[tensor][i]));
      if (!(std::abs(mine[tensor][i] - other[tensor][i]) <= distance)) {
        distance = std::abs(mine[tensor][i] - other[tensor][i]);
      }
    }
    INFO(tensor);
    CHECK(distance <= 0x1p-6f * largest);
  }
}

TEST_CASE("a graph, launched again and again, gives the same bits as the calls") {
  device::run(4, {.devices = {0}}, [](auto& on) {
    cuda_test::trainer<orrery::ring, cudnn<bfloat16>, device::world> mine{
        on, {.length = 512, .query_heads = 4, .head_dim = 64}, orrery::causal{}, orrery::zigzag{}};
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
