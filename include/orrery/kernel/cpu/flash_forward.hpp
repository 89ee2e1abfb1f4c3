// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include "orrery/attention/tile.hpp"
#include "orrery/attention/token_blocks.hpp"
#include "orrery/host/context.hpp"
#include "orrery/kernel/cpu/exponential.hpp"
#include "orrery/kernel/cpu/flash_forward_workspace.hpp"
#include "orrery/kernel/cpu/flash_tile.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/kernel/cpu/scratch.hpp"
#include "orrery/kernel/cpu/visible_keys.hpp"
#include "orrery/kernel/flash_policies.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// The forward tile of `flash` as a list of independent work items: one for each (query block, batch, head, block of
/// rows), so that threads may share it in any way without changing a bit of the result.
///
/// An item loads its queries and their running state once, meets all keys, and stores once. Scratch:
/// `flash_forward_scratch_bytes` and `flash_forward_totals_bytes` of stack. K and V are copied to scratch block by
/// block, because their rows may lie a power of two apart, where the rows of a product would evict each other from the
/// cache.
///
/// Sums over keys are made in three steps, so that their error does not grow with the number of keys: of a block of
/// keys, from zero; of 16 blocks; and these are added to totals, together with what the addition before has lost (see
/// flash_steps::carry). The totals' stack is touched only where there are more keys.
///
/// Source: Dao, arXiv 2307.08691, algorithm 1, transposed (see flash_steps).
template <class S, class A, mask Mask, class Policies = flash_policies>
class flash_forward : flash_tile<forward_queries<S, A>, forward_keys<S>, A, Mask> {
 public:
  flash_forward(std::span<const forward_queries<S, A>> queries, std::span<const forward_keys<S>> keys,
                const head_map& heads, A scale, const Mask& mask, const flash_steps<A>& steps, int threads = 1) noexcept
      : tile{queries, keys, heads, scale * log2_e<A>, mask, steps} {
    for (const auto& block : queries_) {
      if (block.q.dim > key_dim_) key_dim_ = block.q.dim;
      if (block.out.dim > value_dim_) value_dim_ = block.out.dim;
    }
    // Copying a key and its value costs about as much as the arithmetic of 40 rows with them where memory is far (rows
    // of a trainer's tensors share no page, and no prefetcher follows them); a block of keys costs a load and a store
    // of the tile's output, about as much as 1.5 keys.
    this->choose_block_sizes({steps_.columns, 1024, 8, most_keys, scratch_elements, 40.0, 1.5},
                             [&](std::int64_t rows, std::int64_t block) { return elements(rows, block); });
    // Smaller blocks of rows where there would be too few for the threads. Tiles, and so results, stay as they are.
    while (threads > 1 && items() < 4 * std::int64_t{threads} && row_block_ > steps_.columns) {
      row_block_ = round_up(row_block_ / 2, steps_.columns);
    }
  }

  [[nodiscard]] std::int64_t items() const noexcept {
    std::int64_t sum = 0;
    for (const auto& block : queries_) sum += items_of(block);
    return sum;
  }

  void run(std::int64_t item, const host_context& context) const {
    for (const auto& block : queries_) {
      const std::int64_t count = items_of(block);
      if (item < count) {
        const token_blocks rows{block.positions, row_block_, steps_.columns};
        // The longest rows under a causal mask come last: begin with them, so that threads finish together.
        const token_block tokens = rows[rows.count() - 1 - item % rows.count()];
        item /= rows.count();
        run_rows(block, item / block.q.heads, item % block.q.heads, tokens, context);
        return;
      }
      item -= count;
    }
  }

 private:
  using tile = flash_tile<forward_queries<S, A>, forward_keys<S>, A, Mask>;
  using workspace = flash_forward_workspace<A>;
  using running_row = flash_running_row<A>;
  using tile::classify, tile::heads_, tile::key_block_, tile::key_dim_, tile::key_ld, tile::keys_, tile::mask_;
  using tile::nothing, tile::queries_, tile::row_block_, tile::scale_, tile::steps_, tile::value_dim_, tile::value_ld;

