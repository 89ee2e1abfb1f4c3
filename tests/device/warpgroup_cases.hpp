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

#include "orrery/device/code.hpp"
#include "orrery/device/tensor_map.hpp"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/kernel/cuda/wgmma/shared_tiles.cuh"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/view.hpp"

#include "kernel/problem.hpp"

namespace {

using orrery::bfloat16;
using orrery::float16;
using orrery::detail::swizzled_tile;
using orrery::detail::tensor_box;

/// Small integers, so that products are exact.
template <class T>
std::pmr::vector<T> integers(std::size_t count, int seed) {
  std::pmr::vector<T> all(count, kernel_test::home.memory);
  for (std::size_t i = 0; i < count; ++i) all[i] = T{static_cast<float>((static_cast<int>(i) * 7 + seed) % 11 - 5)};
  return all;
}

/// The map of one head of `rows` tokens.
template <class T>
orrery::detail::tensor_map map_of(const std::pmr::vector<T>& data, int rows, int box_rows) {
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

  orrery::detail::tensor_map of_a, of_b;
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
      for (int i = 0; i < 4; ++i) sums[n][i] = by_registers ? 0.0f : 1e9f;
    }
    ORRERY_UNROLL
    for (int k = 0; k < depth / 16; ++k) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const T* const two = a + (row + i % 2 * 8) * depth + 16 * k + column + i / 2 * 8;
        words[k][i] = t.template pack<T>(static_cast<float>(two[0]), static_cast<float>(two[1]));
      }
    }
    if (by_registers) {
      t.hold(sums);
    } else {
      t.discard(sums);  // the first product does not read them
    }
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

  orrery::detail::tensor_map map;
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

/// 5 + a bᵀ and a b' by the steps that kernels are made of, with a 64 × 128, b 128 × 128 and b' 128 × 192, of which the
/// rows of `unseen` bits are cleared after they came.
template <class T>
struct cleared_rows {
  using a_tile = swizzled_tile<64, 128>;
  using b_tile = swizzled_tile<128, 128>;
  using wide_tile = swizzled_tile<128, 192>;
  static constexpr int b_at = a_tile::bytes, wide_at = b_at + b_tile::bytes, came = wide_at + wide_tile::bytes;
  static constexpr int shared_bytes = came + 16;

  orrery::detail::tensor_map of_a, of_b, of_wide;
  const T* a;
  float* along;
  float* across;

  static constexpr bool is_unseen(int row) { return row % 32 % 7 == 3 || row / 32 == 2; }

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& t) const {
    constexpr int is_clear = came + 8;
    initialise(t, came, 2);
    if (t.thread() == 0) {
      t.mbarrier_arrive_expecting(came, came);
      a_tile{0}.copy(t, of_a, came, 0, 0, 0);
      b_tile{b_at}.copy(t, of_b, came, 0, 0, 0);
      wide_tile{wide_at}.copy(t, of_wide, came, 0, 0, 0);
    }
    if (t.warp() == 0) {
      t.mbarrier_wait(came, 0);
      orrery::detail::unseen_columns<128> unseen;
      for (int i = 0; i < 4; ++i) unseen.own |= is_unseen(32 * i + t.lane()) ? 1u << i : 0u;
      unseen.clear(t, b_tile{b_at});
      unseen.clear(t, wide_tile{wide_at});
      t.fence_async_proxy();
      orrery::detail::let_go(t, is_clear);
    }
    t.mbarrier_wait(came, 0);
    t.mbarrier_wait(is_clear, 0);
    orrery::detail::fragments<1, 16> sums, left;
    auto wide = orrery::detail::fragments<1, 24>::zeros();
    orrery::detail::rounded_rows<128> words;
    const int row = 16 * t.warp() + t.lane() / 4, column = t.lane() % 4 * 2;
    ORRERY_UNROLL
    for (int n = 0; n < 16; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        sums.of[0][n][i] = 5;
        left.of[0][n][i] = static_cast<float>(a[(row + i / 2 * 8) * 128 + 8 * n + column + i % 2]);
      }
    }
    words.template round<T>(t, left);
    orrery::detail::begin_rows<T, true>(t, sums, a_tile{0}, 0, b_tile{b_at});
    orrery::detail::begin_columns<T>(t, wide, words, wide_tile{wide_at});
    t.template wait_for_products<0>();
    t.hold(sums.of[0]);
    t.hold(wide.of[0]);
    t.hold(words.of);
    ORRERY_UNROLL
    for (int n = 0; n < 24; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int to_row = row + i / 2 * 8, to_column = 8 * n + column + i % 2;
        if (n < 16) along[to_row * 128 + to_column] = sums.of[0][n < 16 ? n : 0][i];
        across[to_row * 192 + to_column] = wide.of[0][n][i];
      }
    }
  }
};

template <class T>
void check_cleared_rows() {
  using work = cleared_rows<T>;
  const auto a = integers<T>(64 * 128, 1), b = integers<T>(128 * 128, 2), wide = integers<T>(128 * 192, 3);
  std::pmr::vector<float> along(64 * 128, kernel_test::home.memory), across(64 * 192, kernel_test::home.memory);
  cuda_test::tested::launch_warpgroups<128>(
      {}, 1, work::shared_bytes,
      work{map_of(a, 64, 64), map_of(b, 128, 128), map_of(wide, 128, 128), a.data(), along.data(), across.data()});
  kernel_test::home.wait();
  int wrong = 0;
  for (std::size_t i = 0; i < 64; ++i) {
    for (std::size_t j = 0; j < 192; ++j) {
      float sum = 0;
      for (std::size_t k = 0; k < 128; ++k) {
        if (!work::is_unseen(static_cast<int>(k))) {
          sum += static_cast<float>(a[i * 128 + k]) * static_cast<float>(wide[k * 192 + j]);
        }
      }
      wrong += across[i * 192 + j] == sum ? 0 : 1;
      if (j >= 128) continue;
      sum = 5;
      for (std::size_t k = 0; k < 128 && !work::is_unseen(static_cast<int>(j)); ++k) {
        sum += static_cast<float>(a[i * 128 + k]) * static_cast<float>(b[j * 128 + k]);
      }
      wrong += along[i * 128 + j] == sum ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("products that are added to sums, in two parts, of rows that threads clear after they came") {
  if (!has_warpgroups()) return;
  check_cleared_rows<bfloat16>();
  check_cleared_rows<float16>();
}

TEST_CASE("products of a warpgroup, of rows and of columns of what tensor copies brought") {
  if (!has_warpgroups()) return;
  check_multiplication<bfloat16, 64, false>();
  check_multiplication<float16, 64, false>();
  check_multiplication<bfloat16, 128, false>();
  check_multiplication<float16, 128, false>();
  check_multiplication<bfloat16, 64, true>();
  check_multiplication<bfloat16, 96, true>();
  check_multiplication<bfloat16, 128, true>();
  check_multiplication<float16, 64, true>();
  check_multiplication<float16, 96, true>();
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
