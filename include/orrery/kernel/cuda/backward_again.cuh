// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

#include "orrery/attention/token_blocks.hpp"
#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/tensor/math.hpp"

/// What the backward of `device_flash` does about sums that became NaN.
///
/// A pair that is hidden has the weight 0, but 0 times an infinity or NaN is NaN. A test for that would cost every
/// call, so products add it. But a warp does not write a sum that is NaN, and when its block of threads has gone
/// through all columns, the sums of such warps are formed again, more slowly, by `device_flash_backward_again`. Others
/// pay for it outside of their loops: by a test of their sums, and a barrier.
namespace orrery::detail {

/// Which part of a sum (see `columns_of_sum`) was the first that each warp of a block has not written: from then on it
/// writes none.
struct unwritten_parts {
  static constexpr int bytes(int warps) { return 4 * warps; }

  int at;  ///< in shared memory

  /// Called by a warp before the other functions.
  template <class Threads>
  ORRERY_DEVICE void begin(const Threads& threads, int warp) const {
    if (threads.lane() == 0) threads.store(at + 4 * warp, -1);
  }
  /// Returns true if the warp is to write its sums of part `part`, of which a thread's `is_nan` says that one is NaN.
  template <class Threads>
  [[nodiscard]] ORRERY_DEVICE bool keep(const Threads& threads, int warp, int part, bool is_nan) const {
    const bool leads = threads.lane() == 0;  // only this lane accesses the warp's word
    const bool lacks_others = threads.any(leads && threads.template load<int>(at + 4 * warp) >= 0);
    const bool lacks_this = threads.any(is_nan);
    if (leads && lacks_this && !lacks_others) threads.store(at + 4 * warp, part);
    threads.converge();
    return !lacks_this && !lacks_others;
  }
  /// Returns true if the warp has not written this part. After a barrier.
  template <class Threads>
  [[nodiscard]] ORRERY_DEVICE bool lacks(const Threads& threads, int warp, int part) const {
    const int first = threads.template load<int>(at + 4 * warp);
    return first >= 0 && part >= first;
  }
  /// Returns the first part that any of the warps has not written, or -1. After a barrier.
  template <class Threads>
  [[nodiscard]] ORRERY_DEVICE int first(const Threads& threads, int warps) const {
    int first = -1;
    ORRERY_NO_UNROLL
    for (int warp = 0; warp < warps; ++warp) {
      const int part = threads.template load<int>(at + 4 * warp);
      if (part >= 0 && (first < 0 || part < first)) first = part;
    }
    return first;
  }
};

/// The tiles of the two tensors of one side, in shared memory, as `shared_tile` or `swizzled_tile`: queries or keys,
/// and grad_out or values.
template <class First, class Second>
struct pair_of_tiles {
  First first;
  Second second;
};
template <class First, class Second>
pair_of_tiles(First, Second) -> pair_of_tiles<First, Second>;

/// Sums of the pairs of a warp's 16 rows with tiles of columns, as the backward's kernels form them, but
///
/// - a pair without weight has no gradient, whatever its product of grad_out and value is;
/// - elements of queries and keys that are infinite or NaN add nothing. They are so in their scores: a score of
///   -infinity has no gradient, and any other makes the query's log-sum-exp NaN, and with it all gradients of scores,
///   whose products with other elements, and with 0, are NaN;
/// - elements of grad_out that are so are added by themselves, to sums of those pairs that have a weight.
///
/// So results are those of each pair's definition. Computes 16 columns at once, so that it has little code and needs
/// fewer registers than the kernel that it is a part of.
template <class T, bool rows_are_queries, bool sums_first, bool sums_second, class FirstSum, class SecondSum>
struct device_flash_backward_again {
  /// Returns true if one of the thread's sums is NaN that need not be. `numbers` are those of its rows: log-sum-exp, as
  /// exponent of 2, and delta.
  template <class Threads, class Numbers>
  [[nodiscard]] static ORRERY_DEVICE bool is_nan(const Threads& threads, int warp, const device_item& item,
                                                 const Numbers& numbers, const FirstSum& first_sum,
                                                 const SecondSum& second_sum) {
    bool found = false;
    ORRERY_UNROLL
    for (int half = 0; half < 2; ++half) {
      bool counts = row_of(threads, warp, half) < item.tokens.count;
      if constexpr (rows_are_queries) counts = counts && !has_nan_gradient(numbers.lse[half], numbers.delta[half]);
      if constexpr (sums_first) found = found || (counts && has_nan(first_sum, half));
      if constexpr (sums_second) found = found || (counts && has_nan(second_sum, half));
    }
    return found;
  }

