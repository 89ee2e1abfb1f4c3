// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <limits>

#include "orrery/kernel/cpu/exponential.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/kernel/cpu/scratch.hpp"
#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// A row's result so far as the forward of `flash` goes on from it: as if it had seen `weight` keys of one score,
/// `largest`, whose value is the mean so far.
template <class A>
struct flash_running_row {
  A largest;
  A weight;

  /// The weight is a power of two, so that nothing is rounded, and such that the score is about as large as those of
  /// the keys that were many: differences of scores are then small, and as exact as they can be.
  static flash_running_row of(A lse) noexcept {
    constexpr math::minus_infinity<A> nothing{};
    if (math::is_minus_infinity(lse)) return {nothing, A{0}};
    constexpr int most = 24;
    const double exact = static_cast<double>(lse) * log2_e<double>;
    if (!(exact >= 0.5)) return {log2_of_log(lse), A{1}};
    // NOLINTNEXTLINE(bugprone-incorrect-roundings): not negative, and either power will do at a half
    const int power = exact < most ? static_cast<int>(exact + 0.5) : most;
    const double largest = exact - power;
    constexpr auto limit = static_cast<double>((std::numeric_limits<A>::max)());
    return {static_cast<A>(largest < limit ? largest : limit), static_cast<A>(std::int64_t{1} << power)};
  }

  /// Returns the row's log-sum-exp, -infinity if it has seen no key.
  [[nodiscard]] A log_sum_exp() const noexcept {
    constexpr math::minus_infinity<A> nothing{};
    if (weight == A{0}) return nothing;
    return static_cast<A>(static_cast<double>(largest) * ln_2<double> + math::log(static_cast<double>(weight)));
  }

  /// What makes sums that are relative to the score `before` relative to `now`: a factor, 0 if they are of no key.
  [[nodiscard]] static A rescaling(A before, A now) noexcept {
    if (math::is_minus_infinity(before)) return A{0};
    if (before == now) return A{1};
    return static_cast<A>(math::exp(ln_2<double> * static_cast<double>(before - now)));
  }

  bool operator==(const flash_running_row&) const = default;
};

/// The scratch of a block of rows in the forward of `flash`: what the rows need for their whole life, what is made anew
/// for each block of keys, and the totals of those blocks of keys that are no longer in `out` and `sum`.
template <class A>
struct flash_forward_workspace {
  std::int64_t columns;     // rows of a tile
  std::int64_t value_rows;  // the value dimension, padded

  A* queries;    // [tile][key_dim][columns], scaled to powers of two
  A* out;        // [tile][value_rows][columns]
  A* largest;    // [tile][columns]
  A* sum;        // [tile][columns]
  A* factors;    // [columns]
  A* keys;       // [key_block][key_ld]
  A* values;     // [key_block][value_ld]
  A* next_keys;  // as keys, of the block of keys that comes next
  A* next_values;
  A* scores;         // [key_block][columns]
  A* total_out;      // as out
  A* total_sum;      // as sum
  A* total_largest;  // what the totals are relative to, as largest

  /// Carries the sums of the tile of queries from `row` on over to their totals.
  void carry(std::int64_t row, bool first, const flash_steps<A>& steps) const {
    if (first) {
      for (std::int64_t i = row; i < row + columns; ++i) {
        total_sum[i] = A{0};
        total_largest[i] = largest[i];
      }
      fill_zero(total_out + row * value_rows, value_rows * columns);
    } else {
      rescale_totals(row);
    }
    steps.carry(sum + row, A{1}, A{1}, total_sum + row, columns);
    steps.carry(out + row * value_rows, A{1}, A{1}, total_out + row * value_rows, value_rows * columns);
  }

  /// Makes the sums of the tile of queries from `row` on those of all keys.
  void add_totals(std::int64_t row) const {
    rescale_totals(row);
    for (std::int64_t i = row; i < row + columns; ++i) sum[i] += total_sum[i];
    A* to = out + row * value_rows;
    const A* total = total_out + row * value_rows;
    for (std::int64_t i = 0; i < value_rows * columns; ++i) to[i] += total[i];
  }

 private:
  /// Makes the totals of the tile of queries from `row` on relative to the largest scores so far. (Where these differ,
  /// the totals become less than 2^-flash_head_room times what they were, and roundings do not add up.)
  void rescale_totals(std::int64_t row) const {
    bool same = true;
    for (std::int64_t i = row; i < row + columns; ++i) {
      const A before = total_largest[i];
      const A now = largest[i];
      factors[i - row] = flash_running_row<A>::rescaling(before, now);
      same = same && (before == now || math::is_minus_infinity(before));
      total_largest[i] = now;
    }
    if (same) return;
    for (std::int64_t i = 0; i < columns; ++i) total_sum[row + i] *= factors[i];
    A* to = total_out + row * value_rows;
    for (std::int64_t c = 0; c < value_rows; ++c) {
      for (std::int64_t i = 0; i < columns; ++i) to[c * columns + i] *= factors[i];
    }
  }
};

}  // namespace orrery::detail