  static constexpr std::int64_t most_columns = 64;
  static constexpr std::int64_t most_keys = Policies::forward().most_keys;
  static constexpr std::int64_t blocks_in_part =
      Policies::forward().blocks_in_part;  // of keys, summed before they are carried to the totals

  static_assert(most_keys >= 32 && most_keys % 32 == 0 && blocks_in_part >= 1,
                "orrery: a policy of flash needs .most_keys a multiple of 32, and .blocks_in_part of at least 1");
  using seen_keys = flash_seen_keys<most_keys>;
  static constexpr std::int64_t scratch_elements = flash_forward_scratch_bytes / static_cast<std::int64_t>(sizeof(A));
  static constexpr std::int64_t totals_elements = flash_forward_totals_bytes / static_cast<std::int64_t>(sizeof(A));

  std::int64_t items_of(const forward_queries<S, A>& block) const noexcept {
    return block.q.batch * block.q.heads * token_blocks{block.positions, row_block_, steps_.columns}.count();
  }

  std::int64_t value_rows() const noexcept { return round_up(value_dim_, steps_.tile_rows); }

  std::int64_t elements(std::int64_t rows, std::int64_t keys) const noexcept {
    constexpr std::int64_t slack = 10 * 16;  // what `padded` may add to each array
    if (rows * (value_rows() + 2) + slack > totals_elements) return scratch_elements + 1;
    return rows * (key_dim_ + value_rows() + 2) + keys * (2 * (key_ld() + value_ld()) + steps_.columns) +
           steps_.columns + slack;
  }

  void run_rows(const forward_queries<S, A>& block, std::int64_t b, std::int64_t head, const token_block& rows,
                const host_context& context) const {
    alignas(64) A memory[static_cast<std::size_t>(scratch_elements)];
    scratch_cursor<A> cursor{memory};
    const std::int64_t padded_rows = round_up(rows.count, steps_.columns);
    workspace work;
    work.columns = steps_.columns;
    work.value_rows = value_rows();
    work.queries = cursor.take(padded_rows * key_dim_);
    work.out = cursor.take(padded_rows * value_rows());
    work.largest = cursor.take(padded_rows);
    work.sum = cursor.take(padded_rows);
    work.factors = cursor.take(steps_.columns);
    work.keys = cursor.take(key_block_ * key_ld());
    work.values = cursor.take(key_block_ * value_ld());
    work.next_keys = cursor.take(key_block_ * key_ld());
    work.next_values = cursor.take(key_block_ * value_ld());
    work.scores = cursor.take(key_block_ * steps_.columns);
    alignas(64) A memory_of_totals[static_cast<std::size_t>(totals_elements)];
    scratch_cursor<A> totals{memory_of_totals};
    work.total_out = totals.take(padded_rows * value_rows());
    work.total_sum = totals.take(padded_rows);
    work.total_largest = totals.take(padded_rows);

    const std::int64_t key_head = heads_.key_head(head);
    const std::int64_t tiles = padded_rows / steps_.columns;
    // Of the two products in which a tile of queries meets a block of keys.
    const std::int64_t score_tiles = key_block_ / steps_.tile_rows;
    const std::int64_t value_tiles = value_rows() / steps_.tile_rows;
    const auto copies_of_keys = [&](const key_place& from, std::int64_t of_tiles) {
      if (from.keys.count == 0) return row_copies<A>{};
      return copies_of(steps_, keys_[from.side].k, b, key_head, from.keys, work.next_keys, key_ld(), key_dim_,
                       of_tiles * score_tiles);
    };
    const auto copies_of_values = [&](const key_place& from, std::int64_t of_tiles) {
      if (from.keys.count == 0) return row_copies<A>{};
      return copies_of(steps_, keys_[from.side].v, b, key_head, from.keys, work.next_values, value_ld(), value_rows(),
                       of_tiles * value_tiles);
    };
    key_place next = visible_from(0, 0, 0, rows);
    if (next.keys.count == 0) return nothing_seen(block, b, head, rows);
    // A tile's queries and running state are loaded just before it meets its first keys, and stored just after its
    // last; both are asked for beneath the arithmetic before that.
    const auto ask_for = [&](const auto& tensor, std::int64_t row, std::int64_t of_tiles, bool to_write) {
      return rows_to_ask_for(tensor, b, head, rows.first + row, rows.first + row + tile_width(rows, row), of_tiles,
                             to_write);
    };
    ask_for(block.q, 0, 1, false).ask();
    if (!block.fresh) ask_for(block.out, 0, 1, false).ask();
    auto keys_to_come = copies_of_keys(next, 1);
    auto values_to_come = copies_of_values(next, 1);
    bool has_totals = false;
    for (bool first = true; next.keys.count > 0; first = false) {
      const token_block keys = next.keys;
      const std::int64_t part = next.part();
      finish_copies(steps_, keys_to_come, keys.count);
      finish_copies(steps_, values_to_come, keys.count);
      std::swap(work.keys, work.next_keys);
      std::swap(work.values, work.next_values);
      next = visible_from(next.side, next.block + 1, next.blocks_before, rows);
      // Not a number of blocks that these rows meet: how sums are added up must not depend on which rows come together.
      const bool ends_part = next.keys.count > 0 && next.part() != part;
      keys_to_come = copies_of_keys(next, tiles);
      values_to_come = copies_of_values(next, tiles);
      for (std::int64_t row = 0; row < rows.count; row += steps_.columns) {
        if (first) {
          load(block, b, head, rows, row, work);
          const std::int64_t after = row + steps_.columns;
          keys_to_come.asked = ask_for(block.q, after, score_tiles, false);
          if (!block.fresh) values_to_come.asked = ask_for(block.out, after, value_tiles, false);
        } else if (next.keys.count == 0) {
          values_to_come.asked = ask_for(block.out, row, value_tiles, true);
        }
        meet(rows, row, keys, work, keys_to_come, values_to_come);
        if (ends_part) work.carry(row, !has_totals, steps_);
        if (next.keys.count > 0) continue;
        if (has_totals) work.add_totals(row);
        store(block, b, head, rows, row, work);
      }
      has_totals = has_totals || ends_part;
      context.poll();
    }
  }