  /// Forms the sums of parts from `first_part` on, of `tiles_of_sum` tiles each, and calls write(part, first_sum,
  /// second_sum). `at` is at its beginning. bring(at) copies a tile, and waits for it, and before for all threads.
  /// `factor` makes exponents of 2 of products of queries and keys.
  template <class Threads, class Numbers, class Mask, class Cursor, class Rows, class Columns, class Bring, class Write>
  static ORRERY_DEVICE void run(const Threads& threads, int warp, const device_item& item, const Numbers& numbers,
                                const Mask& mask, float factor, Cursor at, const Rows& rows, const Columns& columns,
                                int tiles_of_sum, int first_part, const Bring& bring, const Write& write) {
    const auto position_of = [&](int row) {
      return item.tokens.position(row < item.tokens.count ? row : item.tokens.count - 1);
    };
    const std::int64_t positions[2] = {position_of(row_of(threads, warp, 0)), position_of(row_of(threads, warp, 1))};
    const std::int64_t first_position = item.tokens.position(0);
    const std::int64_t last_position = item.tokens.position(item.tokens.count - 1);
    const auto classify = [&](std::int64_t first, std::int64_t last) {
      return rows_are_queries ? mask.classify(first_position, last_position, first, last)
                              : mask.classify(first, last, first_position, last_position);
    };
    bool more = at.next(classify);
    for (int part = 0; more; ++part) {
      auto first_sum = FirstSum::zeros();
      auto second_sum = SecondSum::zeros();
      ORRERY_NO_UNROLL
      for (int tile = 0; more && tile < tiles_of_sum; ++tile, more = at.next(classify)) {
        if (part < first_part) continue;
        bring(at);
        const token_block tokens = at.tokens();
        const auto visible = [&](int half, int column) {
          if (column >= tokens.count || row_of(threads, warp, half) >= item.tokens.count) return false;
          const std::int64_t row = positions[half], other = tokens.position(column);
          return rows_are_queries ? mask.visible(row, other) : mask.visible(other, row);
        };
        const auto numbers_of = [&](int half, int column) {
          if constexpr (rows_are_queries) {
            return query_numbers{numbers.lse[half], numbers.delta[half]};
          } else {
            if (column >= tokens.count) return query_numbers{infinity, 0};
            const std::int64_t token = tokens.first + column;
            const float lse = *at.block().lse.at(item.batch, at.head(), token);
            return query_numbers{math::is_minus_infinity(lse) ? infinity : lse * log2_e,
                                 *at.block().delta.at(item.batch, at.head(), token)};
          }
        };
        add(threads, first_sum, second_sum, rows, 16 * warp, columns, static_cast<int>(tokens.count), factor, visible,
            numbers_of);
      }
      write(part, first_sum, second_sum);
    }
  }

 private:
  static constexpr float log2_e = 1.44269504088896341f;
  static constexpr float infinity = std::numeric_limits<float>::infinity();
  static constexpr std::uint32_t infinite_bits = std::numeric_limits<T>::infinity().bits;

  struct query_numbers {
    float lse;
    float delta;
  };

  /// The row, of the block's tile, of a thread's words 0 and 1 (half 0) or 2 and 3.
  template <class Threads>
  static ORRERY_DEVICE int row_of(const Threads& threads, int warp, int half) {
    return 16 * warp + 8 * half + threads.lane() / 4;
  }

  template <int tiles>
  static ORRERY_DEVICE bool has_nan(const fragments<1, tiles>& sums, int half) {
    bool found = false;
    ORRERY_UNROLL
    for (int n = 0; n < tiles; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 2; ++i) found = found || math::is_nan(sums.of[0][n][2 * half + i]);
    }
    return found;
  }

  /// Returns true if the gradient of a query that saw a key is NaN, whatever its columns are. A query that saw none has
  /// an infinite exponent.
  static ORRERY_DEVICE bool has_nan_gradient(float lse, float delta) {
    return math::is_nan(lse) || (!math::is_finite(delta) && lse != infinity);
  }

