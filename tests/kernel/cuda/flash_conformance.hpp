// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_flash.cuh"
#include "orrery/kernel/reference.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/device.hpp"
#include "orrery/transport/threads.hpp"

#include "kernel/cuda/masks.hpp"
#include "transport/device/conformance.hpp"

/// The tensor-core kernel through the operator over the transport `device`: on a GPU and on the emulated device alike.
namespace cuda_test {

/// Of out, grad_q, grad_k and grad_v.
using errors = std::array<double, 4>;

/// Largest errors of one rank's results against the oracle's.
template <class Kernel>
[[nodiscard]] errors errors_of(const conformance::rank_tensors<Kernel>& mine, const oracle::problem& p,
                               const oracle::answer& a, const orrery::token_positions& queries,
                               const orrery::token_positions& keys) {
  const oracle::shape& s = p.shape;
  const auto of = [&](const std::vector<double>& whole, std::int64_t tokens, std::int64_t heads, std::int64_t dim,
                      const orrery::token_positions& at, const auto& got) {
    return oracle::compare(conformance::shard_of(whole, s.batch, tokens, heads, dim, at), conformance::values(got))
        .error;
  };
  return {of(a.out, s.queries, s.query_heads, s.value_dim, queries, mine.out),
          of(a.grad_q, s.queries, s.query_heads, s.key_dim, queries, mine.grad_q),
          of(a.grad_k, s.keys, s.key_heads, s.key_dim, keys, mine.grad_k),
          of(a.grad_v, s.keys, s.key_heads, s.value_dim, keys, mine.grad_v)};
}

/// Of all ranks, which run(world, body) starts; `call(attend, tensors, world)` is forward and backward.
template <class Kernel, class Run, class Mask, class Call>
[[nodiscard]] errors errors_of_all(const Run& run, int world, const orrery::attention_shape& shape, const Mask& mask,
                                   const conformance::any_layout& layout, const orrery::any_topology& topology,
                                   const oracle::problem& p, const oracle::answer& a, const Call& call) {
  errors worst{};
  std::mutex mutex;
  run(world, [&](auto& on) {
    orrery::attention<orrery::any_topology, Kernel> attend{on, shape, mask, layout, topology};
    conformance::rank_tensors<Kernel> mine{p, attend.query_positions(), attend.key_positions(), {}};
    call(attend, mine, on);
    const errors here = errors_of(mine, p, a, attend.query_positions(), attend.key_positions());
    const std::lock_guard lock{mutex};
    for (std::size_t i = 0; i < here.size(); ++i) worst[i] = (std::max)(worst[i], here[i]);
  });
  return worst;
}

/// One case: right to the rounding of T, whatever results hold before, the same bits twice; and no less exact than
/// twice one rank of the host whose only roundings to T are those of its operands and results.
template <class T, class Device>
void check_flash(int world, const orrery::attention_shape& shape, const any_mask& mask,
                 const conformance::any_layout& layout, const orrery::any_topology& topology, std::uint64_t seed) {
  using kernel = orrery::device_flash<T, 64, Device>;
  INFO(kernel::name(), ", ", topology.name(), " over ", world, ", ", mask.name(), ", ", layout.name(), ", ",
       orrery::name_of(shape.circulate), ", seed ", seed);
  const auto on_device = [](int ranks, auto&& body) { orrery::device::run(ranks, {.devices = {0}}, body); };
  CHECK(cuda_test::failures<orrery::any_topology, kernel, orrery::device::world>(on_device, world, shape, mask, layout,
                                                                                 seed, topology) == "");
  const auto p = oracle::random_problem<T>(conformance::oracle_shape(shape), seed);
  const oracle::answer a = oracle::solve(p, mask);
  const errors many = errors_of_all<kernel>(on_device, world, shape, mask, layout, topology, p, a,
                                            [](auto& attend, auto& mine, auto& on) {
                                              device_tensors<kernel> tensors{mine, on.stream()};
                                              tensors.forward(attend);
                                              tensors.backward(attend);
                                              tensors.fetch();
                                              on.synchronize();
                                            });
  orrery::attention_shape alone = shape;
  alone.circulate = orrery::pass::circulate_keys;
  const errors one =
      errors_of_all<orrery::reference<T>>([](int ranks, auto&& body) { orrery::threads::run(ranks, body); }, 1, alone,
                                          mask, orrery::contiguous{}, orrery::ring{}, p, a,
                                          [](auto& attend, auto& mine, auto&) {
                                            mine.forward(attend);
                                            mine.backward(attend);
                                          });
  for (std::size_t i = 0; i < many.size(); ++i) {
    INFO("tensor ", i, " of out, grad_q, grad_k, grad_v");
    CHECK((one[i] > 0 || many[i] == 0));  // neither, where nothing is visible
    CHECK(many[i] <= 2 * one[i] + oracle::tolerance<T> / 16);
  }
}

/// Every mask with every layout and topology, in turn over the worlds, both policies and the shapes.
template <class T, class Device>
void check_flash_over(const std::vector<int>& worlds, const std::vector<orrery::any_topology>& topologies,
                      const std::vector<any_mask>& masks, const std::vector<conformance::any_layout>& layouts,
                      const std::vector<orrery::attention_shape>& shapes) {
  std::uint64_t seed = 0;
  for (const orrery::any_topology& topology : topologies) {
    int checked = 0;
    for (const any_mask& mask : masks) {
      for (const conformance::any_layout& layout : layouts) {
        ++seed;
        orrery::attention_shape shape = shapes[seed % shapes.size()];
        shape.circulate = seed / 2 % 2 == 0 ? orrery::pass::circulate_keys : orrery::pass::circulate_queries;
        std::vector<int> admitted;
        for (const int world : worlds) {
          if (topology.unsupported_reason(world, orrery::pass::forward) == nullptr &&
              topology.slices(world) <= shape.query_heads)
            admitted.push_back(world);
        }
        REQUIRE(!admitted.empty());
        const int world = admitted[seed / 3 % admitted.size()];
        if (topology.unsupported_reason(world, shape.circulate) != nullptr)
          shape.circulate = orrery::pass::circulate_keys;
        check_flash<T, Device>(world, shape, mask, layout, topology, seed);
        ++checked;
      }
    }
    CHECK(checked == static_cast<int>(masks.size() * layouts.size()));
  }
}

}  // namespace cuda_test
