// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

#include "orrery/attention/tile.hpp"
#include "orrery/attention/token_blocks.hpp"
#include "orrery/host/context.hpp"
#include "orrery/host/thread_team.hpp"
#include "orrery/kernel/cpu/flash_backward_workspace.hpp"
#include "orrery/kernel/cpu/flash_tile.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/kernel/cpu/scratch.hpp"
#include "orrery/kernel/cpu/visible_keys.hpp"
#include "orrery/kernel/cpu/visible_pairs.hpp"
#include "orrery/kernel/flash_policies.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/math.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// The backward tile of `flash` as a list of independent work items: one for each (batch, key head), so that no two
/// items write the same gradient and threads may share them in any way without changing a bit of the result.
///
/// An item takes the keys block by block, holds their gradients in scratch, and meets all query blocks of all query
/// heads that read its key head; grad_q is summed in the caller's memory. Several threads take whole items as long as
/// there are enough for all; the blocks of the remaining ones then follow each other through the query blocks, one
/// thread behind the other, so that each sum in grad_q is added up in the same order. Five products per pair of blocks;
/// K and V are transposed once per block of keys. Scratch: `flash_backward_scratch_bytes` of stack.
///
/// Where the steps say so (`flash_steps::keys_at_once`), a block of queries meets a block of keys part by part: scores
/// then stay in the nearest caches, and the gradients of queries are still added to the caller's memory once for each
/// block of keys. Of each part only those rows are computed that lie between the first and the last that see some of
/// it.
///
/// Gradients of keys are summed in parts of 32 blocks of queries, which are added to the caller's memory together with
/// what the addition before has lost (see flash_steps::carry), so that their error does not grow with the number of
/// queries. So is grad_q where it is small (up to 64 KiB in all); else it has one rounding for each block of keys.
///
/// Source: Dao, arXiv 2307.08691, algorithm 2.
template <class S, class A, mask Mask, class Policies = flash_policies>
class flash_backward : flash_tile<backward_queries<S, A>, backward_keys<S, A>, A, Mask> {
 public:
  flash_backward(std::span<const backward_queries<S, A>> queries, std::span<const backward_keys<S, A>> keys,
                 const head_map& heads, A scale, const Mask& mask, const flash_steps<A>& steps) noexcept
      : tile{queries, keys, heads, scale, mask, steps} {
    for (const auto& block : keys_) {
      if (block.k.dim > key_dim_) key_dim_ = block.k.dim;
      if (block.v.dim > value_dim_) value_dim_ = block.v.dim;
    }
    choose_block_sizes(most_keys);
    // Smaller blocks of keys where there would be too few for threads to share. (Not as many as there are threads at
    // hand: how sums are added up must not depend on that.)
    constexpr std::int64_t enough = 32;
    constexpr std::int64_t most_of_few = 256;
    if (items() * blocks_of_keys() < enough && key_block_ > most_of_few) choose_block_sizes(most_of_few);
  }

  [[nodiscard]] std::int64_t items() const noexcept {
    return keys_.empty() ? 0 : keys_.front().k.batch * keys_.front().k.heads;
  }

  void run(std::int64_t item, const host_context& context) const {
    A memory[static_cast<std::size_t>(most_lost)];
    run(item, keeps_lost() ? memory : nullptr, context);
  }

  /// The block of keys `index` of an item. It adds to the gradients of a block of queries after `turn.enter(stage)` and
  /// before `turn.leave(stage)`, in stages 0, 1, ..., the same blocks of queries for all blocks of keys.
  template <class Turn>
  void run_block(std::int64_t item, std::int64_t index, const Turn& turn, const host_context& context) const {
    run_keys(item, index, turn, nullptr, context);
  }

  /// All items, on all threads of the context.
  void run_all(const host_context& context) const {
    const std::int64_t all = items();
    const std::int64_t threads = context.threads();
    const std::int64_t whole = all / threads * threads;
    A memory[static_cast<std::size_t>(most_lost)];
    const auto lost = [&](std::int64_t item) { return keeps_lost() ? memory + item * lost_of_item() : nullptr; };
    context.for_each(whole, [&](std::int64_t item, const host_context& own) { run(item, lost(item), own); });
    if (whole == all) return;
    const std::int64_t blocks = blocks_of_keys();
    context.team->run_staged((all - whole) * blocks,
                             [&](std::int64_t one, int thread, const thread_team::stage_order& turn) {
                               const host_context helper{};
                               const std::int64_t item = whole + one / blocks;
                               run_keys(item, one % blocks, turn, lost(item), thread == 0 ? context : helper);
                             });
  }