  /// How many rows there are in the tile from `row` on: none after the last one.
  std::int64_t tile_width(const token_block& rows, std::int64_t row) const noexcept {
    const std::int64_t left = rows.count - row;
    return left < 0 ? 0 : left < steps_.columns ? left : steps_.columns;
  }

  /// A block of keys among all sides'; without keys after the last one.
  struct key_place {
    std::size_t side = 0;
    std::int64_t block = 0;
    std::int64_t blocks_before = 0;  ///< of the sides before
    token_block keys;

    [[nodiscard]] std::int64_t part() const noexcept { return (blocks_before + block) / blocks_in_part; }
  };

  /// The first block of keys, from the given one on, of which the rows see something.
  key_place visible_from(std::size_t side, std::int64_t block, std::int64_t blocks_before,
                         const token_block& rows) const {
    position_interval seen{0, (std::numeric_limits<std::int64_t>::max)()};
    if constexpr (mask_of_intervals<Mask>) seen = mask_.keys_of(rows.position(0), rows.position(rows.count - 1));
    for (; side < keys_.size(); ++side, block = 0) {
      const token_blocks blocks{keys_[side].positions, key_block_, steps_.tile_rows};
      for (; block < blocks.count(); ++block) {
        const token_block keys = blocks[block];
        if (keys.position(0) > seen.last || keys.position(keys.count - 1) < seen.first) continue;
        if (classify(rows, 0, rows.count, keys, 0, keys.count) != visibility::none)
          return {side, block, blocks_before, keys};
      }
      blocks_before += blocks.count();
    }
    return {side, 0, blocks_before, {}};
  }

