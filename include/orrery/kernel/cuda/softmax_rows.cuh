// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/row_pairs.cuh"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// A thread's part of the online softmax (Dao, arXiv 2307.08691, algorithm 1) in the forward of `device_flash`: its
/// warp has 16 `row_tiles` queries of the block's tile, and their scores with `columns` keys as fragments of
/// mma.m16n8k16.
///
/// However many tiles a row meets, its results are as exact: weights are relative to an origin that changes only when a
/// score is far above it, so that few factors meet in one weight; sums of weights keep what their additions round away;
/// and sums of weighted values go to memory now and then, see `columns_of_sum`.
///
/// A score that is NaN or +infinity makes its row's sum of weights NaN, and nothing makes that a number again. A row is
/// empty if it has seen no score above -infinity: then its origin is -infinity, and its sum 0.
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

  /// A thread's part of a row's sum of weights, relative to the origin: a number, and what its rounding left.
  struct alignas(8) weight_sum {
    float sum;
    float rest;

    /// += value, exactly but for the rounding of `rest` (Knuth, TAOCP 2, section 4.2.2, theorem B).
    ORRERY_DEVICE void add(float value) {
      const float next = sum + value;
      const float added = next - sum;
      rest += (sum - (next - added)) + (value - added);
      sum = next;
    }
  };

  /// Bytes of shared memory for all rows of the block's tile. It holds what is needed once a tile, to save registers.
  static constexpr int shared_bytes(int rows) {
    return 4 * rows * static_cast<int>(sizeof(weight_sum) + sizeof(float));
  }

  int first;                                ///< of the warp's rows, in the block's tile
  int sums_at;                              ///< in shared memory, each thread's own
  int flushed_at;                           ///< likewise: the origin of what is in memory
  fragments<row_tiles, value_dim / 8> out;  ///< weighted sums of the values so far, but for what is in memory
  by_row<float> origin;                     ///< exponents of 2 that weights are relative to

  /// Makes the state of the warp's rows, which begin at `first`, in a tile of `rows`. Its `shared_bytes(rows)` begin at
  /// `at`.
  static ORRERY_DEVICE device_flash_rows of(int first, int at, int rows) {
    device_flash_rows all;
    all.first = first;
    all.sums_at = at;
    all.flushed_at = at + 4 * rows * static_cast<int>(sizeof(weight_sum));
    return all;
  }

  /// Calls visit(m, half, row in the block's tile) for the rows that the thread has a part of.
  template <class Threads, class Visit>
  ORRERY_DEVICE void for_rows(const Threads& threads, const Visit& visit) const {
    ORRERY_UNROLL
    for (int m = 0; m < row_tiles; ++m) {
      ORRERY_UNROLL
      for (int half = 0; half < 2; ++half) visit(m, half, first + 16 * m + 8 * half + threads.lane() / 4);
    }
  }

  /// Begins with a row's result so far, which counts as one key whose value is the mean so far, in memory.
  template <class Threads, class Block>
  ORRERY_DEVICE void begin(const Threads& threads, const Block& block, const device_item& item) {
    out = fragments<row_tiles, value_dim / 8>::zeros();
    for_rows(threads, [&](int m, int half, int row) {
      float lse = nothing;
      if (!block.fresh && is_present(item, row)) lse = *block.lse.at(item.batch, item.head, token_of(item, row));
      const bool is_counted = !math::is_minus_infinity(lse) && threads.lane() % 4 == 0;
      origin.of[m][half] = lse * log2_e;
      threads.store(flushed_of(threads, m, half), origin.of[m][half]);
      threads.store(sum_of(threads, m, half), weight_sum{is_counted ? 1.0f : 0.0f, 0.0f});
    });
  }

  /// Makes scores of pairs whose bit is not set (see `visible_columns`) -infinity.
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

  /// Makes weights, relative to the origin, of scores, and adds them to the sum of weights. Returns the factors by
  /// which `out` must then be multiplied: 1 where the origin stays.
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
      most = fmaxf(most, threads.shuffle_xor(most, 2)) * factor;
      const float before = origin.of[m][half];
      // Not where one of them is NaN: an origin that is NaN stays, and of scores fmaxf leaves NaN out.
      if (most > before + most_exponent) origin.of[m][half] = most;
      const float now = exponent_of(origin.of[m][half]);
      changes.of[m][half] = threads.exp2(before - now);
      float added[2] = {0, 0};
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          float& score = all.of[m][n][2 * half + i];
          score = threads.exp2(fmaf(score, factor, -now));
          added[i] += score;
        }
      }
      const int at = sum_of(threads, m, half);
      auto sum = threads.template load<weight_sum>(at);
      sum.sum *= changes.of[m][half];
      sum.rest *= changes.of[m][half];
      sum.add(added[0] + added[1]);
      threads.store(at, sum);
    });
    return changes;
  }

  /// out *= changes
  template <class Threads>
  ORRERY_DEVICE void change(const Threads& threads, const by_row<float>& changes) {
    for_rows(threads, [&](int m, int half, int) {
      if (changes.of[m][half] == 1) return;
      ORRERY_UNROLL
      for (int n = 0; n < value_dim / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) out.of[m][n][2 * half + i] *= changes.of[m][half];
      }
    });
  }

  /// Writes `out` to memory, and begins again at 0.
  template <class Threads, class Block>
  ORRERY_DEVICE void flush(const Threads& threads, const Block& block, const device_item& item) {
    for_rows(threads, [&](int m, int half, int row) {
      threads.store(flushed_of(threads, m, half), origin.of[m][half]);
      const bool present = is_present(item, row);
      float* const to = block.out.at(item.batch, token_of(item, present ? row : 0), item.head);
      for_row_pairs<value_dim / 8, false, true>(threads, to, block.out.dim, present, [&](int n, float_pair& pair) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          pair.of[i] = out.of[m][n][2 * half + i];
          out.of[m][n][2 * half + i] = 0;
        }
      });
    });
  }

  /// Adds to `out` what is in memory: since the beginning, if results were not fresh, or else since the first `flush`.
  template <class Threads, class Block>
  ORRERY_DEVICE void fetch(const Threads& threads, const Block& block, const device_item& item) {
    for_rows(threads, [&](int m, int half, int row) {
      const auto flushed = threads.template load<float>(flushed_of(threads, m, half));
      // A row that had seen nothing may hold anything.
      const bool is_there = is_present(item, row) && !math::is_minus_infinity(flushed);
      const float factor = threads.exp2(flushed - exponent_of(origin.of[m][half]));
      const float* const from = block.out.at(item.batch, token_of(item, is_there ? row : 0), item.head);
      for_row_pairs<value_dim / 8, true, false>(threads, from, block.out.dim, is_there, [&](int n, float_pair& pair) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) out.of[m][n][2 * half + i] += is_there ? pair.of[i] * factor : 0.0f;
      });
    });
  }

  /// Writes the result. What a row did not see leaves its bits alone.
  template <class Threads, class Block>
  ORRERY_DEVICE void finish(const Threads& threads, const Block& block, const device_item& item) const {
    for_rows(threads, [&](int m, int half, int row) {
      const bool present = is_present(item, row);
      float* const lse = block.lse.at(item.batch, item.head, token_of(item, present ? row : 0));
      const float lse_before = block.fresh ? nothing : *lse;
      const float before = lse_before * log2_e;
      threads.converge();  // all lanes of a row have read what one of them writes
      const auto own = threads.template load<weight_sum>(sum_of(threads, m, half));
      float all = own.sum + own.rest;
      all += threads.shuffle_xor(all, 1);
      all += threads.shuffle_xor(all, 2);
      const float from = origin.of[m][half];
      const bool is_empty = math::is_minus_infinity(from) && all == 0;
      const bool untouched = !block.fresh && (is_empty || (all == 1 && from == before));
      if (!present || untouched) return;
      // Scores so large that a rounding of one is more than weights can be: rather no result than a wrong one.
      if (!is_empty && !(all > 0 && all < std::numeric_limits<float>::infinity())) {
        all = std::numeric_limits<float>::quiet_NaN();
      }
      if (threads.lane() % 4 == 0) {
        // Where the origin is that of the log-sum-exp before, this one's rounding is the only one.
        *lse = is_empty ? nothing : from == before ? lse_before + std::log(all) : fmaf(from, ln_2, std::log(all));
      }
      const float factor = 1.0f / all;
      float* const to = block.out.at(item.batch, token_of(item, row), item.head);
      for_row_pairs<value_dim / 8, false, true>(threads, to, block.out.dim, true, [&](int n, float_pair& pair) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) pair.of[i] = is_empty ? 0.0f : out.of[m][n][2 * half + i] * factor;
      });
    });
  }

 private:
  /// Returns true if the tile has a token for this row.
  static ORRERY_DEVICE bool is_present(const device_item& item, int row) {
    return row < static_cast<int>(item.tokens.count);
  }
  /// The shard's token of a row. Rows are widened as numbers without a sign: their upper halves take no registers.
  static ORRERY_DEVICE std::int64_t token_of(const device_item& item, int row) {
    return item.tokens.first + static_cast<std::uint32_t>(row);
  }

  static constexpr float log2_e = 1.44269504088896341f;
  static constexpr float ln_2 = 0.693147180559945309f;
  /// Weights are at most 2 to the power of this, which all types hold.
  static constexpr float most_exponent = 8;

  /// Returns the origin, or 0 for a row that has seen nothing yet: its weights and its change are then 0.
  static ORRERY_DEVICE float exponent_of(float origin) { return origin == nothing ? 0.0f : origin; }

  template <class Threads>
  ORRERY_DEVICE int sum_of(const Threads& threads, int m, int half) const {
    return sums_at + static_cast<int>(sizeof(weight_sum)) * (4 * (first + 16 * m + 8 * half) + threads.lane());
  }
  template <class Threads>
  ORRERY_DEVICE int flushed_of(const Threads& threads, int m, int half) const {
    return flushed_at + static_cast<int>(sizeof(float)) * (4 * (first + 16 * m + 8 * half) + threads.lane());
  }
};

}  // namespace orrery::detail
