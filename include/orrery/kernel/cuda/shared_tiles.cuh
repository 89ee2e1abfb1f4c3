// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>

#include "orrery/attention/token_blocks.hpp"
#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/row_partition.cuh"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What device_flash's kernels are made of: tiles of 16-bit elements in shared memory, and a warp's products of them by
/// mma.m16n8k16. A warp's results are fragments: of each 8 columns a thread has, of rows g and g + 8 (g = lane / 4),
/// columns t and t + 1 (t = 2 (lane mod 4)), as words 0, 1 and 2, 3.

/// The most columns that are summed in registers before the sum is added to memory and begins again at 0.
///
/// Every 16 columns a product rounds the whole sum (tensor cores towards zero), so that the error of one long sum would
/// grow with its length: to all of the eleven bits of float16 after 2^17 columns. So it is one rounding for 16 columns
/// of 8192, and one for each 8192 columns.
inline constexpr int columns_of_sum = 8192;

/// A tile in shared memory: `rows` of `dim` elements, a multiple of 16. Rows are 16 bytes further apart than they are
/// long, so that eight rows' parts of 16 bytes, which matrices are loaded by, lie in different banks.
template <class T, int rows, int dim>
struct shared_tile {
  static_assert(sizeof(T) == 2 && dim % 16 == 0);
  static constexpr int row_bytes = 2 * dim + 16;
  static constexpr int bytes = rows * row_bytes;
  static constexpr int elements_of_row = dim;

  int at;  ///< in shared memory

  /// Returns where the 16 bytes of the columns from 8 `part` on are.
  [[nodiscard]] constexpr int place(int row, int part) const noexcept { return at + row * row_bytes + 16 * part; }

  /// Begins to copy tokens of one head to the rows; what is beyond the tokens or beyond the tensor's dimension becomes
  /// 0. By asynchronous copies where the tensor's addresses allow it, and by elements otherwise: in both cases the rows
  /// are there after the thread's copies are waited for, and a barrier.
  template <int block_threads, class Threads>
  ORRERY_DEVICE void copy(const Threads& threads, const tensor_view<const T>& from, std::int64_t b, std::int64_t head,
                          const token_block& tokens) const {
    constexpr int parts = dim / 8;
    const int count = static_cast<int>(tokens.count);
    const int width = static_cast<int>(from.dim);
    const bool by_vectors = moves_by_vectors(from, 8);
    const T* const first = from.at(b, tokens.first, head);
    for (int i = threads.thread(); i < rows * parts; i += block_threads) {
      const int row = i / parts;
      const int column = i % parts * 8;
      const int to = at + row * row_bytes + 2 * column;
      const bool present = row < count && column < width;
      const T* const source = first + (present ? row * from.sequence_stride + column : 0);
      if (by_vectors) {
        threads.copy_async(to, source, present);
        continue;
      }
      vector_words words{{0, 0, 0, 0}};
      for (int j = 0; j < 8; ++j) {
        if (present && column + j < width) {
          words.word[j / 2] |= std::uint32_t{source[j].bits} << (j % 2 * 16);
        }
      }
      threads.store(to, words);
    }
  }
};

/// What a thread has of a warp's results: 16 `row_tiles` rows by 8 `column_tiles` columns.
template <int row_tiles, int column_tiles>
struct fragments {
  float of[static_cast<std::size_t>(row_tiles)][static_cast<std::size_t>(column_tiles)][4];

  static ORRERY_DEVICE fragments zeros() {
    fragments all;
    ORRERY_UNROLL
    for (int m = 0; m < row_tiles; ++m) {
      ORRERY_UNROLL
      for (int n = 0; n < column_tiles; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 4; ++i) all.of[m][n][i] = 0;
      }
    }
    return all;
  }
};

/// A factor for scores that is more than 0, and what has to be done to the bits of the left operand of their product to
/// make up for it: nothing, a change of sign, or the replacement by zeros. All of it is exact.
struct score_factor {
  float factor;  ///< of the exponents of 2
  std::uint32_t keep = 0xffffffffu;
  std::uint32_t flip = 0;

  explicit constexpr score_factor(float scale) noexcept : factor{(scale < 0 ? -scale : scale) * 1.44269504088896341f} {
    if (scale < 0) flip = 0x80008000u;
    if (scale == 0) {
      keep = 0;
      factor = 1;
    }
  }
};