 private:
  using tile = flash_tile<backward_queries<S, A>, backward_keys<S, A>, A, Mask>;
  using workspace = flash_backward_workspace<A>;
  using tile::classify, tile::heads_, tile::key_block_, tile::key_dim_, tile::key_ld, tile::keys_, tile::mask_;
  using tile::nothing, tile::queries_, tile::row_block_, tile::scale_, tile::steps_, tile::value_dim_, tile::value_ld;

  static constexpr std::int64_t most_keys = Policies::backward().most_keys;
  static constexpr std::int64_t blocks_in_part =
      Policies::backward().blocks_in_part;  // of queries, summed before they are carried
  static constexpr std::int64_t scratch_elements = flash_backward_scratch_bytes / static_cast<std::int64_t>(sizeof(A));

  /// How many elements of grad_q there may be for that what additions to them lose is kept.
  static constexpr std::int64_t most_lost = 64 * 1024 / static_cast<std::int64_t>(sizeof(A));

  static_assert(most_keys >= 32 && most_keys % 32 == 0 && blocks_in_part >= 1,
                "orrery: a policy of flash needs .most_keys a multiple of 32, and .blocks_in_part of at least 1");
  static constexpr std::int64_t most_rows = 128;
  using seen_keys = flash_seen_keys<most_keys>;
  using visible_pairs = flash_visible_pairs<Mask, most_rows, most_keys>;

  /// The turn of one that nobody precedes or follows.
  struct alone {
    static void enter(std::int64_t) noexcept {}
    static void leave(std::int64_t) noexcept {}
  };

  /// Blocks are whole vectors and whole rows of products, so that no padding needs memory of its own.
  std::int64_t granule() const noexcept { return steps_.lanes > steps_.tile_rows ? steps_.lanes : steps_.tile_rows; }
  std::int64_t key_width() const noexcept { return round_up(key_dim_, steps_.lanes); }
  std::int64_t value_width() const noexcept { return round_up(value_dim_, steps_.lanes); }

  /// True if the backward computes with parts of a block of keys; else a block is one part.
  bool has_parts() const noexcept { return steps_.keys_at_once > 0 && steps_.keys_at_once < key_block_; }
  std::int64_t key_part() const noexcept { return has_parts() ? steps_.keys_at_once : key_block_; }
  std::int64_t score_ld() const noexcept { return score_ld(key_part()); }
  std::int64_t score_ld(std::int64_t part) const noexcept {
    return steps_.keys_at_once > 0 ? scratch_cursor<A>::row_distance(part) : scratch_cursor<A>::padded(part);
  }
  /// Parts of the largest block of keys.
  std::int64_t parts() const noexcept { return (key_block_ + key_part() - 1) / key_part(); }

  std::int64_t elements(std::int64_t rows, std::int64_t keys) const noexcept {
    const bool has_parts = steps_.keys_at_once > 0 && steps_.keys_at_once < keys;
    const std::int64_t part = has_parts ? steps_.keys_at_once : keys;
    const std::int64_t slack = (has_parts ? 13 : 12) * 16;  // what `padded` may add to each array
    return keys * (2 * key_ld() + value_ld()) + (keys + part - 1) / part * score_ld(part) * (key_dim_ + value_dim_) +
           rows * ((has_parts ? 2 : 1) * key_ld() + value_ld() + 2 * score_ld(part) + 3) + slack;
  }

  /// Copying a query, its gradient and adding to grad_q costs about as much as 25 keys' arithmetic with them where
  /// memory is far, and a block of rows a load and a store of the gradients of the keys, about as much as 5 rows.
  void choose_block_sizes(std::int64_t most) noexcept {
    tile::choose_block_sizes({steps_.tile_rows, most_rows, granule(), most, scratch_elements, 5.0, 25.0},
                             [&](std::int64_t rows, std::int64_t keys) { return elements(rows, keys); });
  }

  static void clear_rows(const tensor_view<A>& tensor, std::int64_t b, std::int64_t head, const token_block& rows) {
    for (std::int64_t i = 0; i < rows.count; ++i) {
      A* row = tensor.at(b, rows.first + i, head);
      for (std::int64_t c = 0; c < tensor.dim; ++c) row[c] = A{0};
    }
  }

