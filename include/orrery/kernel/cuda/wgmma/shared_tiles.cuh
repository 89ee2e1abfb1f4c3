// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>

#include "orrery/attention/token_blocks.hpp"
#include "orrery/device/code.hpp"
#include "orrery/device/tensor_map.hpp"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// Parts of device_flash's warpgroup kernels. A producer warp copies tiles of columns to shared memory by tensor
/// copies, into stages that are used in turn; warpgroups of 64 rows multiply them, and release the stages.

/// The stage that the n-th tile of columns is in, of 1 or 2, and the parity of that phase of its mbarriers.
template <int stages>
struct stage_of {
  static_assert(stages == 1 || stages == 2);
  int stage;
  int parity;

  explicit constexpr stage_of(unsigned n) noexcept
      : stage{static_cast<int>(n % stages)}, parity{static_cast<int>(n / stages % 2)} {}
};

/// What the producer warp announces of a tile of columns: a word in shared memory.
struct tile_announcement {
  int word;

  static constexpr tile_announcement of(int count, visibility seen, bool last, bool has_nan = false) noexcept {
    return {count | static_cast<int>(seen) << 8 | (last ? 1 : 0) << 16 | (has_nan ? 1 : 0) << 17};
  }
  /// The number of its tokens; 0: there is no tile.
  [[nodiscard]] constexpr int count() const noexcept { return word & 0xff; }
  /// `some`: the tokens' positions are in shared memory, too.
  [[nodiscard]] constexpr visibility seen() const noexcept { return static_cast<visibility>(word >> 8 & 0xff); }
  [[nodiscard]] constexpr bool last() const noexcept { return (word >> 16 & 1) != 0; }
  /// Returns true for a tile of queries of which one has a log-sum-exp that is NaN.
  [[nodiscard]] constexpr bool has_nan() const noexcept { return (word >> 17 & 1) != 0; }

  template <class Threads>
  ORRERY_DEVICE void write(const Threads& threads, int at) const {
    threads.store(at, word);
  }
  template <class Threads>
  [[nodiscard]] static ORRERY_DEVICE tile_announcement read(const Threads& threads, int at) {
    return {threads.uniform(threads.template load<int>(at))};
  }
};

/// A warp writes the positions of a tile of `count` tokens, the last one's again and again where there are fewer.
template <int count, class Threads>
ORRERY_DEVICE void write_positions(const Threads& threads, const shared_positions& to, const token_block& tokens) {
  for (int i = threads.lane(); i < count; i += 32) {
    const int last = static_cast<int>(tokens.count) - 1;
    threads.store(to.at + 8 * i, tokens.position(i < last ? i : last));
  }
}

/// The warp does not need any more what the mbarrier stands for.
template <class Threads>
ORRERY_DEVICE void let_go(const Threads& threads, int mbarrier) {
  threads.converge();
  if (threads.lane() == 0) threads.mbarrier_arrive(mbarrier);
}

/// A warp's 16 rows as left operands of products, rounded: of 16 columns each.
template <int columns>
struct rounded_rows {
  std::uint32_t of[static_cast<std::size_t>(columns) / 16][4];

  template <class T, class Threads>
  ORRERY_DEVICE void round(const Threads& threads, const fragments<1, columns / 8>& from) {
    ORRERY_UNROLL
    for (int k = 0; k < columns / 16; ++k) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float(&two)[4] = from.of[0][2 * k + i / 2];
        of[k][i] = threads.template pack<T>(two[i % 2 * 2], two[i % 2 * 2 + 1]);
      }
    }
  }
};

/// Begins sums = a bᵀ, of 64 rows of a from `first_row` on, as a group of products; or sums += a bᵀ.
template <class T, bool accumulates = false, int a_rows, int b_rows, int dim, class Threads>
ORRERY_DEVICE void begin_rows(const Threads& threads, fragments<1, b_rows / 8>& sums,
                              const swizzled_tile<a_rows, dim>& a, int first_row, const swizzled_tile<b_rows, dim>& b) {
  if constexpr (accumulates) {
    threads.hold(sums.of[0]);
  } else {
    threads.discard(sums.of[0]);
  }
  threads.fence_products();
  ORRERY_UNROLL
  for (int k = 0; k < dim / 16; ++k) {
    threads.template multiply<T>(sums.of[0], a.along_columns(threads, first_row, k), b.along_columns(threads, 0, k),
                                 accumulates || k > 0);
  }
  threads.commit_products();
}

