// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/device/code.hpp"
#include "orrery/mask/mask.hpp"

/// What a mask lets a thread of `device_flash` see of a tile: a word for each of its rows, in which bit 2n + i belongs
/// to the i-th of the thread's two columns in column tile n, which is column 8n + 2 (lane % 4) + i.
namespace orrery::detail {

/// Returns which of a thread's columns are among the first `count` and visible, asking once for each. The loop is not
/// unrolled, so that a mask's code is there once for a row and not once for a pair.
template <class Threads, class Visible>
ORRERY_DEVICE std::uint32_t visible_columns(const Threads& threads, int count, const Visible& visible) {
  std::uint32_t bits = 0;
  const int pairs = (count + 7) / 8 * 2;
  for (int i = 0; i < pairs; ++i) {
    const int column = i / 2 * 8 + threads.lane() % 4 * 2 + i % 2;
    if (column < count && visible(column)) bits |= std::uint32_t{1} << i;
  }
  return bits;
}

/// Returns which of a thread's columns are before column `end`, which is at most 128.
template <class Threads>
ORRERY_DEVICE std::uint32_t columns_before(const Threads& threads, int end) {
  const int rest = end % 8 - threads.lane() % 4 * 2;
  const int bits = end / 8 * 2 + (rest < 0 ? 0 : rest > 2 ? 2 : rest);
  return bits >= 32 ? ~std::uint32_t{0} : (std::uint32_t{1} << bits) - 1;
}

/// Returns how many of `count` columns, at most 128, come before the first one of which `before` is false, by eight
/// questions. `before` must be true for the first columns, and false for all others.
template <class Before>
ORRERY_DEVICE int count_before(int count, const Before& before) {
  int found = 0;
  ORRERY_UNROLL
  for (int step = 128; step > 0; step /= 2) {
    if (found + step <= count && before(found + step - 1)) found += step;
  }
  return found;
}

/// Returns which keys of a tile a query sees. `position(column)` increases. A mask of intervals is asked once, and its
/// bounds are searched for; others are asked for each key.
template <class Threads, class Mask, class Position>
ORRERY_DEVICE std::uint32_t visible_keys(const Threads& threads, const Mask& mask, std::int64_t query, int count,
                                         const Position& position) {
  if constexpr (mask_of_intervals<Mask>) {
    const position_interval seen = mask.keys_of(query, query);
    const int end = count_before(count, [&](int column) { return position(column) <= seen.last; });
    if (end == 0 || position(0) >= seen.first) return columns_before(threads, end);
    const int first = count_before(end, [&](int column) { return position(column) < seen.first; });
    return columns_before(threads, end) & ~columns_before(threads, first);
  } else {
    return visible_columns(threads, count, [&](int column) { return mask.visible(query, position(column)); });
  }
}

/// A mask that is a diagonal, whatever its values: a query sees all keys that an earlier query sees.
template <class Mask>
concept mask_of_diagonal = diagonal_mask<Mask> && !requires(const Mask& mask) {
  mask.is_diagonal();
};

/// Returns which queries of a tile see a key. `position(column)` increases. The first query below a diagonal is
/// searched for; other masks are asked for each query.
template <class Threads, class Mask, class Position>
ORRERY_DEVICE std::uint32_t visible_queries(const Threads& threads, const Mask& mask, std::int64_t key, int count,
                                            const Position& position) {
  if constexpr (mask_of_diagonal<Mask>) {
    const int first = count_before(count, [&](int column) { return !mask.visible(position(column), key); });
    return columns_before(threads, count) & ~columns_before(threads, first);
  } else {
    return visible_columns(threads, count, [&](int column) { return mask.visible(position(column), key); });
  }
}

}  // namespace orrery::detail
