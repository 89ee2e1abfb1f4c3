// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory_resource>
#include <vector>

#include "cuda/masks.hpp"
#include "kernel/problem.hpp"
#include "oracle.hpp"

/// What the tests of `device_flash`'s kernels have in common.
namespace cuda_test {

/// In memory that the kernel can read.
inline std::pmr::vector<std::int64_t> boundaries_at(std::initializer_list<std::int64_t> positions) {
  return std::pmr::vector<std::int64_t>(positions, kernel_test::home.memory);
}

/// Masks of every kind; of the causal ones one with this offset, and one under which the first queries see nothing.
inline std::vector<any_mask> every_mask(std::int64_t offset, const std::pmr::vector<std::int64_t>& boundaries) {
  using kind = any_mask::kind;
  return {{},
          {kind::causal, false, {offset}},
          {kind::causal, false, {-30}},
          {kind::band, false, {}, {17}},
          {kind::holes},
          {kind::packed, false, {}, {}, {boundaries.data(), static_cast<int>(boundaries.size()) - 1}}};
}

/// Shards of two pieces each.
inline kernel_test::plan cut(const oracle::shape& shape, int queries, int keys) {
  kernel_test::plan how;
  how.queries = kernel_test::zigzag(shape.queries, queries);
  how.keys = kernel_test::zigzag(shape.keys, keys);
  return how;
}

}  // namespace cuda_test
