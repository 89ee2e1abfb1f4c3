// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/kernel/cpu/flash_forward_workspace.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/kernel/cpu/scratch.hpp"

namespace orrery::detail {

/// The scratch of an item of `flash_few_rows`. Rows lie key head by key head; those of a key head, query head by query
/// head, and those of a query head token by token.
template <class A>
struct flash_few_rows_workspace {
  std::int64_t value_dim;
  std::int64_t value_ld;

  A* queries;        // [row][key_ld], scaled to powers of two
  A* out;            // [row][value_ld]
  A* block_out;      // as out, of a block of keys; zero between blocks
  A* total_out;      // as out, of those blocks of keys that are no longer in out
  A* largest;        // [row]
  A* sum;            // [row]
  A* total_largest;  // [row], what the totals are relative to
  A* total_sum;      // [row]
  A* scores;         // [row][key]
  A* copies;         // [token][head][dim], of keys or values that are not read where they lie

  void multiply(A* of, A factor) const noexcept {
    for (std::int64_t i = 0; i < value_dim; ++i) of[i] *= factor;
  }

  /// Carries the sums of a row over to its totals.
  void carry(std::int64_t row, bool first, const flash_steps<A>& steps) const {
    A* total = total_out + row * value_ld;
    if (first) {
      total_sum[row] = A{0};
      total_largest[row] = largest[row];
      fill_zero(total, value_ld);
    } else {
      rescale_totals(row);
    }
    steps.carry(sum + row, A{1}, A{1}, total_sum + row, 1);
    steps.carry(out + row * value_ld, A{1}, A{1}, total, value_dim);
  }

  /// Makes the sums of a row those of all keys.
  void add_totals(std::int64_t row) const {
    rescale_totals(row);
    sum[row] += total_sum[row];
    A* to = out + row * value_ld;
    const A* total = total_out + row * value_ld;
    for (std::int64_t i = 0; i < value_dim; ++i) to[i] += total[i];
  }

 private:
  /// Makes the totals of a row relative to the largest score so far.
  void rescale_totals(std::int64_t row) const {
    const A before = total_largest[row];
    const A now = largest[row];
    total_largest[row] = now;
    // NOLINTNEXTLINE(clang-diagnostic-float-equal)
    if (before == now) return;
    const A factor = flash_running_row<A>::rescaling(before, now);
    total_sum[row] *= factor;
    multiply(total_out + row * value_ld, factor);
  }
};

}  // namespace orrery::detail
