// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "orrery/attention/tile.hpp"
#include "orrery/attention/token_blocks.hpp"
#include "orrery/host/context.hpp"
#include "orrery/kernel/cpu/exponential.hpp"
#include "orrery/kernel/cpu/flash_few_rows_workspace.hpp"
#include "orrery/kernel/cpu/flash_forward_workspace.hpp"
#include "orrery/kernel/cpu/grouped_heads.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/kernel/cpu/scratch.hpp"
#include "orrery/kernel/cpu/visible_keys.hpp"
#include "orrery/kernel/flash_policies.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/math.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// The forward tile of `flash` where the query heads that read one key head have few queries in all, as when a model
/// generates token by token: reading keys and values then takes longer than computing with them. A row is a query of a
/// query head.
///
/// Keys and values are read once, in the order in which they lie in memory, which the processor's prefetchers follow:
/// where the heads of a token lie side by side, 16 tokens of all key heads of an item after the other 16, else a head
/// is an item. One row for each key head reads them where they lie; for several, for 16-bit types and for head
/// dimensions that are no whole vectors, they are copied to scratch first. An item is some key heads of a batch; which
/// ones changes no bit of the result.
///
/// Sums over keys are made in the three steps of `flash_forward`. Scratch: `flash_forward_scratch_bytes` of stack.
template <class S, class A, mask Mask, class Policies = flash_policies>
class flash_few_rows {
 public:
  flash_few_rows(std::span<const forward_queries<S, A>> queries, std::span<const forward_keys<S>> keys,
                 const head_map& heads, A scale, const Mask& mask, const flash_steps<A>& steps, int threads) noexcept
      : queries_(queries),
        keys_(keys),
        heads_(heads),
        scale_(scale * log2_e<A>),
        mask_(mask),
        steps_(steps),
        tokens_(tokens_of(queries)),
        group_(query_heads_per_key_head(queries, heads)) {
    if (tokens_ < 1 || tokens_ > most_tokens || group_ < 1 || (tokens_ == 1 && group_ > most_group) ||
        rows_of_head_ > most_rows)
      return;
    for (const auto& block : queries_) {
      if (block.q.dim > key_dim_) key_dim_ = block.q.dim;
      if (block.out.dim > value_dim_) value_dim_ = block.out.dim;
      if (block.q.batch > batch_) batch_ = block.q.batch;
      key_heads_ = block.q.heads / group_;
    }
    key_ld_ = scratch_cursor<A>::row_distance(round_up(key_dim_, steps_.lanes));
    value_ld_ = scratch_cursor<A>::row_distance(round_up(value_dim_, steps_.lanes));
    const std::int64_t free = scratch_elements - at_once * most_copied - slack;
    heads_at_once_ = free / (rows_of_head_ * (key_ld_ + 3 * value_ld_ + 4 + key_block));
    const std::int64_t longest = key_ld_ > value_ld_ ? key_ld_ : value_ld_;
    if (heads_at_once_ > most_copied / longest) heads_at_once_ = most_copied / longest;
    for (const auto& side : keys_) {
      if (heads_at_once_ > 1 && !(is_dense(side.k) && is_dense(side.v))) heads_at_once_ = 1;
    }
    if (heads_at_once_ < 1) return;
    const std::int64_t share = (batch_ * key_heads_ + threads - 1) / threads;
    if (heads_at_once_ > share) heads_at_once_ = share;
    if (heads_at_once_ > key_heads_) heads_at_once_ = key_heads_;
  }

  /// True if the tile can compute the call, and is the one to do it. Only then may the others be called.
  [[nodiscard]] bool suits() const noexcept { return heads_at_once_ > 0; }

  [[nodiscard]] std::int64_t items() const noexcept { return batch_ * parts(); }

