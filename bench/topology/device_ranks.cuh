// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "orrery/kernel/device_flash.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/device.hpp"

#include "common/compute_only.hpp"
#include "common/device_memory.hpp"
#include "common/device_shard.hpp"
#include "common/problem.hpp"
#include "flags.hpp"

namespace bench {

/// What ranks have that are streams of CUDA devices (see `run`). Results are compared with those of one rank whose
/// kernel is `device_reference`.
template <class Device>
class device_ranks {
 public:
  static constexpr const char* transport = "device";
  static constexpr const char* described = "streams of CUDA devices";

  /// Ranks take the first `devices` devices in turn; `name` says what these are.
  device_ranks(int devices, std::string name) : name_{std::move(name)} {
    for (int i = 0; i < devices; ++i) devices_.push_back(i);
  }

  static int count() { return 0; }
  static bool first() { return true; }
  static abilities can() { return {{"bfloat16"}, {"device_flash"}, largest_dim}; }
  [[nodiscard]] const std::string& computes_with() const { return name_; }

  template <class Body>
  void run(int ranks, const Body& body) const {
    orrery::device::options how;
    how.deadline = 3600;
    how.devices = devices_;
    orrery::device::run(ranks, how, body);
  }

  /// Another kernel is another line, and another name in `can`.
  template <class Work>
  static int with_kernel(const flags&, const Work& work) {
    return work(std::type_identity<orrery::device_flash<orrery::bfloat16, largest_dim, Device>>{});
  }

  template <class T, class World>
  static device_shard<T> tensors(const World& world, const orrery::attention_shape& shape,
                                 const orrery::token_positions& positions) {
    return {world.stream(), shape, positions};
  }
  template <class T, class World>
  static auto nothing_moves(World& world) {
    return null_transport<filled_device_memory<T>, orrery::device_context, World>{world, {world.stream()}};
  }
  template <class World>
  static void complete(const World& world) {
    world.synchronize();
  }

  template <class T, class Mask>
  shard<T> whole(const orrery::attention_shape& shape, const Mask& mask, bool backward) const {
    shard<T> all{shape, orrery::contiguous::shard(0, 1, shape.length)};
    run(1, [&](auto& world) {
      orrery::attention<orrery::ring, orrery::device_reference<T, Device>> attend{world, shape, mask};
      device_shard<T> on_device{world.stream(), shape, all.positions()};
      on_device.forward(attend);
      if (backward) on_device.backward(attend);
      all = on_device.results();
    });
    return all;
  }

 private:
  static constexpr int largest_dim = 128;

  std::vector<int> devices_;
  std::string name_;
};

}  // namespace bench