/// sums += a bᵀ, with 16 `row_tiles` rows of a, from `first_row` on, and 8 `column_tiles` rows of b.
template <class T, int row_tiles, int column_tiles, int a_rows, int b_rows, int dim, class Threads>
ORRERY_DEVICE void multiply_rows(const Threads& threads, fragments<row_tiles, column_tiles>& sums,
                                 const shared_tile<T, a_rows, dim>& a, int first_row,
                                 const shared_tile<T, b_rows, dim>& b, std::uint32_t keep, std::uint32_t flip) {
  constexpr int row_bytes = shared_tile<T, a_rows, dim>::row_bytes;
  const int lane = threads.lane();
  const int a_lane = a.at + (first_row + lane % 16) * row_bytes + lane / 16 * 16;
  const int b_lane = b.at + (lane % 8 + lane / 16 * 8) * row_bytes + lane / 8 % 2 * 16;
  ORRERY_UNROLL
  for (int k = 0; k < dim / 16; ++k) {
    std::uint32_t a_words[static_cast<std::size_t>(row_tiles)][4];
    ORRERY_UNROLL
    for (int m = 0; m < row_tiles; ++m) {
      threads.load_matrices(a_words[m], a_lane + 16 * m * row_bytes + 32 * k);
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) a_words[m][i] = (a_words[m][i] & keep) ^ flip;
    }
    ORRERY_UNROLL
    for (int n = 0; n < column_tiles / 2; ++n) {
      std::uint32_t b_words[4];
      threads.load_matrices(b_words, b_lane + 16 * n * row_bytes + 32 * k);
      ORRERY_UNROLL
      for (int m = 0; m < row_tiles; ++m) {
        threads.template multiply_add<T>(sums.of[m][2 * n], a_words[m], b_words[0], b_words[1]);
        threads.template multiply_add<T>(sums.of[m][2 * n + 1], a_words[m], b_words[2], b_words[3]);
      }
    }
  }
}

/// sums += p b, with the fragments p, rounded to T, of 8 `column_tiles` columns, and as many rows of b.
template <class T, int row_tiles, int column_tiles, int b_rows, int dim, class Threads>
ORRERY_DEVICE void multiply_columns(const Threads& threads, fragments<row_tiles, dim / 8>& sums,
                                    const fragments<row_tiles, column_tiles>& p, const shared_tile<T, b_rows, dim>& b) {
  constexpr int row_bytes = shared_tile<T, b_rows, dim>::row_bytes;
  const int lane = threads.lane();
  const int b_lane = b.at + lane % 16 * row_bytes + lane / 16 * 16;
  ORRERY_UNROLL
  for (int k = 0; k < column_tiles / 2; ++k) {
    std::uint32_t p_words[static_cast<std::size_t>(row_tiles)][4];
    ORRERY_UNROLL
    for (int m = 0; m < row_tiles; ++m) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float(&two)[4] = p.of[m][2 * k + i / 2];
        p_words[m][i] = threads.template pack<T>(two[i % 2 * 2], two[i % 2 * 2 + 1]);
      }
    }
    ORRERY_UNROLL
    for (int n = 0; n < dim / 16; ++n) {
      std::uint32_t b_words[4];
      threads.load_transposed(b_words, b_lane + 16 * k * row_bytes + 32 * n);
      ORRERY_UNROLL
      for (int m = 0; m < row_tiles; ++m) {
        threads.template multiply_add<T>(sums.of[m][2 * n], p_words[m], b_words[0], b_words[1]);
        threads.template multiply_add<T>(sums.of[m][2 * n + 1], p_words[m], b_words[2], b_words[3]);
      }
    }
  }
}

/// The positions of a tile's tokens, in shared memory.
struct shared_positions {
  int at;

  /// Writes the positions of `count` tokens, the tile's last one's again where there are fewer.
  template <class Threads>
  ORRERY_DEVICE void write(const Threads& threads, const token_block& tokens, int count) const {
    const int i = threads.thread();
    if (i < count) {
      threads.store(at + 8 * i, tokens.position(i < tokens.count ? i : tokens.count - 1));
    }
  }
  template <class Threads>
  [[nodiscard]] ORRERY_DEVICE std::int64_t operator()(const Threads& threads, int i) const {
    return threads.template load<std::int64_t>(at + 8 * i);
  }
};

}  // namespace orrery::detail
