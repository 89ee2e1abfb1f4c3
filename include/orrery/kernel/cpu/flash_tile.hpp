// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <limits>
#include <span>

#include "orrery/attention/tile.hpp"
#include "orrery/attention/token_blocks.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/kernel/cpu/scratch.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// Limits and costs of the blocks in which a tile of `flash` is computed. An overhead is measured in the arithmetic of
/// one row with one key.
struct flash_block_costs {
  std::int64_t rows_granule;
  std::int64_t most_rows;
  std::int64_t keys_granule;
  std::int64_t most_keys;
  std::int64_t scratch_elements;
  double of_rows;  ///< overhead of a key, which the rows of a block share
  double of_keys;  ///< overhead of a row, which the keys of a block share
};

/// What the forward tile and the backward tile of `flash` have in common: the arguments of the call, the sizes of
/// blocks, and what the mask says of two of them.
template <class Queries, class Keys, class A, mask Mask>
class flash_tile {
 protected:
  flash_tile(std::span<const Queries> queries, std::span<const Keys> keys, const head_map& heads, A scale,
             const Mask& mask, const flash_steps<A>& steps) noexcept
      : queries_(queries), keys_(keys), heads_(heads), scale_(scale), mask_(mask), steps_(steps) {}

  static constexpr math::minus_infinity<A> nothing{};

  /// Distances of scratch rows that hold a key or a value.
  std::int64_t key_ld() const noexcept { return scratch_cursor<A>::row_distance(key_dim_); }
  std::int64_t value_ld() const noexcept { return scratch_cursor<A>::row_distance(value_dim_); }

  /// Chooses the blocks with the least overhead for each pair that fit: elements(rows, keys) of scratch at most.
  template <class Elements>
  void choose_block_sizes(const flash_block_costs& costs, const Elements& elements) noexcept {
    double least = (std::numeric_limits<double>::max)();
    for (std::int64_t keys = costs.keys_granule; keys <= costs.most_keys; keys += costs.keys_granule) {
      std::int64_t rows = 0;
      while (rows < costs.most_rows && elements(rows + costs.rows_granule, keys) <= costs.scratch_elements)
        rows += costs.rows_granule;
      const double overhead = costs.of_rows / static_cast<double>(rows) + costs.of_keys / static_cast<double>(keys);
      if (rows == 0 || overhead >= least) continue;
      least = overhead;
      key_block_ = keys;
      row_block_ = rows;
    }
  }

  /// What some rows of a block see of some keys of another.
  visibility classify(const token_block& rows, std::int64_t row, std::int64_t row_count, const token_block& keys,
                      std::int64_t key, std::int64_t key_count) const {
    return mask_.classify(rows.position(row), rows.position(row + row_count - 1), keys.position(key),
                          keys.position(key + key_count - 1));
  }

  /// A block of keys without those groups of `granule` keys at its ends of which these rows see nothing. `seen` is what
  /// they see of the whole block.
  token_range seen_part(visibility seen, const token_block& rows, std::int64_t row, std::int64_t row_count,
                        const token_block& keys, std::int64_t granule) const {
    if (seen != visibility::some) return {0, keys.count};
    if constexpr (mask_of_intervals<Mask>) {
      const token_range some = visible_tokens(mask_, rows.position(row), rows.position(row + row_count - 1), keys);
      const std::int64_t last = round_up(some.last, granule);
      return {some.first / granule * granule, last < keys.count ? last : keys.count};
    }
    return without_invisible_ends(keys.count, granule, [&](std::int64_t key, std::int64_t key_count) {
      return classify(rows, row, row_count, keys, key, key_count);
    });
  }

  std::span<const Queries> queries_;
  std::span<const Keys> keys_;
  const head_map& heads_;
  A scale_;
  const Mask& mask_;
  flash_steps<A> steps_;
  std::int64_t key_dim_ = 0;
  std::int64_t value_dim_ = 0;
  std::int64_t key_block_ = 0;
  std::int64_t row_block_ = 0;
};

}  // namespace orrery::detail