  /// One tile of queries, from `row` on, meets one block of keys; meanwhile some of the next block's are copied.
  void meet(const token_block& rows, std::int64_t row, const token_block& keys, const workspace& work,
            row_copies<A>& keys_to_come, row_copies<A>& values_to_come) const {
    const std::int64_t row_count = tile_width(rows, row);
    const visibility seen = classify(rows, row, row_count, keys, 0, keys.count);
    if (seen == visibility::none) return;
    const token_range some = this->seen_part(seen, rows, row, row_count, keys, steps_.tile_rows);
    if (some.first == some.last) return;
    const std::int64_t first = some.first;
    const std::int64_t last = some.last;

    const A* key_rows = work.keys + first * key_ld();
    const std::int64_t count = last - first;
    if (seen == visibility::all && count % steps_.tile_rows == 0 &&
        steps_.weights(key_rows, key_ld(), work.queries + row * key_dim_, key_dim_, work.scores, count,
                       work.largest + row, work.sum + row, row_count, keys_to_come)) {
      steps_.accumulate(work.values + first * value_ld(), value_ld(), work.scores, count, nullptr,
                        work.out + row * value_rows(), value_rows(), row_count, values_to_come);
      return;
    }
    steps_.scores(key_rows, key_ld(), work.queries + row * key_dim_, key_dim_, work.scores,
                  round_up(count, steps_.tile_rows), row_count, keys_to_come);
    seen_keys seen_by_some;
    if (seen == visibility::some) hide(rows, row, row_count, keys, first, last, work.scores, seen_by_some);
    steps_.softmax(work.scores, count, work.largest + row, work.sum + row, work.factors, row_count);
    const A* factors = work.factors;
    seen_by_some.for_runs(first, last, [&](std::int64_t begin, std::int64_t end) {
      steps_.accumulate(work.values + begin * value_ld(), value_ld(), work.scores + (begin - first) * steps_.columns,
                        end - begin, factors, work.out + row * value_rows(), value_rows(), row_count, values_to_come);
      factors = nullptr;
    });
  }

  visibility group_visibility(const token_block& rows, std::int64_t row, std::int64_t row_count,
                              const token_block& keys, std::int64_t group) const {
    const std::int64_t left = keys.count - group;
    return classify(rows, row, row_count, keys, group, left < steps_.tile_rows ? left : steps_.tile_rows);
  }

  /// Scores of invisible pairs become -infinity, where the granule of keys is not wholly visible; `seen`
  /// becomes the keys that some row sees.
  void hide(const token_block& rows, std::int64_t row, std::int64_t row_count, const token_block& keys,
            std::int64_t first, std::int64_t last, A* scores, seen_keys& seen) const {
    seen.begin(first, last, true);
    if constexpr (mask_of_intervals<Mask>) return hide_outside(rows, row, row_count, keys, first, last, scores, seen);
    std::int64_t row_positions[most_columns];
    for (std::int64_t i = 0; i < row_count; ++i) row_positions[i] = rows.position(row + i);
    for (std::int64_t group = first; group < last; group += steps_.tile_rows) {
      if (group_visibility(rows, row, row_count, keys, group) == visibility::all) continue;
      const std::int64_t end = group + steps_.tile_rows < last ? group + steps_.tile_rows : last;
      for (std::int64_t key = group; key < end; ++key) {
        const std::int64_t key_position = keys.position(key);
        A* line = scores + (key - first) * steps_.columns;
        std::int64_t hidden = 0;
        for (std::int64_t i = 0; i < row_count; ++i) {
          if (mask_.visible(row_positions[i], key_position)) continue;
          line[i] = nothing;
          ++hidden;
        }
        if (hidden == row_count) seen.set(key, key + 1, false);
      }
    }
  }

