// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <type_traits>

#include "orrery/attention/tile.hpp"
#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/backward_again.cuh"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/flash_pairs.cuh"
#include "orrery/kernel/cuda/masked_columns.cuh"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/kernel/cuda/visible_columns.cuh"
#include "orrery/kernel/device_flash_policies.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// The backward of `device_flash`, for head dimensions up to key_dim and value_dim.
///
/// A block of threads has a tile of the side whose gradients it sums up, its rows, and goes through the tiles of the
/// other side, the columns, in a fixed order, so that nothing is added by two blocks. With s the scores and dp the
/// gradients of probabilities, both computed with the side's own tokens as rows (Dao, arXiv 2307.08691, algorithm 2):
/// p = exp(s - lse), ds = p (dp - delta); grad_q = scale ds k; grad_k = scale dsᵀ q and grad_v = pᵀ grad_out, where the
/// rows being keys makes the transposed ones. p and ds go from a warp's results to its next operands in registers.
/// For grad_k and grad_v, columns are the queries of all query heads that read the rows' key head.
///
/// A tile of columns is copied to shared memory while the one before is computed.
template <class T, class Mask, int key_dim, int value_dim, device_gradient gradient,
          class Policies = device_flash_policies>
struct device_flash_backward {
  using query_block = backward_queries<T, float>;
  using key_block = backward_keys<T, float>;

  device_blocks<query_block> queries;
  device_blocks<key_block> keys;
  head_map heads;
  float scale;
  Mask mask;

  static constexpr bool rows_are_queries = gradient == device_gradient::of_queries;
  static constexpr bool sums_first = gradient != device_gradient::of_values;  ///< grad_q or grad_k
  static constexpr bool sums_second =
      gradient == device_gradient::of_values || gradient == device_gradient::of_keys_and_values;

  static constexpr device_tile_policy policy = Policies::backward(key_dim, value_dim, gradient);
  static constexpr int columns = policy.columns;
  static constexpr int warps = policy.warps;
  static constexpr int threads_of_block = 32 * warps;
  static constexpr int rows = policy.rows();
  static constexpr int blocks_at_once = policy.blocks_at_once;
  static_assert(warps >= 1 && warps <= 32 && policy.row_tiles == 1 && (columns == 32 || columns == 64) &&
                    columns <= threads_of_block,
                "orrery: a policy of device_flash's backward needs .warps from 1 to 32, .row_tiles 1, and .columns 32 "
                "or 64, at most 32 for each warp");
  static constexpr int tiles_of_sum = columns_of_sum / columns;
  static_assert(tiles_of_sum % 2 == 0, "each sum's first tile is in the first stage");

  using column_cursor = device_cursor<std::conditional_t<rows_are_queries, key_block, query_block>, columns>;

  // Queries and keys, of key_dim, are called first; grad_out and values, of value_dim, second.
  using first_rows = shared_tile<T, rows, key_dim>;
  using second_rows = shared_tile<T, rows, value_dim>;
  using first_columns = shared_tile<T, columns, key_dim>;
  using second_columns = shared_tile<T, columns, value_dim>;
  static constexpr int second_rows_at = first_rows::bytes;
  static constexpr int row_positions_at = second_rows_at + second_rows::bytes;
  static constexpr int stages_at = row_positions_at + 8 * rows;
  // A stage: the two tiles of columns, their positions and, where they are queries, their log-sum-exp and delta.
  static constexpr int second_columns_at = first_columns::bytes;
  static constexpr int column_positions_at = second_columns_at + second_columns::bytes;
  static constexpr int lse_at = column_positions_at + 8 * columns;
  static constexpr int delta_at = lse_at + 4 * columns;
  static constexpr int stage_bytes = delta_at + 4 * columns;
  static constexpr int hidden_at = stages_at + 2 * stage_bytes;
  static constexpr int unwritten_at = hidden_at + hidden_columns<warps>::bytes;
  static constexpr int shared_bytes = unwritten_at + unwritten_parts::bytes(warps);