/// Begins sums += p b, as a group of products of at most 128 columns.
template <class T, int columns, int dim, class Threads>
ORRERY_DEVICE void begin_columns(const Threads& threads, fragments<1, dim / 8>& sums, rounded_rows<columns>& p,
                                 const swizzled_tile<columns, dim>& b) {
  constexpr int part = dim < 128 ? dim : 128;
  threads.hold(sums.of[0]);
  threads.hold(p.of);
  threads.fence_products();
  ORRERY_UNROLL
  for (int k = 0; k < columns / 16; ++k) {
    threads.template multiply_add<T, 0, part / 8>(sums.of[0], p.of[k], b.along_rows(threads, k, 0));
    if constexpr (part < dim) {
      threads.template multiply_add<T, part / 8, (dim - part) / 8>(
          sums.of[0], p.of[k], b.along_rows(threads, k, part / tensor_box::columns));
    }
  }
  threads.commit_products();
}

/// The columns of a tile that no row of the block's tile sees. Their weights are 0, but 0 times an infinity or NaN is
/// NaN, so they are cleared after they have been copied.
template <int columns>
struct unseen_columns {
  std::uint32_t own = 0;  ///< bit i: column 32i + lane is one

  /// Finds those of a tile of `count` tokens, which columns of zeros follow (`is_end`), or other tokens of the shard.
  /// sees(column) says if any row sees that one; it is asked only where not all pairs are visible.
  template <class Threads, class Sees>
  [[nodiscard]] static ORRERY_DEVICE unseen_columns of(const Threads& threads, int count, bool is_end, visibility seen,
                                                       const Sees& sees) {
    unseen_columns all;
    for (int i = 0; i < columns / 32; ++i) {
      const int column = 32 * i + threads.lane();
      const bool is_unseen = column >= count ? !is_end : seen == visibility::some && !sees(column);
      if (is_unseen) all.own |= std::uint32_t{1} << i;
    }
    return all;
  }

  /// Returns true if any lane has one.
  template <class Threads>
  [[nodiscard]] ORRERY_DEVICE bool any(const Threads& threads) const {
    std::uint32_t all = own;
    for (int distance = 16; distance > 0; distance /= 2) all |= threads.shuffle_xor(all, distance);
    return all != 0;
  }

  /// Clears them. Called by all lanes; other warps read the tile after `fence_async_proxy` and an mbarrier.
  template <int dim, class Threads>
  ORRERY_DEVICE void clear(const Threads& threads, const swizzled_tile<columns, dim>& tile) const {
    using tile_of = swizzled_tile<columns, dim>;
    for (int i = 0; i < columns / 32; ++i) {
      if ((own >> i & 1) == 0) continue;
      const int row = tile.at + (32 * i + threads.lane()) * tile_of::row_bytes;
      for (int part = 0; part < tile_of::panels * 8; ++part) {
        const int turned = part % 8 ^ threads.lane() % 8;  // lanes write to different banks
        threads.store(row + part / 8 * tile_of::panel_bytes + 16 * turned, vector_words{{0, 0, 0, 0}});
      }
    }
  }
};

/// Returns true if any row of a tile meets a column. `interval` is what the mask's interval test says of all rows;
/// visible(row) tests one. Begins with the last rows, which are the likeliest under causal masks.
template <int rows, class Visible>
ORRERY_DEVICE bool any_meets(visibility interval, const Visible& visible) {
  if (interval != visibility::some) return interval == visibility::all;
  for (int row = rows; row-- > 0;) {
    if (visible(row)) return true;
  }
  return false;
}

}  // namespace orrery::detail