  void run(std::int64_t item, const host_context& context) const {
    alignas(64) A memory[static_cast<std::size_t>(scratch_elements)];
    scratch_cursor<A> cursor{memory};
    const std::int64_t b = item / parts();
    const std::int64_t first = item % parts() * heads_at_once_;
    const std::int64_t end = first + heads_at_once_ < key_heads_ ? first + heads_at_once_ : key_heads_;
    workspace work;
    work.value_dim = value_dim_;
    work.value_ld = value_ld_;
    const std::int64_t rows = (end - first) * rows_of_head_;
    work.queries = cursor.take(rows * key_ld_);
    work.out = cursor.take(rows * value_ld_);
    work.block_out = cursor.take(rows * value_ld_);
    work.total_out = cursor.take(rows * value_ld_);
    work.largest = cursor.take(rows);
    work.sum = cursor.take(rows);
    work.total_largest = cursor.take(rows);
    work.total_sum = cursor.take(rows);
    work.scores = cursor.take(rows * key_block);
    work.copies = cursor.take(at_once * most_copied);

    fill_zero(work.block_out, rows * value_ld_);
    for_rows(first, end, [&](std::int64_t row, std::int64_t head, const place& of) { load(b, head, of, row, work); });
    bool has_totals = false;
    std::int64_t part = 0;
    std::int64_t blocks_before = 0;
    for (const auto& side : keys_) {
      const token_blocks blocks{side.positions, key_block, steps_.lanes};
      for (std::int64_t i = 0; i < blocks.count(); ++i) {
        const token_block keys = blocks[i];
        seen_pairs seen;
        if (!look(keys, seen)) continue;
        // Not a number of blocks that these rows meet, as in flash_forward.
        const std::int64_t now = (blocks_before + i) / blocks_in_part;
        if (now != part) {
          for (std::int64_t row = 0; row < rows; ++row) work.carry(row, !has_totals, steps_);
          has_totals = true;
          part = now;
        }
        const std::int64_t head = heads_.key_head(0) + first;
        find_scores({side.k, b, head, head + end - first}, keys, work);
        for (std::int64_t row = 0; row < rows; ++row) soften(row, keys, seen, work);
        add_values({side.v, b, head, head + end - first}, keys, seen, work);
        steps_.move_sums(work.block_out, work.out, rows * value_ld_);
        context.poll();
      }
      blocks_before += blocks.count();
    }
    for_rows(first, end, [&](std::int64_t row, std::int64_t head, const place& of) {
      if (has_totals) work.add_totals(row);
      store(b, head, of, row, work);
    });
  }

 private:
  using running_row = flash_running_row<A>;
  using workspace = flash_few_rows_workspace<A>;
  static constexpr math::minus_infinity<A> nothing{};
  // With more, flash_forward is as fast.
  static constexpr std::int64_t most_tokens = 8;
  static constexpr std::int64_t most_rows = 64;
  static constexpr std::int64_t most_group = 16;  // of one token, which become tokens
  static constexpr std::int64_t key_block = 64;
  static constexpr std::int64_t at_once = 16;        // keys that all heads meet before the next ones come
  static constexpr std::int64_t most_copied = 2048;  // elements of a token
  static constexpr std::int64_t blocks_in_part = Policies::forward().blocks_in_part;
  static constexpr std::int64_t scratch_elements = flash_forward_scratch_bytes / static_cast<std::int64_t>(sizeof(A));
  static constexpr std::int64_t slack = 10 * 16;  // what scratch_cursor may add to each array

  /// A query of a call.
  struct place {
    const forward_queries<S, A>& block;
    std::int64_t token;
  };

  /// What the queries of a call, which are the same in all heads, see of a block of keys.
  struct seen_pairs {
    bool by_all;  ///< every query sees some
    visibility of_token[most_tokens];
    bool hidden[most_tokens][key_block];  ///< of tokens that see some
    flash_seen_keys<key_block> by_any;
  };

  std::int64_t parts() const noexcept {
    return key_heads_ == 0 ? 0 : (key_heads_ + heads_at_once_ - 1) / heads_at_once_;
  }

  /// Calls visit(index, place) for the queries of the call.
  template <class Visit>
  void for_tokens(const Visit& visit) const {
    std::int64_t index = 0;
    for (const auto& block : queries_) {
      const std::int64_t tokens = block.positions.tokens();
      for (std::int64_t token = 0; token < tokens; ++token) visit(index++, place{block, token});
    }
  }

  /// Calls visit(row, query head, place) for the rows of key heads [first, end).
  template <class Visit>
  void for_rows(std::int64_t first, std::int64_t end, const Visit& visit) const {
    std::int64_t row = 0;
    for (std::int64_t key_head = first; key_head < end; ++key_head) {
      for (std::int64_t head = key_head * group_; head < (key_head + 1) * group_; ++head) {
        for_tokens([&](std::int64_t, const place& of) { visit(row++, head, of); });
      }
    }
  }

