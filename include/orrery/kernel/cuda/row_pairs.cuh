// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/device/code.hpp"

/// Access to one row of a result in global memory, by the lane that holds it as fragments of mma.m16n8k16: of each
/// column tile n, the two adjacent columns 8n + 2 (lane % 4) and the next one.
namespace orrery::detail {

/// Returns true if a row of `dim` floats at this address can be accessed by pairs. Tensors of trainers are allocated at
/// multiples of 256 bytes, with even head dimensions: all of their rows can.
[[nodiscard]] ORRERY_DEVICE inline bool has_pairs(const float* row, std::int64_t dim) {
  return (reinterpret_cast<std::uintptr_t>(row) & 7) == 0 && dim % 2 == 0;
}

/// Calls change(n, pair) for the lane's pair of each of `tiles` column tiles, with the row's values if `reads` and
/// zeros otherwise, and writes what it leaves if `writes`. Columns from `dim` on read as zeros, and are not written.
/// All columns of a row that is not `present` are such ones.
///
/// Compares constants with one number of 32 bits, since compilers compute the columns themselves, in 64 bits, before a
/// kernel's loop, and then keep them all.
template <int tiles, bool reads, bool writes, class Threads, class Pointer, class Change>
ORRERY_DEVICE void for_row_pairs(const Threads& threads, Pointer row, std::int64_t dim, bool present,
                                 const Change& change) {
  const int lane_column = threads.lane() % 4 * 2;
  const int end = present ? static_cast<int>(dim) - lane_column : 0;
  const Pointer own = row + lane_column;
  if (has_pairs(row, dim)) {
    ORRERY_UNROLL
    for (int n = 0; n < tiles; ++n) {
      float_pair pair{{0, 0}};
      if constexpr (reads) {
        if (8 * n < end) pair = threads.read_pair(own + 8 * n);
      }
      change(n, pair);
      if constexpr (writes) {
        if (8 * n < end) threads.write_pair(own + 8 * n, pair);
      }
    }
    return;
  }
  ORRERY_UNROLL
  for (int n = 0; n < tiles; ++n) {
    float_pair pair{{0, 0}};
    if constexpr (reads) {
      if (8 * n < end) pair.of[0] = own[8 * n];
      if (8 * n + 1 < end) pair.of[1] = own[8 * n + 1];
    }
    change(n, pair);
    if constexpr (writes) {
      if (8 * n < end) own[8 * n] = pair.of[0];
      if (8 * n + 1 < end) own[8 * n + 1] = pair.of[1];
    }
  }
}

}  // namespace orrery::detail