  /// The same where each row sees one interval of keys.
  void hide_outside(const token_block& rows, std::int64_t row, std::int64_t row_count, const token_block& keys,
                    std::int64_t first, std::int64_t last, A* scores, seen_keys& seen) const {
    std::int32_t begin[most_columns];
    std::int32_t end[most_columns];
    token_range of_all{first, last};
    for (std::int64_t i = 0; i < row_count; ++i) {
      const std::int64_t position = rows.position(row + i);
      const token_range of_row = visible_tokens(mask_, position, position, keys);
      begin[i] = static_cast<std::int32_t>(of_row.first);
      end[i] = static_cast<std::int32_t>(of_row.last);
      if (of_row.first > of_all.first) of_all.first = of_row.first;
      if (of_row.last < of_all.last) of_all.last = of_row.last;
    }
    for (std::int64_t key = first; key < last; ++key) {
      if (of_all.first <= key && key < of_all.last) {
        key = of_all.last - 1;
        continue;
      }
      const auto now = static_cast<std::int32_t>(key);
      A* line = scores + (key - first) * steps_.columns;
      std::int32_t shown = 0;
      for (std::int64_t i = 0; i < row_count; ++i) {
        const bool visible = begin[i] <= now && now < end[i];
        line[i] = visible ? line[i] : static_cast<A>(nothing);
        shown += visible ? 1 : 0;
      }
      if (shown == 0) seen.set(key, key + 1, false);
    }
  }

  /// The tile of queries from `row` on and their running state.
  void load(const forward_queries<S, A>& block, std::int64_t b, std::int64_t head, const token_block& rows,
            std::int64_t row, const workspace& work) const {
    const std::int64_t columns = steps_.columns;
    const std::int64_t count = tile_width(rows, row);
    transpose_tokens(steps_, block.q, b, head, rows.first + row, count, scale_, work.queries + row * key_dim_, columns,
                     columns);
    A* out = work.out + row * value_rows();
    if (block.fresh) {
      fill_zero(out, value_rows() * columns);
    } else {
      steps_.transpose(block.out.at(b, rows.first + row, head), block.out.sequence_stride, count, value_dim_, A{1}, out,
                       columns, columns);
      fill_zero(out + value_dim_ * columns, (value_rows() - value_dim_) * columns);
    }
    bool weighted = false;
    for (std::int64_t i = 0; i < columns; ++i) {
      const A lse = i < count && !block.fresh ? *block.lse.at(b, head, rows.first + row + i) : nothing;
      const running_row before = running_row::of(lse);
      work.largest[row + i] = before.largest;
      work.sum[row + i] = before.weight;
      work.factors[i] = before.weight;
      weighted = weighted || before.weight > A{1};
      if (before.weight != A{0} || block.fresh) continue;
      for (std::int64_t c = 0; c < value_dim_; ++c) out[c * columns + i] = A{0};
    }
    if (!weighted) return;
    for (std::int64_t c = 0; c < value_dim_; ++c) {
      for (std::int64_t i = 0; i < columns; ++i) out[c * columns + i] *= work.factors[i];
    }
  }

  void store(const forward_queries<S, A>& block, std::int64_t b, std::int64_t head, const token_block& rows,
             std::int64_t row, const workspace& work) const {
    const std::int64_t count = tile_width(rows, row);
    for (std::int64_t i = 0; i < steps_.columns; ++i) {
      const running_row now{work.largest[row + i], work.sum[row + i]};
      // A row that has seen a key holds a weight of at least 1, or NaN: a score was NaN or +infinity.
      work.factors[i] = now.weight == A{0} ? A{0} : A{1} / now.weight;
      if (i >= count) continue;
      A& lse = *block.lse.at(b, head, rows.first + row + i);
      // A row that saw nothing new keeps its bits: scaling its lse to powers of two and back could change the last
      // one. (Its output has been multiplied by a power of two, by which it is now divided, and nothing has been
      // added.)
      if (!block.fresh && now == running_row::of(lse)) continue;
      lse = now.log_sum_exp();
    }
    steps_.transpose_back(work.out + row * value_rows(), steps_.columns, work.factors,
                          block.out.at(b, rows.first + row, head), block.out.sequence_stride, count, value_dim_);
  }

  /// Rows that see no key of this tile: their running result stays, and becomes that of no key where there is none yet.
  void nothing_seen(const forward_queries<S, A>& block, std::int64_t b, std::int64_t head,
                    const token_block& rows) const {
    if (!block.fresh) return;
    for (std::int64_t row = rows.first; row < rows.first + rows.count; ++row) {
      fill_zero(block.out.at(b, row, head), value_dim_);
      *block.lse.at(b, head, row) = nothing;
    }
  }
};

}  // namespace orrery::detail