  /// What the queries see of a block of keys. False if it is nothing.
  bool look(const token_block& keys, seen_pairs& seen) const {
    bool any = false;
    bool all = false;
    for_tokens([&](std::int64_t i, const place& of) {
      const std::int64_t query = of.block.positions.position(of.token);
      const visibility now = mask_.classify(query, query, keys.position(0), keys.position(keys.count - 1));
      seen.of_token[i] = now;
      any = any || now != visibility::none;
      all = all || now == visibility::all;
    });
    if (!any) return false;
    if (!all) seen.by_any.begin(0, keys.count, false);
    any = all;
    seen.by_all = true;
    for_tokens([&](std::int64_t i, const place& of) {
      if (seen.of_token[i] == visibility::none) seen.by_all = false;
      if (seen.of_token[i] != visibility::some) return;
      const std::int64_t query = of.block.positions.position(of.token);
      bool visible = false;
      for (std::int64_t key = 0; key < keys.count; ++key) {
        const bool sees = mask_.visible(query, keys.position(key));
        seen.hidden[i][key] = !sees;
        visible = visible || sees;
        if (sees && !all) seen.by_any.set(key, key + 1, true);
      }
      if (!visible) {
        seen.of_token[i] = visibility::none;
        seen.by_all = false;
      }
      any = any || visible;
    });
    return any;
  }

  /// The keys or the values of some heads.
  struct some_heads {
    const tensor_view<const S>& of;
    std::int64_t batch;
    std::int64_t first;
    std::int64_t end;
  };

  /// Rows of elements that the steps can read, of some tokens and heads.
  struct operand {
    const A* data;
    std::int64_t ld;
    std::int64_t head_ld;
  };

  static bool is_dense(const tensor_view<const S>& tensor) noexcept { return tensor.head_stride == tensor.dim; }