  /// Adds the first `count` columns of a tile.
  template <class Threads, class Rows, class Columns, class Visible, class NumbersOf>
  static ORRERY_DEVICE void add(const Threads& threads, FirstSum& first_sum, SecondSum& second_sum, const Rows& rows,
                                int first_row, const Columns& columns, int count, float factor, const Visible& visible,
                                const NumbersOf& numbers_of) {
    ORRERY_NO_UNROLL
    for (int at = 0; at < count; at += 16) {
      const auto column_of = [&](int n, int i) { return at + 8 * n + threads.lane() % 4 * 2 + i % 2; };
      std::uint32_t seen = 0;  // bit 4n + i
      ORRERY_NO_UNROLL
      for (int e = 0; e < 8; ++e) {
        if (visible(e / 2 % 2, column_of(e / 4, e))) seen |= std::uint32_t{1} << e;
      }
      auto p = fragments<1, 2>::zeros();
      auto grad = fragments<1, 2>::zeros();
      multiply_rows(threads, p, rows.first, first_row, columns.first, at);
      if constexpr (sums_first) multiply_rows(threads, grad, rows.second, first_row, columns.second, at);
      ORRERY_UNROLL
      for (int n = 0; n < 2; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 4; ++i) {
          float& weight = p.of[0][n][i];
          float& gradient = grad.of[0][n][i];
          const query_numbers query = numbers_of(i / 2, column_of(n, i));
          const bool is_hidden = (seen >> (4 * n + i) & 1) == 0 || math::is_minus_infinity(weight * factor);
          weight = is_hidden ? 0.0f : threads.exp2(fmaf(weight, factor, -query.lse));
          gradient = weight == 0 ? 0.0f : weight * (gradient - query.delta);
        }
      }
      if constexpr (sums_second) multiply_columns<true>(threads, second_sum, p, columns.second, at);
      if constexpr (sums_first) multiply_columns<false>(threads, first_sum, grad, columns.first, at);
    }
  }

  /// sums += 16 rows of a, from `first_row` on, times 16 of b, from `first_column` on
  template <class Threads, class A, class B>
  static ORRERY_DEVICE void multiply_rows(const Threads& threads, fragments<1, 2>& sums, const A& a, int first_row,
                                          const B& b, int first_column) {
    const int lane = threads.lane();
    ORRERY_UNROLL
    for (int k = 0; k < A::elements_of_row / 16; ++k) {
      std::uint32_t a_words[4], b_words[4];
      threads.load_matrices(a_words, a.place(first_row + lane % 16, 2 * k + lane / 16));
      threads.load_matrices(b_words, b.place(first_column + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
      threads.template multiply_add<T>(sums.of[0][0], a_words, b_words[0], b_words[1]);
      threads.template multiply_add<T>(sums.of[0][1], a_words, b_words[2], b_words[3]);
    }
  }

  /// sums += p, rounded, times 16 rows of b, from `first_row` on. Elements of b that are not finite count as 0, or, if
  /// `with_others`, are added where p is not 0, which is a weight.
  template <bool with_others, class Threads, int tiles, class B>
  static ORRERY_DEVICE void multiply_columns(const Threads& threads, fragments<1, tiles>& sums,
                                             const fragments<1, 2>& p, const B& b, int first_row) {
    const int lane = threads.lane();
    std::uint32_t p_words[4], counted[4];
    ORRERY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float low = p.of[0][i / 2][i % 2 * 2], high = p.of[0][i / 2][i % 2 * 2 + 1];
      p_words[i] = threads.template pack<T>(low, high);
      counted[i] = threads.template pack<T>(low == 0 ? 0.0f : 1.0f, high == 0 ? 0.0f : 1.0f);
    }
    ORRERY_UNROLL
    for (int n = 0; n < tiles / 2; ++n) {
      std::uint32_t b_words[4];
      threads.load_transposed(b_words, b.place(first_row + lane % 16, 2 * n + lane / 16));
      if constexpr (with_others) {
        ORRERY_NO_UNROLL
        for (int sign = 0; sign < 2; ++sign) {
          std::uint32_t others[4];
          ORRERY_UNROLL
          for (int w = 0; w < 4; ++w) {
            others[w] = each_element(b_words[w], [&](std::uint32_t x) { return one_if_infinite(x, sign); });
          }
          auto count = fragments<1, 2>::zeros();
          threads.template multiply_add<T>(count.of[0][0], counted, others[0], others[1]);
          threads.template multiply_add<T>(count.of[0][1], counted, others[2], others[3]);
          ORRERY_UNROLL
          for (int i = 0; i < 8; ++i) {
            if (count.of[0][i / 4][i % 4] > 0) sums.of[0][2 * n + i / 4][i % 4] += sign == 0 ? infinity : -infinity;
          }
        }
      }
      ORRERY_UNROLL
      for (int w = 0; w < 4; ++w) {
        b_words[w] = each_element(b_words[w], [](std::uint32_t x) { return is_finite(x) ? x : 0; });
      }
      threads.template multiply_add<T>(sums.of[0][2 * n], p_words, b_words[0], b_words[1]);
      threads.template multiply_add<T>(sums.of[0][2 * n + 1], p_words, b_words[2], b_words[3]);
    }
  }

  /// Applies `change` to the bits of a word's two elements.
  template <class Change>
  static ORRERY_DEVICE std::uint32_t each_element(std::uint32_t word, const Change& change) {
    return change(word & 0xffffu) | change(word >> 16) << 16;
  }
  static ORRERY_DEVICE bool is_finite(std::uint32_t x) { return (x & infinite_bits) != infinite_bits; }
  /// Returns 1, as an element, for an infinity of this sign, and for NaN, which counts as infinities of both signs.
  static ORRERY_DEVICE std::uint32_t one_if_infinite(std::uint32_t x, int sign) {
    constexpr std::uint32_t one = T{1.0f}.bits;
    const bool is_nan = (x & 0x7fffu) > infinite_bits;
    return is_nan || x == (infinite_bits | (sign == 0 ? 0u : 0x8000u)) ? one : 0;
  }
};

}  // namespace orrery::detail
