// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "orrery/attention/token_blocks.hpp"
#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/row_pairs.cuh"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/kernel/cuda/visible_columns.cuh"
#include "orrery/kernel/cuda/wgmma/shared_tiles.cuh"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/math.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What `device_flash_wgmma_backward` knows of its two sides' blocks besides tensor maps, which is little, since a
/// launch's arguments have 4096 bytes.
struct wgmma_query_rows {
  tensor_view<float> grad;
  row_view<const float> lse;
  row_view<const float> delta;
  segments positions;
  bool fresh;
};
struct wgmma_key_rows {
  tensor_view<float> grad;    ///< of keys or values
  tensor_view<float> grad_v;  ///< where there are both
  segments positions;
  bool fresh;
};
struct wgmma_query_columns {
  row_view<const float> lse;
  row_view<const float> delta;
  segments positions;
};
struct wgmma_key_columns {
  segments positions;
};

/// What a thread of `device_flash_wgmma_backward` computes of the pairs of its rows, g and g + 8 of its warp's 16
/// (g = lane / 4), and a tile of columns. One of the two sides are queries, and have a log-sum-exp, as exponent of 2,
/// and a delta each: of rows they are in registers, of columns in shared memory, float by float.
template <int columns, bool rows_are_queries>
struct device_flash_wgmma_pairs {
  using scores = fragments<1, columns / 8>;
  static constexpr float log2_e = 1.44269504088896341f;
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  /// The row, of the block's tile, of a thread's words 0 and 1 (half 0) or 2 and 3; `warp` counts those that compute.
  template <class Threads>
  static ORRERY_DEVICE int row_of(const Threads& threads, int warp, int half) {
    return 16 * warp + 8 * half + threads.lane() / 4;
  }

  /// Probabilities of a query that saw no key are 0: as if its log-sum-exp were infinite.
  static ORRERY_DEVICE float exponent_of(float lse) { return math::is_minus_infinity(lse) ? infinity : lse * log2_e; }

  /// The numbers of a thread's rows.
  struct row_numbers {
    float lse[2];
    float delta[2];

