// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/tensor/view.hpp"

/// Access to one row of a result in global memory, by the lane that holds it as fragments of mma.m16n8k16: of each
/// column tile n, the two adjacent columns 8n + 2 (lane % 4) and the next one.
namespace orrery::detail {

/// Returns true if a row of `dim` floats at this address can be accessed by pairs. Tensors of trainers are allocated at
/// multiples of 256 bytes, with even head dimensions: all of their rows can.
[[nodiscard]] ORRERY_DEVICE inline bool has_pairs(const float* row, std::int64_t dim) {
  return (reinterpret_cast<std::uintptr_t>(row) & 7) == 0 && dim % 2 == 0;
}

/// Calls change(n, pair) for the lane's pair of each of `tiles` column tiles with the row's values if
/// `reads` and zeros otherwise, and writes what it leaves if `writes`. Columns from `dim` on read as zeros, and are not
/// written. All columns of a row that is not `present` are such ones. Four pairs are read before the first of them is
/// written, so that their reads do not wait for each other.
///
/// Compares constants with one number of 32 bits, since compilers compute the columns themselves, in 64 bits, before a
/// kernel's loop, and then keep them all.
template <int tiles, bool reads, bool writes, class Threads, class Pointer, class Change>
ORRERY_DEVICE void for_row_pairs(const Threads& threads, Pointer row, std::int64_t dim, bool present,
                                 const Change& change) {
  constexpr int at_once = tiles % 4 == 0 ? 4 : 1;
  const int lane_column = threads.lane() % 4 * 2;
  const int end = present ? static_cast<int>(dim) - lane_column : 0;
  const Pointer own = row + lane_column;
  const bool by_pairs = has_pairs(row, dim);
  const auto visit = [&](const auto& read, const auto& write) {
    ORRERY_UNROLL
    for (int first = 0; first < tiles; first += at_once) {
      float_pair pairs[static_cast<unsigned>(at_once)];
      ORRERY_UNROLL
      for (int j = 0; j < at_once; ++j) {
        pairs[j] = {{0, 0}};
        if constexpr (reads) read(8 * (first + j), pairs[j]);
        change(first + j, pairs[j]);
      }
      if constexpr (writes) {
        ORRERY_UNROLL
        for (int j = 0; j < at_once; ++j) write(8 * (first + j), pairs[j]);
      }
    }
  };
  if (by_pairs) {
    visit(
        [&](int column, float_pair& pair) {
          if (column < end) pair = threads.read_pair(own + column);
        },
        [&](int column, const float_pair& pair) {
          if constexpr (writes) {
            if (column < end) threads.write_pair(own + column, pair);
          }
        });
  } else {
    visit(
        [&](int column, float_pair& pair) {
          if (column < end) pair.of[0] = own[column];
          if (column + 1 < end) pair.of[1] = own[column + 1];
        },
        [&](int column, const float_pair& pair) {
          if constexpr (writes) {
            if (column < end) own[column] = pair.of[0];
            if (column + 1 < end) own[column + 1] = pair.of[1];
          }
        });
  }
}

/// to = factor * sums, or to += factor * sums if not `fresh`, of the rows row_of(0) and row_of(1) of the item's tile,
/// of which the lane has words 0 and 1, and 2 and 3.
template <int tiles, class Threads, class RowOf>
ORRERY_DEVICE void add_rows(const Threads& threads, const fragments<1, tiles>& sums, float factor,
                            const tensor_view<float>& to, bool fresh, const device_item& item, const RowOf& row_of) {
  ORRERY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = row_of(half);
    if (row >= item.tokens.count) continue;
    float* const target = to.at(item.batch, item.tokens.first + row, item.head);
    const auto add = [&](int n, float_pair& pair) {
      ORRERY_UNROLL
      for (int i = 0; i < 2; ++i) pair.of[i] += factor * sums.of[0][n][2 * half + i];
    };
    if (fresh) {
      for_row_pairs<tiles, false, true>(threads, target, to.dim, true, add);
    } else {
      for_row_pairs<tiles, true, true>(threads, target, to.dim, true, add);
    }
  }
}

}  // namespace orrery::detail
