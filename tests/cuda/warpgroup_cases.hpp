// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Products of warpgroups and tensor copies one by one, with the tiles and descriptors that kernels use: the least that
// must be right of a device of compute capability 9.0.
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_code.hpp"
#include "orrery/kernel/device_tensor_map.hpp"
#include "orrery/kernel/float16.hpp"
#include "orrery/kernel/view.hpp"

#include "kernel/problem.hpp"

namespace {

using orrery::bfloat16;
using orrery::float16;
using orrery::swizzled_tile;
using orrery::tensor_box;

/// Small integers, so that products are exact.
template <class T>
std::pmr::vector<T> integers(std::size_t count, int seed) {
  std::pmr::vector<T> all(count, kernel_test::home.memory);
  for (std::size_t i = 0; i < count; ++i) all[i] = T{static_cast<float>((static_cast<int>(i) * 7 + seed) % 11 - 5)};
  return all;
}

/// The map of one head of `rows` tokens.
template <class T>
orrery::tensor_map map_of(const std::pmr::vector<T>& data, int rows, int box_rows) {
  const auto dim = static_cast<std::int64_t>(data.size()) / rows;
  return cuda_test::tested::map(
      tensor_box::of(orrery::batch_sequence_head_dim(data.data(), 1, rows, 1, dim), rows, box_rows));
}

/// One thread initialises mbarriers one after the other from `at` on, for one arrival each.
template <class Threads>
ORRERY_DEVICE void initialise(const Threads& t, int at, int count) {
  if (t.thread() == 0) {
    for (int i = 0; i < count; ++i) t.mbarrier_init(at + 8 * i, 1);
    t.fence_async_proxy();
  }
  t.barrier();
}

/// A GPU of another compute capability has nothing to be tested; one of 9.0 has to have it all.
bool has_warpgroups() {
  const int capability = cuda_test::tested::limits().compute_capability;
  if (capability != 90) {
    MESSAGE("Skipped: the device has compute capability ", capability / 10, ".", capability % 10);
    return false;
  }
  REQUIRE(cuda_test::tested::has_warpgroups(0));
  return true;
}

/// c = a bᵀ ("K-major") or c = a b with a in registers ("MN-major"), with a 64 × 96 and c of `columns`.
template <class T, int columns, bool by_registers>
struct multiplication {
  static constexpr int depth = 96;
  using a_tile = swizzled_tile<64, depth>;
  using b_tile = std::conditional_t<by_registers, swizzled_tile<depth, columns>, swizzled_tile<columns, depth>>;
  static constexpr int mbarrier = a_tile::bytes + b_tile::bytes;
  static constexpr int shared_bytes = mbarrier + 8;

  orrery::tensor_map of_a, of_b;
  const T* a;
  float* c;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& t) const {
    initialise(t, mbarrier, 1);
    const a_tile at{0};
    const b_tile bt{a_tile::bytes};
    if (t.thread() == 0) {
      t.mbarrier_arrive_expecting(mbarrier, mbarrier);
      at.copy(t, of_a, mbarrier, 0, 0, 0);
      bt.copy(t, of_b, mbarrier, 0, 0, 0);
    }
    t.mbarrier_wait(mbarrier, 0);
    float sums[static_cast<std::size_t>(columns) / 8][4];
    std::uint32_t words[depth / 16][4];
    const int row = 16 * t.warp() + t.lane() / 4, column = t.lane() % 4 * 2;
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][i] = by_registers ? 0.0f : 1e9f;  // which the first product does not read
    }
    ORRERY_UNROLL
    for (int k = 0; k < depth / 16; ++k) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const T* const two = a + (row + i % 2 * 8) * depth + 16 * k + column + i / 2 * 8;
        words[k][i] = t.template pack<T>(static_cast<float>(two[0]), static_cast<float>(two[1]));
      }
    }
    t.hold(sums);
    t.hold(words);
    t.fence_products();
    ORRERY_UNROLL
    for (int k = 0; k < depth / 16; ++k) {
      if constexpr (by_registers) {
        t.template multiply_add<T, 0, columns / 8>(sums, words[k], bt.along_rows(t, k, 0));
      } else {
        t.template multiply<T>(sums, at.along_columns(t, 0, k), bt.along_columns(t, 0, k), k > 0);
      }
    }
    t.commit_products();
    t.template wait_for_products<0>();
    t.hold(sums);
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) c[(row + i / 2 * 8) * columns + 8 * n + column + i % 2] = sums[n][i];
    }
  }
};

