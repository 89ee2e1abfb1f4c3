// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "orrery/kernel/device_blocks.hpp"
#include "orrery/kernel/device_code.hpp"
#include "orrery/kernel/device_flash_steps.cuh"
#include "orrery/kernel/mask.hpp"
#include "orrery/kernel/tile.hpp"

namespace orrery {

/// The forward of `device_flash`, for head dimensions up to key_dim and value_dim.
///
/// A block of threads has a tile of queries and goes through the keys' tiles (Dao, arXiv 2307.08691, algorithm 1):
/// while the scores of one are computed, its values are copied to shared memory, and the next tile's keys while those
/// are weighed. A warp has 16 or 32 of the queries, whose running results stay in its registers.
template <class T, class Mask, int key_dim, int value_dim>
struct device_flash_forward {
  device_blocks<forward_queries<T, float>> queries;
  device_blocks<forward_keys<T>> keys;
  head_map heads;
  float scale;
  Mask mask;

  static constexpr int warps = 4;
  static constexpr int threads_of_block = 32 * warps;
  static constexpr int row_tiles = key_dim + value_dim <= 256 ? 2 : 1;
  static constexpr int rows = 16 * row_tiles * warps;
  static constexpr int columns = 64;

  using query_tile = shared_tile<T, rows, key_dim>;
  using key_tile = shared_tile<T, columns, key_dim>;
  using value_tile = shared_tile<T, columns, value_dim>;
  static constexpr int keys_at = query_tile::bytes;
  static constexpr int values_at = keys_at + key_tile::bytes;
  static constexpr int row_positions_at = values_at + value_tile::bytes;
  static constexpr int column_positions_at = row_positions_at + 8 * rows;
  static constexpr int shared_bytes = column_positions_at + 8 * columns;

  [[nodiscard]] std::int64_t blocks() const noexcept { return device_item::count(queries, rows); }

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_item item = device_item::of(queries, threads.block(), rows);
    const forward_queries<T, float>& block = queries.of[item.block];
    const std::int64_t key_head = heads.key_head(item.head);
    const std::int64_t first_position = item.tokens.position(0);
    const std::int64_t last_position = item.tokens.position(item.tokens.count - 1);
    const auto classify = [&](std::int64_t first, std::int64_t last) {
      return mask.classify(first_position, last_position, first, last);
    };
    const query_tile q{0};
    const key_tile k{keys_at};
    const value_tile v{values_at};
    const score_factor factor{scale};

    device_cursor<forward_keys<T>> next{keys, {key_head, key_head + 1}, columns};
    bool more = next.next(classify);
    if (more) {
      q.template copy<threads_of_block>(threads, block.q, item.batch, item.head, item.tokens);
      copy_keys(threads, next, item, key_head);
      shared_positions{row_positions_at}.write(threads, item.tokens, rows);
    }

    running_rows running;
    begin(threads, running, block, item);
    while (more) {
      const int count = static_cast<int>(next.tokens().count);
      const visibility seen = next.seen();
      threads.template wait_for_copies<0>();
      threads.barrier();  // the keys are there, and nobody needs the values before
      v.template copy<threads_of_block>(threads, next.block().v, item.batch, key_head, next.tokens());
      threads.commit_copies();

      const bool hides = seen == visibility::some || count < columns;
      visible_pairs visible{};
      if (hides) visible = pairs_that_are_visible(threads, count, seen);
      auto scores = fragments<row_tiles, columns / 8>::zeros();
      multiply_rows(threads, scores, q, 16 * row_tiles * threads.warp(), k, factor.keep, factor.flip);
      if (hides) hide(threads, scores, visible);
      more = next.next(classify);
      threads.template wait_for_copies<0>();
      threads.barrier();  // the values are there, and nobody needs the keys any more
      if (more) copy_keys(threads, next, item, key_head);
      weigh(threads, scores, running, factor.factor);
      multiply_columns(threads, running.out, scores, v);
    }
    finish(threads, running, block, item);
  }

 private:
  static constexpr float nothing = -std::numeric_limits<float>::infinity();
  static constexpr float log2_e = 1.44269504088896341f;
  static constexpr float ln_2 = 0.693147180559945309f;

  /// What a thread has of its rows: the weighted sum of values so far, and for rows g and g + 8 of each row tile the
  /// largest exponent of 2 so far and the thread's part of the sum of weights relative to it.
  struct running_rows {
    fragments<row_tiles, value_dim / 8> out;
    float largest[static_cast<std::size_t>(row_tiles)][2];
    float sum[static_cast<std::size_t>(row_tiles)][2];
  };

  /// Calls visit(m, half, row in the tile) for the rows that the thread has a part of.
  template <class Threads, class Visit>
  static ORRERY_DEVICE void for_rows(const Threads& threads, const Visit& visit) {
    ORRERY_UNROLL
    for (int m = 0; m < row_tiles; ++m) {
      ORRERY_UNROLL
      for (int half = 0; half < 2; ++half) {
        visit(m, half, 16 * (row_tiles * threads.warp() + m) + 8 * half + threads.lane() / 4);
      }
    }
  }