  /// The number of blocks of keys of one item.
  std::int64_t blocks_of_keys() const noexcept {
    std::int64_t sum = 0;
    for (const auto& side : keys_) sum += token_blocks{side.positions, key_block_, granule()}.count();
    return sum == 0 ? 1 : sum;  // an item without keys has gradients to clear
  }

  /// Elements of grad_q that an item adds to.
  std::int64_t lost_of_item() const noexcept {
    std::int64_t sum = 0;
    for (const auto& block : queries_) {
      const std::int64_t group = heads_.queries_per_key_head;
      sum += block.q.sequence * (block.q.heads < group ? block.q.heads : group) * block.q.dim;
    }
    return sum;
  }
  bool keeps_lost() const noexcept { return items() * lost_of_item() <= most_lost; }

  void run(std::int64_t item, A* lost, const host_context& context) const {
    const std::int64_t blocks = blocks_of_keys();
    for (std::int64_t i = 0; i < blocks; ++i) run_keys(item, i, alone{}, lost, context);
  }

  /// The block of keys `index` of an item meets all blocks of queries in their order, each in its turn.
  template <class Turn>
  void run_keys(std::int64_t item, std::int64_t index, const Turn& turn, A* lost, const host_context& context) const {
    const std::int64_t b = item / keys_.front().k.heads;
    const std::int64_t key_head = item % keys_.front().k.heads;
    const bool first = index == 0;
    const backward_keys<S, A>* side = &keys_.front();
    token_block keys;
    for (const auto& one : keys_) {
      const token_blocks blocks{one.positions, key_block_, granule()};
      if (index < blocks.count()) {
        side = &one;
        keys = blocks[index];
        break;
      }
      index -= blocks.count();
    }
    alignas(64) A memory[static_cast<std::size_t>(scratch_elements)];
    scratch_cursor<A> cursor{memory};
    workspace work;
    work.key_width = key_width();
    work.value_width = value_width();
    work.key_ld = key_ld();
    work.value_ld = value_ld();
    work.score_ld = score_ld();
    work.keys = cursor.take(key_block_ * key_ld());
    work.keys_transposed = cursor.take(parts() * key_dim_ * score_ld());
    work.values_transposed = cursor.take(parts() * value_dim_ * score_ld());
    work.grad_keys = cursor.take(key_block_ * key_ld());
    work.grad_values = cursor.take(key_block_ * value_ld());
    work.queries = cursor.take(row_block_ * key_ld());
    work.grad_queries = has_parts() ? cursor.take(row_block_ * key_ld()) : work.queries;
    work.grad_out = cursor.take(row_block_ * value_ld());
    work.probabilities = cursor.take(row_block_ * score_ld());
    work.grad_scores = cursor.take(row_block_ * score_ld());
    work.base = cursor.take(row_block_);
    work.factors = cursor.take(row_block_);
    work.delta = cursor.take(row_block_);

    copy_tokens(steps_, side->k, b, key_head, keys, work.keys, key_ld(), key_width());
    // grad_q takes its keys from here. What is infinite or NaN is so in the scores too: a score of -infinity has no
    // gradient, but 0 times infinity would be NaN; all others make the row's probabilities NaN.
    bool finite = true;
    for (std::int64_t i = 0; i < keys.count; ++i) {
      A* key = work.keys + i * key_ld();
      for (std::int64_t c = 0; c < key_width(); ++c) {
        const bool is_finite = math::is_finite(key[c]);
        key[c] = is_finite ? key[c] * scale_ : A{0};
        finite = finite && is_finite;
      }
    }
    for (std::int64_t begin = 0, part = 0; begin < keys.count; begin += key_part(), ++part) {
      const std::int64_t left = keys.count - begin;
      const std::int64_t count = left < key_part() ? left : key_part();
      const std::int64_t width = round_up(count, granule());
      transpose_tokens(steps_, side->k, b, key_head, keys.first + begin, count, scale_ * log2_e<A>,
                       work.keys_transposed + part * key_dim_ * score_ld(), score_ld(), width);
      transpose_tokens(steps_, side->v, b, key_head, keys.first + begin, count, A{1},
                       work.values_transposed + part * value_dim_ * score_ld(), score_ld(), width);
    }
    for (std::int64_t i = 0; i < key_block_ * key_ld(); ++i) work.grad_keys[i] = A{0};
    for (std::int64_t i = 0; i < key_block_ * value_ld(); ++i) work.grad_values[i] = A{0};

    std::int64_t stage = 0;
    std::int64_t met = 0;  // blocks of queries since the gradients of keys were carried to the caller's memory
    bool fresh = side->fresh;
    for (const auto& block : queries_) {
      const token_blocks blocks{block.positions, row_block_, steps_.tile_rows};
      for (std::int64_t head = 0; head < block.q.heads; ++head) {
        if (heads_.key_head(head) != key_head) continue;
        for (std::int64_t i = 0; i < blocks.count(); ++i) {
          const token_block rows = blocks[i];
          turn.enter(stage);
          if (first && block.fresh) clear_rows(block.grad_q, b, head, rows);
          if (first && lost != nullptr) fill_zero(lost, rows.count * block.q.dim);
          const token_block next = blocks[i + 1 < blocks.count() ? i + 1 : 0];
          if (keys.count > 0) meet(block, b, head, rows, next, keys, finite, lost, work);
          if (lost != nullptr) lost += rows.count * block.q.dim;
          turn.leave(stage++);
          if (++met == blocks_in_part) {
            carry_tokens(steps_, work.grad_keys, key_ld(), scale_, side->grad_k, fresh, b, key_head, keys);
            carry_tokens(steps_, work.grad_values, value_ld(), A{1}, side->grad_v, fresh, b, key_head, keys);
            fresh = false;
            met = 0;
          }
        }
        context.poll();
      }
    }
    add_tokens(work.grad_keys, key_ld(), scale_, side->grad_k, fresh, b, key_head, keys);
    add_tokens(work.grad_values, value_ld(), A{1}, side->grad_v, fresh, b, key_head, keys);
  }

