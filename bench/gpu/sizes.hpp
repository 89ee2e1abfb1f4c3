// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"

namespace bench {

/// How large and how often everything is measured.
struct gpu_sizes {
  int times = 20;   ///< measurements, of which the median is reported
  int warm_up = 3;  ///< calls before them
  /// Of one copy, and of each operand of the kernels that move data: several times what the caches hold.
  std::int64_t copied_bytes = std::int64_t{1} << 30;
  std::int64_t products = std::int64_t{1} << 14;  ///< of each warp, of the loop that does nothing but multiply
  int product_blocks = 8 * 132;
  /// Of the kernel alone; with so many heads that tokens * heads * head dimension stay what they are.
  std::vector<std::int64_t> kernel_tokens{4096, 8192, 16384};
  std::vector<std::int64_t> kernel_dims{64, 128};
  std::int64_t kernel_elements = std::int64_t{16384} * 2048;
  std::int64_t checked_tokens = 1024;
  /// Of the operator, with 8 ranks on one device.
  std::int64_t operator_tokens = 65536;
  std::int64_t operator_heads = 8;
  std::int64_t operator_dim = 128;
  int operator_ranks = 8;
  int operator_times = 5;
  std::vector<orrery::any_topology> topologies{orrery::ring{}, orrery::wallfacer<2>{}, orrery::ulysses{}};
  /// Of calls whose host time counts, and not what they compute.
  std::int64_t enqueued_tokens = 1024;
  int enqueued_times = 50;

  /// Seconds instead of minutes: shows that all of it works, and what to expect.
  [[nodiscard]] static gpu_sizes quick() {
    gpu_sizes s;
    s.times = 5;
    s.warm_up = 1;
    s.copied_bytes = std::int64_t{1} << 28;
    s.kernel_tokens = {4096};
    s.kernel_elements = std::int64_t{4096} * 2048;
    s.operator_tokens = 8192;
    s.operator_times = 3;
    s.enqueued_times = 10;
    return s;
  }
};

}  // namespace bench
