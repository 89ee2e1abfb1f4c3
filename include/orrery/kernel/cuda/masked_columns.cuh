// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>

#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/shared_tiles.cuh"

namespace orrery::detail {

/// Columns of a tile, up to 64, as a set: word t has bit 2n + i for column 8n + 2t + i.
struct alignas(16) column_set {
  std::uint32_t word[4];

  /// The first `count` columns.
  [[nodiscard]] static constexpr column_set first(int count) noexcept {
    column_set all{};
    const int groups = count / 8;
    const int rest = count % 8;
    for (int t = 0; t < 4; ++t) {
      const int more = rest <= 2 * t ? 0 : rest == 2 * t + 1 ? 1 : 2;
      all.word[t] = (std::uint32_t{1} << (2 * groups + more)) - 1;
    }
    return all;
  }
  [[nodiscard]] constexpr column_set without(const column_set& others) const noexcept {
    column_set left{};
    for (int t = 0; t < 4; ++t) left.word[t] = word[t] & ~others.word[t];
    return left;
  }
  [[nodiscard]] constexpr bool empty() const noexcept { return (word[0] | word[1] | word[2] | word[3]) == 0; }
  [[nodiscard]] constexpr bool has(int column) const noexcept {
    const int t = column % 8 / 2;
    const std::uint32_t of_column = t == 0 ? word[0] : t == 1 ? word[1] : t == 2 ? word[2] : word[3];
    return (of_column >> (column / 8 * 2 + column % 2) & 1) != 0;
  }
};

/// Finds the columns of a partly visible tile that no row of a block of `warps` warps sees. Warps exchange what they
/// see through shared memory.
///
/// A weight of 0 does not leave out what it weighs, since 0 times an infinity or NaN is NaN: so columns that nobody
/// sees, which may hold anything, become 0 themselves. Only tiles of which the mask hides something pay for it: a few
/// words and a barrier, and, if there are such columns, their clearing.
template <int warps>
struct hidden_columns {
  static constexpr int bytes = 16 * warps;

  int at;  ///< in shared memory

  /// Writes a warp's part: `seen` are a thread's visible columns (see `visible_columns`), of all its rows together.
  template <class Threads>
  ORRERY_DEVICE void write(const Threads& threads, std::uint32_t seen) const {
    ORRERY_UNROLL
    for (int distance = 4; distance < 32; distance *= 2) seen |= threads.shuffle_xor(seen, distance);
    if (threads.lane() < 4) threads.store(at + 16 * threads.warp() + 4 * threads.lane(), seen);
  }
  /// After a barrier: those of the first `count`, the same for all threads.
  template <class Threads>
  [[nodiscard]] ORRERY_DEVICE column_set read(const Threads& threads, int count) const {
    column_set seen{};
    ORRERY_NO_UNROLL
    for (int warp = 0; warp < warps; ++warp) {
      const column_set of_warp = threads.template load<column_set>(at + 16 * warp);
      for (int t = 0; t < 4; ++t) seen.word[t] |= of_warp.word[t];
    }
    return column_set::first(count).without(seen);
  }
};

/// Clears the rows of the tile that are in the set. Other threads see it after a barrier.
template <int block_threads, class T, int rows, int dim, class Threads>
ORRERY_DEVICE void clear_rows(const Threads& threads, const shared_tile<T, rows, dim>& tile, const column_set& some) {
  constexpr int parts = dim / 8;
  ORRERY_NO_UNROLL
  for (int i = threads.thread(); i < rows * parts; i += block_threads) {
    if (some.has(i / parts)) {
      threads.store(tile.at + i / parts * tile.row_bytes + i % parts * 16, vector_words{{0, 0, 0, 0}});
    }
  }
}

}  // namespace orrery::detail
