// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "orrery/host/context.hpp"
#include "orrery/orrery.hpp"

#include "common/compute_only.hpp"
#include "common/problem.hpp"
#include "flags.hpp"

namespace bench {

/// What ranks have whose processor is the host's (see `run`); derived classes say how they are started.
struct host_ranks {
  static abilities can() { return {}; }
  static std::string computes_with() {
    switch (orrery::flash<float>::instructions()) {
      case orrery::instruction_set::avx512:
        return "AVX-512";
      case orrery::instruction_set::avx2:
        return "AVX2";
      default:
        return "baseline";
    }
  }

  template <class Work>
  static int with_kernel(const flags& f, const Work& work) {
    return f.dtype == "double" ? work(std::type_identity<orrery::flash<double>>{})
                               : work(std::type_identity<orrery::flash<float>>{});
  }

  template <class T, class World>
  static shard<T> tensors(const World&, const orrery::attention_shape& shape,
                          const orrery::token_positions& positions) {
    return {shape, positions};
  }
  template <class T, class World>
  static auto nothing_moves(World& world) {
    return null_transport<filled_memory<T>, orrery::host_context, World>{world, {}};
  }
  template <class World>
  static void complete(const World&) {}  // when the call returns

  template <class T, class Mask>
  static shard<T> whole(const orrery::attention_shape& shape, const Mask& mask, bool backward) {
    shard<T> all{shape, orrery::contiguous::shard(0, 1, shape.length)};
    orrery::threads::run(1, [&](auto& world) {
      orrery::attention<orrery::ring, orrery::flash<T>> attend{world, shape, mask};
      all.forward(attend);
      if (backward) all.backward(attend);
    });
    return all;
  }
};

}  // namespace bench