  /// One block of queries meets one block of keys; `next` are the queries that probably come then. `finite`: no key
  /// holds an infinity or NaN. `lost`, if not null, is what additions to the gradients of these queries have lost.
  void meet(const backward_queries<S, A>& block, std::int64_t b, std::int64_t head, const token_block& rows,
            const token_block& next, const token_block& keys, bool finite, A* lost, const workspace& work) const {
    const visibility seen = classify(rows, 0, rows.count, keys, 0, keys.count);
    if (seen == visibility::none) return;
    const token_range some = this->seen_part(seen, rows, 0, rows.count, keys, granule());
    if (some.first == some.last) return;
    visible_pairs pairs;
    if (seen == visibility::some) pairs.ask(mask_, rows, keys, some.first, some.last, granule());

    const std::int64_t padded_rows = round_up(rows.count, steps_.tile_rows);
    bool some_empty = false;
    for (std::int64_t i = 0; i < padded_rows; ++i) {
      const A lse = i < rows.count ? *block.lse.at(b, head, rows.first + i) : nothing;
      const bool empty = math::is_minus_infinity(lse);
      // A probability is as exact as its exponent: where scores are small, let these be as small.
      const A exponent = log2_of_log(lse);
      const bool moderate = exponent < A{32} && exponent > A{-32};
      work.base[i] = empty ? -nothing : moderate ? A{0} : exponent;
      work.factors[i] = moderate ? static_cast<A>(math::exp(-static_cast<double>(lse))) : A{1};
      work.delta[i] = empty ? A{0} : *block.delta.at(b, head, rows.first + i);
      if (i >= rows.count) continue;
      if (!empty) finite = finite && math::is_finite(lse) && math::is_finite(work.delta[i]);
      some_empty = some_empty || empty;
    }
    // Nothing depends on a row that has seen no key, or sees none of these, whatever it holds.
    const auto load_queries = [&] {
      copy_tokens(steps_, block.q, b, head, rows, work.queries, key_ld(), key_width());
      for (std::int64_t i = 0; i < rows.count; ++i) {
        if (work.is_empty_row(i) || (seen == visibility::some && pairs.is_hidden(i))) work.clear_row(i);
      }
    };
    copy_tokens(steps_, block.grad_out, b, head, rows, work.grad_out, value_ld(), value_width());
    load_queries();

    const bool whole = !has_parts() && lost == nullptr && block.grad_q.dim == key_width() && rows.count == padded_rows;
    A* const grads = whole ? block.grad_q.at(b, rows.first, head) : work.grad_queries;
    const std::int64_t ld_grads = whole ? block.grad_q.sequence_stride : key_ld();
    bool has_gradient = whole;
    const auto product = steps_.product;
    const std::int64_t ld = score_ld();
    for (std::int64_t part = some.first / key_part(); part * key_part() < some.last; ++part) {
      const std::int64_t origin = part * key_part();
      const std::int64_t first = some.first > origin ? some.first : origin;
      const std::int64_t last = some.last < origin + key_part() ? some.last : origin + key_part();
      token_range rows_of{0, rows.count};
      if (seen == visibility::some) rows_of = pairs.rows_of(rows.count, first, last);
      if (rows_of.first == rows_of.last) continue;
      if (!finite && has_parts()) load_queries();  // `clear_hidden_scores` changes them
      const std::int64_t row = rows_of.first / steps_.tile_rows * steps_.tile_rows;
      const std::int64_t end_row = round_up(rows_of.last, steps_.tile_rows);
      rows_of = {row, end_row < rows.count ? end_row : rows.count};
      const std::int64_t tile_rows = end_row - row;
      const std::int64_t depth = rows_of.last - row;

      const std::int64_t column = first - origin;
      const std::int64_t count = last - first;
      const std::int64_t padded_keys = round_up(count, granule());
      const A* const keys_transposed = work.keys_transposed + part * key_dim_ * ld + column;
      const A* const queries = work.queries + row * key_ld();
      const A* const grad_out = work.grad_out + row * value_ld();
      A* const probabilities = work.probabilities + row * ld + column;
      A* const grad_scores = work.grad_scores + row * ld + column;
      if (!finite) {  // the scores themselves
        product(true, queries, key_ld(), keys_transposed, ld, key_dim_, grad_scores, ld, tile_rows, padded_keys, false);
      }
      steps_.probabilities(queries, key_ld(), keys_transposed, key_dim_, work.base + row, work.factors + row,
                           probabilities, ld, tile_rows, padded_keys);
      if (!finite) work.mark_hidden_scores(rows_of, column, count);
      steps_.score_gradients(grad_out, value_ld(), work.values_transposed + part * value_dim_ * ld + column, value_dim_,
                             work.delta + row, probabilities, grad_scores, ld, tile_rows, padded_keys);
      if (!finite) work.clear_hidden_scores(rows_of, column, count);
      if (some_empty) work.clear_empty_rows(rows_of, column, count);
      seen_keys seen_by_some;
      if (seen == visibility::some) {
        pairs.clear_others(rows_of, first, last, {work.probabilities + column, work.grad_scores + column}, ld,
                           seen_by_some);
      }
      const bool is_last = last == some.last;
      if (is_last) prefetch_tokens(block.q, b, head, next.first, next.first + next.count);
      product(false, probabilities, ld, grad_out, value_ld(), depth, work.grad_values + first * value_ld(), value_ld(),
              padded_keys, value_width(), true);
      if (is_last) prefetch_tokens(block.grad_out, b, head, next.first, next.first + next.count);
      product(false, grad_scores, ld, queries, key_ld(), depth, work.grad_keys + first * key_ld(), key_ld(),
              padded_keys, key_width(), true);
      bool adds = has_gradient;
      seen_by_some.for_runs(first, last, [&](std::int64_t begin, std::int64_t end) {
        product(true, grad_scores + (begin - first), ld, work.keys + begin * key_ld(), key_ld(), end - begin,
                grads + row * ld_grads, ld_grads, tile_rows, key_width(), adds);
        adds = true;
      });
      if (has_gradient || !adds) continue;
      for (std::int64_t i = 0; i < padded_rows; ++i) {
        if (i < row || i >= end_row) fill_zero(work.grad_queries + i * key_ld(), key_width());
      }
      has_gradient = true;
    }
    if (!whole && has_gradient) add_gradients(block, b, head, rows, lost, work);
  }

  /// Adds the gradients of a block of queries to the caller's memory.
  void add_gradients(const backward_queries<S, A>& block, std::int64_t b, std::int64_t head, const token_block& rows,
                     A* lost, const workspace& work) const {
    for (std::int64_t i = 0; i < rows.count; ++i) {
      A* grad = block.grad_q.at(b, rows.first + i, head);
      const A* from = work.grad_queries + i * key_ld();
      if (lost == nullptr) {
        for (std::int64_t c = 0; c < block.grad_q.dim; ++c) grad[c] += from[c];
      } else {
        for (std::int64_t c = 0; c < block.grad_q.dim; ++c) lost[c] += from[c];
        steps_.carry(lost, A{1}, A{1}, grad, block.grad_q.dim);
        lost += block.grad_q.dim;
      }
    }
  }
};

}  // namespace orrery::detail