  /// Asks for what lies some rows after `count` elements of a row.
  static void ask_ahead(const S* row, std::int64_t stride, std::int64_t count) noexcept {
    constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(S));
    for (std::int64_t i = 0; i < count; i += line) prefetch_ahead(row + i, stride);
  }

  /// The elements of `count` tokens from `first` on: where they are, if they are read once, or copied to scratch.
  operand operand_of(const some_heads& heads, std::int64_t first, std::int64_t count, A* scratch) const {
    const tensor_view<const S>& tensor = heads.of;
    const std::int64_t all = heads.end - heads.first;
    const bool whole = tensor.dim % steps_.lanes == 0;
    if constexpr (std::is_same_v<S, A>) {
      if (whole && rows_of_head_ == 1)
        return {tensor.at(heads.batch, first, heads.first), tensor.sequence_stride, tensor.head_stride};
    }
    const std::int64_t width = round_up(tensor.dim, steps_.lanes);
    const std::int64_t ld = scratch_cursor<A>::row_distance(all * width);
    for (std::int64_t i = 0; i < count; ++i) {
      const S* from = tensor.at(heads.batch, first + i, heads.first);
      A* to = scratch + i * ld;
      ask_ahead(from, tensor.sequence_stride, (is_dense(tensor) ? all : 1) * tensor.dim);
      if (whole && is_dense(tensor)) {
        widen(steps_, from, to, all * width);
        continue;
      }
      for (std::int64_t head = 0; head < all; ++head, from += tensor.head_stride, to += width) {
        widen(steps_, from, to, tensor.dim);
        fill_zero(to + tensor.dim, width - tensor.dim);
      }
    }
    return {scratch, ld, width};
  }

  /// The scores of all rows with a block of keys.
  void find_scores(const some_heads& heads, const token_block& keys, const workspace& work) const {
    for (std::int64_t key = 0; key < keys.count; key += at_once) {
      const std::int64_t count = keys.count - key < at_once ? keys.count - key : at_once;
      const operand from = operand_of(heads, keys.first + key, count, work.copies);
      steps_.dots(work.queries, key_ld_, rows_of_head_, heads.end - heads.first, from.data, from.ld, from.head_ld,
                  count, round_up(key_dim_, steps_.lanes), work.scores + key, key_block);
    }
  }

  /// Scores of a row become weights; those of keys that it does not see, 0.
  void soften(std::int64_t row, const token_block& keys, const seen_pairs& seen, const workspace& work) const {
    const std::int64_t token = row % tokens_;
    if (seen.of_token[token] == visibility::none) return;
    A* scores = work.scores + row * key_block;
    const std::int64_t padded = round_up(keys.count, steps_.lanes);
    for (std::int64_t key = keys.count; key < padded; ++key) scores[key] = nothing;
    if (seen.of_token[token] == visibility::some) {
      for (std::int64_t key = 0; key < keys.count; ++key) {
        if (seen.hidden[token][key]) scores[key] = nothing;
      }
    }
    A factor{};
    steps_.row_softmax(scores, padded, work.largest[row], work.sum[row], factor);
    // NOLINTNEXTLINE(clang-diagnostic-float-equal)
    if (factor != A{1}) work.multiply(work.out + row * value_ld_, factor);
  }

  /// Adds the weighted values of a block of keys to all rows that see some.
  void add_values(const some_heads& heads, const token_block& keys, const seen_pairs& seen,
                  const workspace& work) const {
    const std::int64_t width = round_up(value_dim_, steps_.lanes);
    for (std::int64_t key = 0; key < keys.count; key += at_once) {
      const std::int64_t count = keys.count - key < at_once ? keys.count - key : at_once;
      const operand from = operand_of(heads, keys.first + key, count, work.copies);
      seen.by_any.for_runs(key, key + count, [&](std::int64_t first, std::int64_t past) {
        const auto weigh = [&](std::int64_t row, std::int64_t rows, std::int64_t head, std::int64_t count_of_heads) {
          steps_.weigh(work.scores + row * key_block + first, key_block, rows, count_of_heads,
                       from.data + head * from.head_ld + (first - key) * from.ld, from.ld, from.head_ld, past - first,
                       work.block_out + row * value_ld_, value_ld_, width);
        };
        if (seen.by_all) return weigh(0, rows_of_head_, 0, heads.end - heads.first);
        // Rows that see nothing of these keys are left out: what they hold may be infinite.
        for (std::int64_t head = 0; head < heads.end - heads.first; ++head) {
          for_seeing(head * rows_of_head_, (head + 1) * rows_of_head_, seen,
                     [&](std::int64_t row, std::int64_t rows) { weigh(row, rows, head, 1); });
        }
      });
    }
  }

  /// Calls visit(first row, rows) for the runs of rows in [row, end) that see some key of a block: what others hold may
  /// be infinite.
  template <class Visit>
  void for_seeing(std::int64_t row, std::int64_t end, const seen_pairs& seen, const Visit& visit) const {
    while (row < end) {
      std::int64_t past = row;
      while (past < end && seen.of_token[past % tokens_] != visibility::none) ++past;
      if (past > row) visit(row, past - row);
      row = past + 1;
    }
  }

  void load(std::int64_t b, std::int64_t head, const place& of, std::int64_t row, const workspace& work) const {
    A* query = work.queries + row * key_ld_;
    widen(steps_, of.block.q.at(b, of.token, head), query, key_dim_);
    for (std::int64_t i = 0; i < key_dim_; ++i) query[i] *= scale_;
    fill_zero(query + key_dim_, round_up(key_dim_, steps_.lanes) - key_dim_);
    A* out = work.out + row * value_ld_;
    fill_zero(out, value_ld_);
    const running_row before = running_row::of(of.block.fresh ? A{nothing} : *of.block.lse.at(b, head, of.token));
    work.largest[row] = before.largest;
    work.sum[row] = before.weight;
    if (before.weight == A{0}) return;
    const A* result = of.block.out.at(b, of.token, head);
    for (std::int64_t i = 0; i < value_dim_; ++i) out[i] = result[i] * before.weight;
  }

  void store(std::int64_t b, std::int64_t head, const place& of, std::int64_t row, const workspace& work) const {
    const running_row now{work.largest[row], work.sum[row]};
    A& lse = *of.block.lse.at(b, head, of.token);
    // A row that saw nothing new keeps its bits, as in flash_forward.
    if (!of.block.fresh && now == running_row::of(lse)) return;
    lse = now.log_sum_exp();
    const A factor = now.weight == A{0} ? A{0} : A{1} / now.weight;
    A* result = of.block.out.at(b, of.token, head);
    const A* out = work.out + row * value_ld_;
    for (std::int64_t i = 0; i < value_dim_; ++i) result[i] = out[i] * factor;
  }

  std::span<const forward_queries<S, A>> queries_;
  std::span<const forward_keys<S>> keys_;
  const head_map& heads_;
  A scale_;
  const Mask& mask_;
  flash_steps<A> steps_;
  std::int64_t tokens_;
  std::int64_t group_;  ///< query heads for a key head
  std::int64_t rows_of_head_ = tokens_ * group_;
  std::int64_t key_dim_ = 0;
  std::int64_t value_dim_ = 0;
  std::int64_t batch_ = 0;
  std::int64_t key_heads_ = 0;
  std::int64_t key_ld_ = 0;
  std::int64_t value_ld_ = 0;
  std::int64_t heads_at_once_ = 0;
};

}  // namespace orrery::detail
