// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "orrery/kernel/device_blocks.hpp"
#include "orrery/kernel/device_code.hpp"
#include "orrery/kernel/device_flash_steps.cuh"

namespace orrery {

/// A thread's part of the online softmax (Dao, arXiv 2307.08691, algorithm 1) in the forward of `device_flash`: its
/// warp has 16 `row_tiles` queries of the block's tile, and their scores with `columns` keys as fragments of
/// mma.m16n8k16.
template <int row_tiles, int columns, int value_dim>
struct device_flash_rows {
  static_assert(columns <= 128, "a thread's visible columns of a row fit a word");
  static constexpr float nothing = -std::numeric_limits<float>::infinity();

  using scores = fragments<row_tiles, columns / 8>;

  /// One of something for each of the thread's rows: g and g + 8 of each row tile.
  template <class Value>
  struct by_row {
    Value of[static_cast<std::size_t>(row_tiles)][2];
  };

  int first;                                ///< of the warp's rows, in the block's tile
  fragments<row_tiles, value_dim / 8> out;  ///< weighted sums of the values so far
  by_row<float> largest;                    ///< exponents of 2 so far
  by_row<float> sum;                        ///< the thread's part of the sums of weights relative to those

  /// Calls visit(m, half, row in the block's tile) for the rows that the thread has a part of.
  template <class Threads, class Visit>
  ORRERY_DEVICE void for_rows(const Threads& threads, const Visit& visit) const {
    ORRERY_UNROLL
    for (int m = 0; m < row_tiles; ++m) {
      ORRERY_UNROLL
      for (int half = 0; half < 2; ++half) visit(m, half, first + 16 * m + 8 * half + threads.lane() / 4);
    }
  }

  /// What a row has seen before counts as one key whose value is the mean so far.
  template <class Threads, class Block>
  ORRERY_DEVICE void begin(const Threads& threads, const Block& block, const device_item& item) {
    out = fragments<row_tiles, value_dim / 8>::zeros();
    for_rows(threads, [&](int m, int half, int row) {
      float lse = nothing;
      if (!block.fresh && row < item.tokens.count) lse = *block.lse.at(item.batch, item.head, item.tokens.first + row);
      largest.of[m][half] = lse * log2_e;
      sum.of[m][half] = lse != nothing && threads.lane() % 4 == 0 ? 1.0f : 0.0f;
      if (lse == nothing) return;
      const float* const before = block.out.at(item.batch, item.tokens.first + row, item.head);
      ORRERY_UNROLL
      for (int n = 0; n < value_dim / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int column = 8 * n + threads.lane() % 4 * 2 + i;
          if (column < block.out.dim) out.of[m][n][2 * half + i] = before[column];
        }
      }
    });
  }

  /// Scores of pairs whose bit is not set (see `visible_columns`) become -infinity.
  template <class Threads>
  ORRERY_DEVICE void hide(const Threads& threads, scores& all, const by_row<std::uint32_t>& visible) const {
    for_rows(threads, [&](int m, int half, int) {
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          if ((visible.of[m][half] >> (2 * n + i) & 1) == 0) all.of[m][n][2 * half + i] = nothing;
        }
      }
    });
  }

  /// Scores become weights relative to the largest one so far, and so does the sum of weights. Returns the factors that
  /// `out` then lacks.
  template <class Threads>
  [[nodiscard]] ORRERY_DEVICE by_row<float> weigh(const Threads& threads, scores& all, float factor) {
    by_row<float> changes;
    for_rows(threads, [&](int m, int half, int) {
      float most = nothing;
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        most = fmaxf(most, fmaxf(all.of[m][n][2 * half], all.of[m][n][2 * half + 1]));
      }
      most = fmaxf(most, threads.shuffle_xor(most, 1));
      most = fmaxf(most, threads.shuffle_xor(most, 2));
      most = fmaxf(largest.of[m][half], most * factor);
      // A row that has seen nothing yet has no largest: its weights and its change are those of -infinity, 0.
      const float origin = most == nothing ? 0.0f : most;
      changes.of[m][half] = threads.exp2(largest.of[m][half] - origin);
      largest.of[m][half] = most;
      float added = 0;
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          float& score = all.of[m][n][2 * half + i];
          score = threads.exp2(fmaf(score, factor, -origin));
          added += score;
        }
      }
      sum.of[m][half] = sum.of[m][half] * changes.of[m][half] + added;
    });
    return changes;
  }

  /// out *= changes
  template <class Threads>
  ORRERY_DEVICE void change(const Threads& threads, const by_row<float>& changes) {
    for_rows(threads, [&](int m, int half, int) {
      ORRERY_UNROLL
      for (int n = 0; n < value_dim / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) out.of[m][n][2 * half + i] *= changes.of[m][half];
      }
    });
  }

  /// Writes the result. What a row did not see leaves its bits alone.
  template <class Threads, class Block>
  ORRERY_DEVICE void finish(const Threads& threads, const Block& block, const device_item& item) const {
    for_rows(threads, [&](int m, int half, int row) {
      const bool present = row < item.tokens.count;
      float* const lse = block.lse.at(item.batch, item.head, item.tokens.first + (present ? row : 0));
      const float before = block.fresh ? nothing : *lse * log2_e;
      threads.converge();  // all lanes of a row have read what one of them writes
      float all = sum.of[m][half];
      all += threads.shuffle_xor(all, 1);
      all += threads.shuffle_xor(all, 2);
      const float most = largest.of[m][half];
      const bool untouched = !block.fresh && (all == 0 || (all == 1 && most == before));
      if (!present || untouched) return;
      if (threads.lane() % 4 == 0) *lse = all == 0 ? nothing : most * ln_2 + std::log(all);
      const float factor = all == 0 ? 0.0f : 1.0f / all;
      float* const to = block.out.at(item.batch, item.tokens.first + row, item.head);
      ORRERY_UNROLL
      for (int n = 0; n < value_dim / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int column = 8 * n + threads.lane() % 4 * 2 + i;
          if (column < block.out.dim) to[column] = out.of[m][n][2 * half + i] * factor;
        }
      }
    });
  }

 private:
  static constexpr float log2_e = 1.44269504088896341f;
  static constexpr float ln_2 = 0.693147180559945309f;
};

}  // namespace orrery
