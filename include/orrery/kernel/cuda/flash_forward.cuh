// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/attention/tile.hpp"
#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/masked_columns.cuh"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/kernel/cuda/softmax_rows.cuh"
#include "orrery/kernel/cuda/visible_columns.cuh"
#include "orrery/kernel/device_flash_policies.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// The forward of `device_flash`, for head dimensions up to key_dim and value_dim.
///
/// A block of threads has a tile of queries and goes through the keys' tiles (Dao, arXiv 2307.08691, algorithm 1):
/// while the scores of one are computed, its values are copied to shared memory, and the next tile's keys while those
/// are weighed. A warp has 16 or 32 of the queries, whose running results stay in its registers.
template <class T, class Mask, int key_dim, int value_dim, class Policies = device_flash_policies>
struct device_flash_forward {
  device_blocks<forward_queries<T, float>> queries;
  device_blocks<forward_keys<T>> keys;
  head_map heads;
  float scale;
  Mask mask;

  static constexpr device_tile_policy policy = Policies::forward(key_dim, value_dim);
  static constexpr int warps = policy.warps;
  static constexpr int threads_of_block = 32 * warps;
  static constexpr int row_tiles = policy.row_tiles;
  static constexpr int rows = policy.rows();
  static constexpr int columns = policy.columns;
  static constexpr int blocks_at_once = policy.blocks_at_once;
  static_assert(warps >= 1 && warps <= 32 && (row_tiles == 1 || row_tiles == 2) &&
                    (columns == 32 || columns == 64 || columns == 128) && columns <= threads_of_block,
                "orrery: a policy of device_flash's forward needs .warps from 1 to 32, .row_tiles 1 or 2, and .columns "
                "32, 64 or 128, at most 32 for each warp");

  using rows_of_warp = device_flash_rows<row_tiles, columns, value_dim>;
  using visible_pairs = typename rows_of_warp::template by_row<std::uint32_t>;

  using key_cursor = device_cursor<forward_keys<T>, columns>;
  using query_tile = shared_tile<T, rows, key_dim>;
  using key_tile = shared_tile<T, columns, key_dim>;
  using value_tile = shared_tile<T, columns, value_dim>;
  static constexpr int keys_at = query_tile::bytes;
  static constexpr int values_at = keys_at + key_tile::bytes;
  static constexpr int row_positions_at = values_at + value_tile::bytes;
  static constexpr int column_positions_at = row_positions_at + 8 * rows;
  static constexpr int hidden_at = column_positions_at + 8 * columns;
  static constexpr int sums_at = hidden_at + hidden_columns<warps>::bytes;
  static constexpr int shared_bytes = sums_at + rows_of_warp::shared_bytes(rows);
  static constexpr int tiles_of_sum = columns_of_sum / columns;

  [[nodiscard]] std::int64_t blocks() const noexcept { return device_item::count(queries, rows); }

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_item item = device_item::of(queries, threads.block(), rows);
    const forward_queries<T, float>& block = queries.of[item.block];
    const std::int64_t key_head = heads.key_head(item.head);
    shared_positions{row_positions_at}.write(threads, item.tokens, rows);
    threads.barrier();
    const auto classify = [&](std::int64_t first, std::int64_t last) {
      const shared_positions row_positions{row_positions_at};
      return mask.classify(row_positions(threads, 0), row_positions(threads, rows - 1), first, last);
    };
    const query_tile q{0};
    const key_tile k{keys_at};
    const value_tile v{values_at};
    const score_factor factor{scale};

    key_cursor next{keys, {key_head, key_head + 1}};
    bool more = next.next(classify);
    if (more) {
      q.template copy<threads_of_block>(threads, block.q, item.batch, item.head, item.tokens);
      copy_keys(threads, next, item, key_head);
    }