    template <class Threads, class Block>
    static ORRERY_DEVICE row_numbers read(const Threads& threads, const Block& from, const device_item& item,
                                          int warp) {
      row_numbers own{{infinity, infinity}, {0, 0}};
      if constexpr (rows_are_queries) {
        ORRERY_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = row_of(threads, warp, half);
          if (row >= item.tokens.count) continue;
          own.lse[half] = exponent_of(*from.lse.at(item.batch, item.head, item.tokens.first + row));
          own.delta[half] = *from.delta.at(item.batch, item.head, item.tokens.first + row);
        }
      }
      return own;
    }
  };

  /// A lane's part of the numbers of a tile of columns: column 32i + lane. Beyond the tokens probabilities are 0.
  struct column_numbers {
    float lse[static_cast<std::size_t>(columns) / 32];
    float delta[static_cast<std::size_t>(columns) / 32];

    template <class Threads, class Block>
    static ORRERY_DEVICE column_numbers read(const Threads& threads, const Block& from, std::int64_t batch,
                                             std::int64_t head, const token_block& tokens) {
      column_numbers all{};
      if constexpr (!rows_are_queries) {
        ORRERY_UNROLL
        for (int i = 0; i < columns / 32; ++i) {
          const std::int64_t column = 32 * i + threads.lane();
          const bool present = column < tokens.count;
          all.lse[i] = present ? exponent_of(*from.lse.at(batch, head, tokens.first + column)) : infinity;
          all.delta[i] = present ? *from.delta.at(batch, head, tokens.first + column) : 0.0f;
        }
      }
      return all;
    }
    /// Returns true if a query's log-sum-exp is NaN; the same for all lanes.
    template <class Threads>
    [[nodiscard]] ORRERY_DEVICE bool has_nan(const Threads& threads) const {
      if constexpr (rows_are_queries) return false;
      bool is_nan = false;
      ORRERY_UNROLL
      for (int i = 0; i < columns / 32; ++i) is_nan = is_nan || math::is_nan(lse[i]);
      return threads.any(is_nan);
    }
    template <class Threads>
    ORRERY_DEVICE void write_lse(const Threads& threads, int at) const {
      if constexpr (!rows_are_queries) write(threads, lse, at);
    }
    template <class Threads>
    ORRERY_DEVICE void write_delta(const Threads& threads, int at) const {
      if constexpr (!rows_are_queries) write(threads, delta, at);
    }

   private:
    template <class Threads>
    static ORRERY_DEVICE void write(const Threads& threads, const float* numbers, int at) {
      ORRERY_UNROLL
      for (int i = 0; i < columns / 32; ++i) threads.store(at + 4 * (32 * i + threads.lane()), numbers[i]);
    }
  };

  /// The columns of a thread that each of its rows sees, bit by bit.
  struct visible_pairs {
    std::uint32_t of[2];
  };
  /// Asks the mask. Called before there are scores, so that the mask can use the registers that scores will take.
  template <class Threads, class Mask>
  static ORRERY_DEVICE visible_pairs ask(const Threads& threads, int warp, const Mask& mask,
                                         const shared_positions& row_positions,
                                         const shared_positions& column_positions, const tile_announcement& tile) {
    visible_pairs visible{};
    ORRERY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = row_positions(threads, row_of(threads, warp, half));
      const auto position = [&](int column) { return column_positions(threads, column); };
      visible.of[half] = tile.seen() == visibility::all ? columns_before(threads, tile.count())
                         : rows_are_queries             ? visible_keys(threads, mask, row, tile.count(), position)
                                                        : visible_queries(threads, mask, row, tile.count(), position);
    }
    return visible;
  }

  /// Clears what belongs to pairs that are not visible, or of no key or query, whatever it was.
  static ORRERY_DEVICE void hide(scores& of, const visible_pairs& visible) {
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        if ((visible.of[i / 2] >> (2 * n + i % 2) & 1) == 0) of.of[0][n][i] = 0;
      }
    }
  }

  /// A score of -infinity hides its pair, also where the query's log-sum-exp is NaN, and all of its probabilities would
  /// be: of those that are `visible` only the others are left.
  static ORRERY_DEVICE void leave_out(const scores& all, float factor, visible_pairs& visible) {
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (math::is_minus_infinity(all.of[0][n][i] * factor)) visible.of[i / 2] &= ~(1u << (2 * n + i % 2));
      }
    }
  }

  /// exp(factor * score - lse), the factor being one of exponents of 2.
  template <class Threads>
  static ORRERY_DEVICE void to_probabilities(const Threads& threads, scores& p, const row_numbers& own, int lse_at,
                                             float factor) {
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      const two_numbers lse = two_numbers::read(threads, lse_at, n);
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) p.of[0][n][i] = threads.exp2(fmaf(p.of[0][n][i], factor, -lse.of(own.lse, i)));
    }
  }

  /// Makes `grad` what the product of grad_out and values is added to: -delta.
  template <class Threads>
  static ORRERY_DEVICE void to_minus_delta(const Threads& threads, scores& grad, const row_numbers& own, int delta_at) {
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      const two_numbers delta = two_numbers::read(threads, delta_at, n);
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) grad.of[0][n][i] = -delta.of(own.delta, i);
    }
  }

  /// grad *= p: gradients of probabilities, without delta, become those of scores.
  static ORRERY_DEVICE void to_score_gradients(const scores& p, scores& grad) {
    ORRERY_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) grad.of[0][n][i] *= p.of[0][n][i];
    }
  }

  /// to = factor * sums, or to += factor * sums, for a thread's rows.
  template <int tiles, class Threads>
  static ORRERY_DEVICE void add(const Threads& threads, const fragments<1, tiles>& sums, float factor,
                                const tensor_view<float>& to, bool fresh, const device_item& item, int warp) {
    add_rows(threads, sums, factor, to, fresh, item, [&](int half) { return row_of(threads, warp, half); });
  }

 private:
  /// The log-sum-exp or delta of a thread's two columns in column tile n, if queries are columns; else nothing, since
  /// the thread has those of its rows in registers.
  struct alignas(8) two_numbers {
    float of_columns[2];

    template <class Threads>
    static ORRERY_DEVICE two_numbers read(const Threads& threads, int at, int n) {
      if constexpr (rows_are_queries) {
        return {};
      } else {
        return threads.template load<two_numbers>(at + 4 * (8 * n + threads.lane() % 4 * 2));
      }
    }
    /// The number that belongs to the thread's word i.
    ORRERY_DEVICE float of(const float (&rows)[2], int i) const {
      return rows_are_queries ? rows[i / 2] : of_columns[i % 2];
    }
  };
};

}  // namespace orrery::detail
