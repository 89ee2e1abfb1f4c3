// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "orrery/kernel/reference.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/transport/nccl.hpp"

#include "device/enqueued.hpp"
#include "device/runtime_double.hpp"
#include "support/conformance.hpp"
#include "transport/device/conformance.hpp"
#include "transport/nccl/double.hpp"
#include "transport/nccl/threads.hpp"

/// Ranks of the doubles of NCCL and of the CUDA runtime: threads, each with a device of its own.
namespace nccl_test {

using kernel = cuda_test::enqueued<orrery::reference<double>>;

inline cuda_double::settings devices(int count, std::uint64_t seed = 1) {
  return {.seed = seed, .compute_capabilities = std::vector(static_cast<std::size_t>(count), std::pair{9, 0})};
}
inline void start(const cuda_double::settings& how) {
  cuda_double::reset(how);
  nccl_double::reset();
}

/// Races, misuse and leaks, one a line.
inline std::string found_by_doubles() {
  cuda_test::enqueued_work::forget();
  std::string all;
  for (const std::string& one : cuda_double::faults()) all += one + "\n";
  return all + cuda_double::leaks() + nccl_double::faults();
}

inline const orrery::attention_shape small{.length = 12, .query_heads = 2, .head_dim = 2};

/// Under a full mask: what ranks send is then what the topology writes.
template <class Topology>
struct trainer : cuda_test::trainer<Topology, kernel, nccl::world> {
  explicit trainer(nccl::world& on, const orrery::attention_shape& shape = small)
      : cuda_test::trainer<Topology, kernel, nccl::world>{on, shape, orrery::full{}} {}
};

}  // namespace nccl_test
