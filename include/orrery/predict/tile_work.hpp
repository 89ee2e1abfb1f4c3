// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/predict/machine.hpp"
#include "orrery/schedule/block.hpp"

namespace orrery {

/// What a kernel computes in one tile of attention: what its time depends on.
struct tile_work {
  schedule::pass pass = schedule::pass::forward;
  std::int64_t pairs = 0;          ///< visible (query, key) pairs of one head
  std::int64_t rows = 0;           ///< queries that see a key
  std::int64_t longest_row = 0;    ///< the most keys that a query sees
  std::int64_t diagonal_rows = 0;  ///< rows that see some keys of a piece and not all of it
  std::int64_t query_heads = 0;    ///< of the tile's slice
  std::int64_t key_heads = 0;      ///< likewise
  std::int64_t batch = 1;
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;

  /// Floating-point operations for each visible pair and query head: two for each multiplication.
  [[nodiscard]] double flop_per_pair() const noexcept {
    const auto d = static_cast<double>(head_dim), v = static_cast<double>(value_dim);
    return pass == schedule::pass::forward ? 2 * (d + v) : 2 * (3 * d + 2 * v);
  }
  /// True if it is, by and large, a square with a diagonal: then kernels compute it at their causal rate.
  [[nodiscard]] bool is_diagonal() const noexcept {
    const double all = static_cast<double>(rows) * static_cast<double>(longest_row);
    const auto visible = static_cast<double>(pairs);
    return 2 * diagonal_rows > rows && visible >= 0.4 * all && visible <= 0.75 * all;
  }
};

/// Seconds that a kernel of these rates takes for a tile: 0 if nothing in it is visible. Launch, plus the work at the
/// rate of full or of diagonal tiles, plus the tail of a call: the longest row's block on one of the device's units.
[[nodiscard]] inline double tile_seconds(const tile_work& w, const machine::kernel_rates& rates) noexcept {
  if (w.pairs <= 0) return 0;
  const double rate = w.is_diagonal() && rates.causal > 0 ? rates.causal : rates.full;
  const double pairs = static_cast<double>(w.pairs) + static_cast<double>(w.rows) * rates.prologue +
                       static_cast<double>(w.diagonal_rows) * rates.block;
  const double heads = static_cast<double>(w.query_heads) * static_cast<double>(w.batch);
  const double tail = rates.block * static_cast<double>(w.longest_row) * rates.units;
  return rates.launch + w.flop_per_pair() * (pairs * heads + tail) / rate;
}

}  // namespace orrery