  [[nodiscard]] std::int64_t blocks() const noexcept { return device_item::count(row_side(), rows); }

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_item item = device_item::of(row_side(), threads.block(), rows);
    shared_positions{row_positions_at}.write(threads, item.tokens, rows);
    unwritten_parts{unwritten_at}.begin(threads, threads.warp());
    threads.barrier();
    const auto classify = [&](std::int64_t first, std::int64_t last) {
      const shared_positions row_positions{row_positions_at};
      const std::int64_t first_position = row_positions(threads, 0), last_position = row_positions(threads, rows - 1);
      if constexpr (rows_are_queries) {
        return mask.classify(first_position, last_position, first, last);
      } else {
        return mask.classify(first, last, first_position, last_position);
      }
    };
    column_cursor next{column_side(), column_heads(item)};
    bool more = next.next(classify);
    if (!more && !row_side().of[item.block].fresh) return;

    const score_factor factor{scale};
    copy_rows(threads, item);
    if (more) copy_columns(threads, next, item, stages_at);
    threads.commit_copies();
    row_numbers numbers{};
    if constexpr (rows_are_queries) numbers = pairs::read_row_numbers(threads, queries.of[item.block], item);

    auto first_sum = fragments<1, key_dim / 8>::zeros();
    auto second_sum = fragments<1, value_dim / 8>::zeros();
    for (int part = 0;; ++part) {
      for (int tile = 0; more && tile < tiles_of_sum; ++tile) {
        const int stage = stages_at + tile % 2 * stage_bytes;
        const int count = static_cast<int>(next.tokens().count);
        const visibility seen = next.seen();
        more = next.next(classify);
        threads.template wait_for_copies<0>();
        threads.barrier();  // this stage is there, and nobody needs the other one any more
        if (more) copy_columns(threads, next, item, 2 * stages_at + stage_bytes - stage);
        threads.commit_copies();

        const first_columns first{stage};
        const second_columns second{stage + second_columns_at};
        const bool hides = seen == visibility::some || count < columns;
        visible_pairs visible{};
        if (hides) visible = pairs_that_are_visible(threads, count, seen, stage);
        if (seen == visibility::some) clear_hidden(threads, visible, count, first, second);
        auto p = fragments<1, columns / 8>::zeros();
        multiply_rows(threads, p, first_rows{0}, 16 * threads.warp(), first, factor.keep, factor.flip);
        bool has_nan = false;
        if constexpr (!rows_are_queries) has_nan = has_nan_query(threads, stage);
        pairs::to_probabilities(threads, p, numbers, stage + lse_at, factor.factor, has_nan);
        if constexpr (sums_second) {
          if (hides) pairs::hide(p, visible);
          multiply_columns(threads, second_sum, p, second);
        }
        if constexpr (sums_first) {
          auto grad = fragments<1, columns / 8>::zeros();
          multiply_rows(threads, grad, second_rows{second_rows_at}, 16 * threads.warp(), second, 0xffffffffu, 0);
          pairs::to_score_gradients(threads, p, grad, numbers, stage + delta_at, has_nan);
          // Again, where it was before: what a hidden pair's gradient is made of may be no number.
          if (hides) pairs::hide(p, visible);
          multiply_columns(threads, first_sum, p, first);
        }
      }
      const bool is_nan = again::is_nan(threads, threads.warp(), device_item::of(row_side(), threads.block(), rows),
                                        numbers, first_sum, second_sum);
      if (unwritten_parts{unwritten_at}.keep(threads, threads.warp(), part, is_nan)) {
        write(threads, first_sum, second_sum, part == 0);
      }
      if (!more) break;
      first_sum = fragments<1, key_dim / 8>::zeros();
      second_sum = fragments<1, value_dim / 8>::zeros();
    }
    threads.template wait_for_copies<0>();
    threads.barrier();
    const int first_part = unwritten_parts{unwritten_at}.first(threads, warps);
    if (first_part >= 0) sum_again(threads, first_part);
  }

 private:
  using pairs = device_flash_pairs<columns, rows_are_queries>;
  using row_numbers = typename pairs::row_numbers;
  using visible_pairs = typename pairs::visible_pairs;
  using again = device_flash_backward_again<T, rows_are_queries, sums_first, sums_second, fragments<1, key_dim / 8>,
                                            fragments<1, value_dim / 8>>;

  constexpr const auto& row_side() const noexcept {
    if constexpr (rows_are_queries) {
      return queries;
    } else {
      return keys;
    }
  }
  constexpr const auto& column_side() const noexcept {
    if constexpr (rows_are_queries) {
      return keys;
    } else {
      return queries;
    }
  }
  constexpr head_group column_heads(const device_item& item) const noexcept {
    if constexpr (rows_are_queries) {
      const std::int64_t key_head = heads.key_head(item.head);
      return {key_head, key_head + 1};
    } else {
      return head_group::of(heads, item.head, queries.count == 0 ? 0 : queries.of[0].q.heads);
    }
  }

  template <class Threads>
  ORRERY_DEVICE void copy_rows(const Threads& threads, const device_item& item) const {
    const auto& block = row_side().of[item.block];
    const first_rows first{0};
    const second_rows second{second_rows_at};
    if constexpr (rows_are_queries) {
      first.template copy<threads_of_block>(threads, block.q, item.batch, item.head, item.tokens);
      second.template copy<threads_of_block>(threads, block.grad_out, item.batch, item.head, item.tokens);
    } else {
      first.template copy<threads_of_block>(threads, block.k, item.batch, item.head, item.tokens);
      if constexpr (sums_first) {
        second.template copy<threads_of_block>(threads, block.v, item.batch, item.head, item.tokens);
      }
    }
  }

  template <class Threads, class Cursor>
  ORRERY_DEVICE void copy_columns(const Threads& threads, const Cursor& at, const device_item& item, int stage) const {
    const first_columns first{stage};
    const second_columns second{stage + second_columns_at};
    if constexpr (rows_are_queries) {
      first.template copy<threads_of_block>(threads, at.block().k, item.batch, at.head(), at.tokens());
      second.template copy<threads_of_block>(threads, at.block().v, item.batch, at.head(), at.tokens());
    } else {
      first.template copy<threads_of_block>(threads, at.block().q, item.batch, at.head(), at.tokens());
      second.template copy<threads_of_block>(threads, at.block().grad_out, item.batch, at.head(), at.tokens());
      const int i = threads.thread();
      if (i < columns) {
        // Beyond the tokens, all of these are 0, and so is grad_out: nothing is added.
        const bool present = i < at.tokens().count;
        const std::int64_t token = at.tokens().first + (present ? i : 0);
        threads.copy_word_async(stage + lse_at + 4 * i, at.block().lse.at(item.batch, at.head(), token), present);
        threads.copy_word_async(stage + delta_at + 4 * i, at.block().delta.at(item.batch, at.head(), token), present);
      }
    }
    if (at.seen() == visibility::some) {
      shared_positions{stage + column_positions_at}.write(threads, at.tokens(), columns);
    }
  }

  /// Asks the mask. Called before there are scores, so that the mask can use the registers that scores will take.
  template <class Threads>
  ORRERY_DEVICE visible_pairs pairs_that_are_visible(const Threads& threads, int count, visibility seen,
                                                     int stage) const {
    visible_pairs visible{};
    ORRERY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = shared_positions{row_positions_at}(threads, pairs::row_of(threads, half));
      const auto position = [&](int column) { return shared_positions{stage + column_positions_at}(threads, column); };
      visible.of[half] = seen == visibility::all ? columns_before(threads, count)
                         : rows_are_queries      ? visible_keys(threads, mask, row, count, position)
                                                 : visible_queries(threads, mask, row, count, position);
    }
    return visible;
  }

  /// Returns true for a tile of queries of which one has a log-sum-exp that is NaN. Then all of its probabilities are
  /// NaN, but for those of scores of -infinity, which hide their pairs: they are 0, and so are the gradients of these
  /// scores.
  template <class Threads>
  static ORRERY_DEVICE bool has_nan_query(const Threads& threads, int stage) {
    bool is_nan = false;
    ORRERY_UNROLL
    for (int i = 0; i < columns / 32; ++i) {
      is_nan = is_nan || math::is_nan(threads.template load<float>(stage + lse_at + 4 * (32 * i + threads.lane())));
    }
    return threads.any(is_nan);
  }

  /// Clears the columns of this tile that are hidden from all rows (see `hidden_columns`).
  template <class Threads>
  static ORRERY_DEVICE void clear_hidden(const Threads& threads, const visible_pairs& visible, int count,
                                         const first_columns& first, const second_columns& second) {
    const hidden_columns<warps> columns_hidden{hidden_at};
    columns_hidden.write(threads, visible.of[0] | visible.of[1]);
    threads.barrier();
    const column_set hidden = columns_hidden.read(threads, count);
    if (hidden.empty()) return;
    if constexpr (sums_first) clear_rows<threads_of_block>(threads, first, hidden);
    if constexpr (sums_second) clear_rows<threads_of_block>(threads, second, hidden);
    threads.barrier();
  }

  /// Forms again the sums that warps have not written, from part `first_part` on. Called by all threads. Arguments are
  /// values, since what a reference refers to would be in memory, in the loop, too.
  template <class Threads>
  ORRERY_NO_INLINE ORRERY_DEVICE void sum_again(Threads threads, int first_part) const {
    const device_item item = device_item::of(row_side(), threads.block(), rows);
    row_numbers numbers{};
    if constexpr (rows_are_queries) numbers = pairs::read_row_numbers(threads, queries.of[item.block], item);
    const pair_of_tiles tiles_of_rows{first_rows{0}, second_rows{second_rows_at}};
    const pair_of_tiles tiles_of_columns{first_columns{stages_at}, second_columns{stages_at + second_columns_at}};
    const auto bring = [&](const column_cursor& at) {
      threads.barrier();  // nobody needs the tile before any more
      copy_columns(threads, at, item, stages_at);
      threads.commit_copies();
      threads.template wait_for_copies<0>();
      threads.barrier();
    };
    again::run(threads, threads.warp(), item, numbers, mask, scale * pairs::log2_e,
               column_cursor{column_side(), column_heads(item)}, tiles_of_rows, tiles_of_columns, tiles_of_sum,
               first_part, bring, [&](int part, const auto& first_sum, const auto& second_sum) {
                 if (unwritten_parts{unwritten_at}.lacks(threads, threads.warp(), part)) {
                   write(threads, first_sum, second_sum, part == 0);
                 }
               });
  }

  /// Writes or adds the sums to the gradients. The block of threads' rows are found anew, and positions read anew
  /// above: the loop has no registers to remember them.
  template <class Threads>
  ORRERY_DEVICE void write(const Threads& threads, const fragments<1, key_dim / 8>& first_sum,
                           const fragments<1, value_dim / 8>& second_sum, bool is_first) const {
    const device_item item = device_item::of(row_side(), threads.block(), rows);
    const auto& block = row_side().of[item.block];
    const bool fresh = is_first && block.fresh;
    if constexpr (gradient == device_gradient::of_queries) {
      pairs::write_sum(threads, first_sum, scale, block.grad_q, fresh, item);
    }
    if constexpr (gradient == device_gradient::of_keys || gradient == device_gradient::of_keys_and_values) {
      pairs::write_sum(threads, first_sum, scale, block.grad_k, fresh, item);
    }
    if constexpr (sums_second) pairs::write_sum(threads, second_sum, 1.0f, block.grad_v, fresh, item);
  }
};

}  // namespace orrery::detail