template <class T, int columns, bool by_registers>
void check_multiplication() {
  using work = multiplication<T, columns, by_registers>;
  const int b_rows = by_registers ? work::depth : columns, b_dim = by_registers ? columns : work::depth;
  const auto a = integers<T>(64 * work::depth, 1);
  const auto b = integers<T>(static_cast<std::size_t>(b_rows * b_dim), 2);
  std::pmr::vector<float> c(64 * columns, kernel_test::home.memory);
  cuda_test::tested::launch_warpgroups<128>({}, 1, work::shared_bytes,
                                            work{map_of(a, 64, 64), map_of(b, b_rows, b_rows), a.data(), c.data()});
  kernel_test::home.wait();
  int wrong = 0;
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < columns; ++j) {
      float expected = 0;
      for (int k = 0; k < work::depth; ++k) {
        const int at = by_registers ? k * b_dim + j : j * b_dim + k;
        expected += static_cast<float>(a[static_cast<std::size_t>(i * work::depth + k)]) *
                    static_cast<float>(b[static_cast<std::size_t>(at)]);
      }
      wrong += c[static_cast<std::size_t>(i * columns + j)] == expected ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

/// Copies 16 rows of 128 columns from row 7 on, and looks for them where the swizzle should have put them.
struct copied_rows {
  static constexpr int mbarrier = 2 * 2048;
  static constexpr int shared_bytes = mbarrier + 8;

  orrery::tensor_map map;
  float* to;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& t) const {
    initialise(t, mbarrier, 1);
    if (t.thread() == 0) {
      t.mbarrier_arrive_expecting(mbarrier, mbarrier);
      swizzled_tile<16, 128>{0}.copy(t, map, mbarrier, 7, 0, 0);
    }
    t.mbarrier_wait(mbarrier, 0);
    for (int i = t.thread(); i < 16 * 128; i += 128) {
      const int row = i / 128, column = i % 128;
      const int part = (column % 64 / 8) ^ (row % 8);
      to[i] =
          static_cast<float>(t.template load<bfloat16>(column / 64 * 2048 + row * 128 + part * 16 + column % 8 * 2));
    }
  }
};

}  // namespace

TEST_CASE("products of a warpgroup, of rows and of columns of what tensor copies brought") {
  if (!has_warpgroups()) return;
  check_multiplication<bfloat16, 64, false>();
  check_multiplication<float16, 128, false>();
  check_multiplication<bfloat16, 64, true>();
  check_multiplication<bfloat16, 96, true>();
  check_multiplication<float16, 128, true>();
}

TEST_CASE("tensor copies: the swizzle's places, zeros beyond the tensor") {
  if (!has_warpgroups()) return;
  const auto data = integers<bfloat16>(20 * 72, 3);
  std::pmr::vector<float> got(16 * 128, kernel_test::home.memory);
  cuda_test::tested::launch_warpgroups<128>({}, 1, copied_rows::shared_bytes,
                                            copied_rows{map_of(data, 20, 16), got.data()});
  kernel_test::home.wait();
  int wrong = 0;
  for (std::size_t row = 0; row < 16; ++row) {
    for (std::size_t column = 0; column < 128; ++column) {
      const bool inside = row + 7 < 20 && column < 72;
      const float expected = inside ? static_cast<float>(data[(row + 7) * 72 + column]) : 0.0f;
      wrong += got[row * 128 + column] == expected ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}