    auto running = rows_of_warp::of(16 * row_tiles * threads.warp(), sums_at, rows);
    running.begin(threads, block, item);
    bool is_in_memory = false;
    for (;;) {
      for (int tile = 0; more && tile < tiles_of_sum; ++tile) {
        const int count = static_cast<int>(next.tokens().count);
        const visibility seen = next.seen();
        threads.template wait_for_copies<0>();
        threads.barrier();  // the keys are there, and nobody needs the values before
        v.template copy<threads_of_block>(threads, next.block().v, item.batch, key_head, next.tokens());
        threads.commit_copies();

        const bool hides = seen == visibility::some || count < columns;
        visible_pairs visible{};
        if (hides) visible = pairs_that_are_visible(threads, running, count, seen);
        if (seen == visibility::some) clear_hidden(threads, v, visible, count);
        auto scores = rows_of_warp::scores::zeros();
        multiply_rows(threads, scores, q, running.first, k, factor.keep, factor.flip);
        if (hides) running.hide(threads, scores, visible);
        more = next.next(classify);
        threads.template wait_for_copies<0>();
        threads.barrier();  // the values are there, and nobody needs the keys any more
        if (more) copy_keys(threads, next, item, key_head);
        running.change(threads, running.weigh(threads, scores, factor.factor));
        multiply_columns(threads, running.out, scores, v);
      }
      // Found anew, and positions read anew above: the loop has no registers to remember them.
      const device_item again = device_item::of(queries, threads.block(), rows);
      if (is_in_memory || !queries.of[again.block].fresh) running.fetch(threads, queries.of[again.block], again);
      if (!more) break;
      running.flush(threads, queries.of[again.block], again);
      is_in_memory = true;
    }
    const device_item again = device_item::of(queries, threads.block(), rows);
    running.finish(threads, queries.of[again.block], again);
  }

 private:
  /// Begins to copy a tile's keys, and writes their positions.
  template <class Threads>
  ORRERY_DEVICE void copy_keys(const Threads& threads, const key_cursor& at, const device_item& item,
                               std::int64_t key_head) const {
    key_tile{keys_at}.template copy<threads_of_block>(threads, at.block().k, item.batch, key_head, at.tokens());
    threads.commit_copies();
    if (at.seen() == visibility::some) {
      shared_positions{column_positions_at}.write(threads, at.tokens(), columns);
    }
  }

  /// Asks the mask. Called before there are scores, so that the mask can use the registers that scores will take.
  template <class Threads>
  ORRERY_DEVICE visible_pairs pairs_that_are_visible(const Threads& threads, const rows_of_warp& running, int count,
                                                     visibility seen) const {
    visible_pairs visible{};
    running.for_rows(threads, [&](int m, int half, int row) {
      const std::int64_t query = shared_positions{row_positions_at}(threads, row);
      visible.of[m][half] = seen == visibility::all ? columns_before(threads, count)
                                                    : visible_keys(threads, mask, query, count, [&](int column) {
                                                        return shared_positions{column_positions_at}(threads, column);
                                                      });
    });
    return visible;
  }
  /// Clears the values of keys that no query of the tile sees (see `hidden_columns`). Other threads see it after a
  /// barrier. Also called before there are scores, although only the mask then hides the time of copying the values.
  template <class Threads>
  static ORRERY_DEVICE void clear_hidden(const Threads& threads, const value_tile& v, const visible_pairs& visible,
                                         int count) {
    std::uint32_t seen = 0;
    ORRERY_UNROLL
    for (int m = 0; m < row_tiles; ++m) seen |= visible.of[m][0] | visible.of[m][1];
    const hidden_columns<warps> keys_hidden{hidden_at};
    keys_hidden.write(threads, seen);
    threads.template wait_for_copies<0>();
    threads.barrier();
    const column_set hidden = keys_hidden.read(threads, count);
    if (!hidden.empty()) clear_rows<threads_of_block>(threads, v, hidden);
  }
};

}  // namespace orrery::detail