  /// Begins to copy a tile's keys, and writes their positions.
  template <class Threads>
  ORRERY_DEVICE void copy_keys(const Threads& threads, const device_cursor<forward_keys<T>>& at,
                               const device_item& item, std::int64_t key_head) const {
    key_tile{keys_at}.template copy<threads_of_block>(threads, at.block().k, item.batch, key_head, at.tokens());
    threads.commit_copies();
    if (at.seen() == visibility::some) {
      shared_positions{column_positions_at}.write(threads, at.tokens(), columns);
    }
  }

  /// What a row has seen before counts as one key whose value is the mean so far.
  template <class Threads>
  static ORRERY_DEVICE void begin(const Threads& threads, running_rows& running, const forward_queries<T, float>& block,
                                  const device_item& item) {
    running.out = fragments<row_tiles, value_dim / 8>::zeros();
    for_rows(threads, [&](int m, int half, int row) {
      float lse = nothing;
      if (!block.fresh && row < item.tokens.count) lse = *block.lse.at(item.batch, item.head, item.tokens.first + row);
      running.largest[m][half] = lse * log2_e;
      running.sum[m][half] = lse != nothing && threads.lane() % 4 == 0 ? 1.0f : 0.0f;
      if (lse == nothing) return;
      const float* const out = block.out.at(item.batch, item.tokens.first + row, item.head);
      ORRERY_UNROLL
      for (int n = 0; n < value_dim / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int column = 8 * n + threads.lane() % 4 * 2 + i;
          if (column < block.out.dim) running.out.of[m][n][2 * half + i] = out[column];
        }
      }
    });
  }

  /// Of each row tile's rows g and g + 8, which of the thread's columns are visible.
  struct visible_pairs {
    std::uint32_t of[static_cast<std::size_t>(row_tiles)][2];
  };

  /// Before there are scores, so that a mask has the registers to itself that scores would take.
  template <class Threads>
  ORRERY_DEVICE visible_pairs pairs_that_are_visible(const Threads& threads, int count, visibility seen) const {
    visible_pairs visible{};
    for_rows(threads, [&](int m, int half, int row) {
      const std::int64_t query = shared_positions{row_positions_at}(threads, row);
      visible.of[m][half] = visible_columns(threads, count, [&](int column) {
        return seen == visibility::all || mask.visible(query, shared_positions{column_positions_at}(threads, column));
      });
    });
    return visible;
  }

  template <class Threads>
  static ORRERY_DEVICE void hide(const Threads& threads, fragments<row_tiles, columns / 8>& scores,
                                 const visible_pairs& visible) {
    for_rows(threads, [&](int m, int half, int) {
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          if ((visible.of[m][half] >> (2 * n + i) & 1) == 0) scores.of[m][n][2 * half + i] = nothing;
        }
      }
    });
  }

  /// Scores become weights relative to the largest one so far, which what there is already is made relative to, too.
  template <class Threads>
  static ORRERY_DEVICE void weigh(const Threads& threads, fragments<row_tiles, columns / 8>& scores,
                                  running_rows& running, float factor) {
    for_rows(threads, [&](int m, int half, int) {
      float largest = nothing;
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        largest = fmaxf(largest, fmaxf(scores.of[m][n][2 * half], scores.of[m][n][2 * half + 1]));
      }
      largest = fmaxf(largest, threads.shuffle_xor(largest, 1));
      largest = fmaxf(largest, threads.shuffle_xor(largest, 2));
      largest = fmaxf(running.largest[m][half], largest * factor);
      // A row that has seen nothing yet has no largest: its weights and its change are those of -infinity, 0.
      const float origin = largest == nothing ? 0.0f : largest;
      const float change = threads.exp2(running.largest[m][half] - origin);
      running.largest[m][half] = largest;
      float sum = 0;
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          float& score = scores.of[m][n][2 * half + i];
          score = threads.exp2(fmaf(score, factor, -origin));
          sum += score;
        }
      }
      running.sum[m][half] = running.sum[m][half] * change + sum;
      ORRERY_UNROLL
      for (int n = 0; n < value_dim / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) running.out.of[m][n][2 * half + i] *= change;
      }
    });
  }

  template <class Threads>
  static ORRERY_DEVICE void finish(const Threads& threads, const running_rows& running,
                                   const forward_queries<T, float>& block, const device_item& item) {
    for_rows(threads, [&](int m, int half, int row) {
      const bool present = row < item.tokens.count;
      float* const lse = block.lse.at(item.batch, item.head, item.tokens.first + (present ? row : 0));
      const float before = block.fresh ? nothing : *lse * log2_e;
      threads.converge();  // all lanes of a row have read what one of them writes
      float sum = running.sum[m][half];
      sum += threads.shuffle_xor(sum, 1);
      sum += threads.shuffle_xor(sum, 2);
      const float largest = running.largest[m][half];
      // What a row did not see leaves its bits alone.
      const bool untouched = !block.fresh && (sum == 0 || (sum == 1 && largest == before));
      if (!present || untouched) return;
      if (threads.lane() % 4 == 0) *lse = sum == 0 ? nothing : largest * ln_2 + std::log(sum);
      const float factor = sum == 0 ? 0.0f : 1.0f / sum;
      float* const out = block.out.at(item.batch, item.tokens.first + row, item.head);
      ORRERY_UNROLL
      for (int n = 0; n < value_dim / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int column = 8 * n + threads.lane() % 4 * 2 + i;
          if (column < block.out.dim) out[column] = running.out.of[m][n][2 * half + i] * factor;
        }
      }
    });
  }
};

}  // namespace orrery
