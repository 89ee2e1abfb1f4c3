// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/row_pairs.cuh"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/tensor/math.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What a thread of `device_flash_backward` computes of the pairs of its rows, g and g + 8 of its warp's 16 (g = lane /
/// 4), and a tile of columns. One of the two sides are queries, and have a log-sum-exp and a delta each: of rows they
/// are in registers, of columns in shared memory.
template <int columns, bool rows_are_queries>
struct device_flash_pairs {
  static constexpr float log2_e = 1.44269504088896341f;
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  /// The row, of the tile, of a thread's words 0 and 1 (half 0) or 2 and 3.
  template <class Threads>
  static ORRERY_DEVICE int row_of(const Threads& threads, int half) {
    return 16 * threads.warp() + 8 * half + threads.lane() / 4;
  }
  /// The column of a thread's word i of column tile n.
  template <class Threads>
  static ORRERY_DEVICE int column_of(const Threads& threads, int n, int i) {
    return 8 * n + threads.lane() % 4 * 2 + i % 2;
  }

  /// The numbers of a thread's rows, where they are queries.
  struct row_numbers {
    float lse[2];  ///< as an exponent of 2
    float delta[2];
  };

  /// Probabilities of a query that saw no key are 0: as if its log-sum-exp were infinite.
  static ORRERY_DEVICE float exponent_of(float lse) { return math::is_minus_infinity(lse) ? infinity : lse * log2_e; }

  /// Reads the numbers of a thread's rows, which are queries of `block`.
  template <class Threads, class Block>
  static ORRERY_DEVICE row_numbers read_row_numbers(const Threads& threads, const Block& block,
                                                    const device_item& item) {
    row_numbers numbers{{infinity, infinity}, {0, 0}};
    ORRERY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(threads, half);
      if (row >= item.tokens.count) continue;
      numbers.lse[half] = exponent_of(*block.lse.at(item.batch, item.head, item.tokens.first + row));
      numbers.delta[half] = *block.delta.at(item.batch, item.head, item.tokens.first + row);
    }
    return numbers;
  }

  /// Makes probabilities of scores. The columns' log-sum-exp, where they are queries, are at `lse_at` in shared memory.
  template <class Threads>
  static ORRERY_DEVICE void to_probabilities(const Threads& threads, fragments<1, columns / 8>& scores,
                                             const row_numbers& numbers, int lse_at, float factor, bool has_nan) {
    const auto probability = [&](float score, int n, int i) {
      float lse;
      if constexpr (rows_are_queries) {
        lse = numbers.lse[i / 2];
      } else {
        lse = exponent_of(threads.template load<float>(lse_at + 4 * column_of(threads, n, i)));
      }
      return threads.exp2(fmaf(score, factor, -lse));
    };
    if (has_nan) {
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float score = scores.of[0][n][i];
          scores.of[0][n][i] = math::is_minus_infinity(score) ? 0.0f : probability(score, n, i);
        }
      }
      return;
    }
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) scores.of[0][n][i] = probability(scores.of[0][n][i], n, i);
    }
  }

  /// The columns of a thread that each of its rows sees, bit by bit.
  struct visible_pairs {
    std::uint32_t of[2];
  };

  /// Clears the probabilities, or the gradients of scores, of pairs that are not visible, or of no key or query.
  static ORRERY_DEVICE void hide(fragments<1, columns / 8>& p, const visible_pairs& visible) {
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        if ((visible.of[i / 2] >> (2 * n + i % 2) & 1) == 0) p.of[0][n][i] = 0;
      }
    }
  }

  /// Makes gradients of scores of probabilities `p` and their gradients `grad`.
  template <class Threads>
  static ORRERY_DEVICE void to_score_gradients(const Threads& threads, fragments<1, columns / 8>& p,
                                               const fragments<1, columns / 8>& grad, const row_numbers& numbers,
                                               int delta_at, bool has_nan) {
    const auto gradient_of = [&](float probability, int n, int i) {
      float delta;
      if constexpr (rows_are_queries) {
        delta = numbers.delta[i / 2];
      } else {
        delta = threads.template load<float>(delta_at + 4 * column_of(threads, n, i));
      }
      return probability * (grad.of[0][n][i] - delta);
    };
    if (has_nan) {
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float probability = p.of[0][n][i];
          p.of[0][n][i] = probability == 0 ? 0.0f : gradient_of(probability, n, i);
        }
      }
      return;
    }
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) p.of[0][n][i] = gradient_of(p.of[0][n][i], n, i);
    }
  }

  /// to = factor * sums, or to += factor * sums, for a thread's rows.
  template <int tiles, class Threads>
  static ORRERY_DEVICE void write_sum(const Threads& threads, const fragments<1, tiles>& sums, float factor,
                                      const tensor_view<float>& to, bool fresh, const device_item& item) {
    add_rows(threads, sums, factor, to, fresh, item, [&](int half) { return row_of(threads, half); });
  }
};

}  // namespace orrery::detail
