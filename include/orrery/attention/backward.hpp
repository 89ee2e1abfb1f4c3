// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "orrery/attention/kernel_plan.hpp"
#include "orrery/attention/output_part.hpp"
#include "orrery/attention/plan.hpp"
#include "orrery/attention/planned_mask.hpp"
#include "orrery/attention/sizes.hpp"
#include "orrery/attention/tile.hpp"
#include "orrery/host/plan_memory.hpp"
#include "orrery/run/executor_plan.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// The backward as an interaction. Query operand: Q, dO, log-sum-exp, delta. Key operand: K, V. Partials: dQ; dK, dV.
/// A key head that several slices share has a part of its gradient in each; they are added up when all slices of a
/// chunk are there.
template <class Kernel, class Mask, class Memory>
class attention_backward {
 public:
  using storage = typename Kernel::storage;
  using accumulator = typename Kernel::accumulator;
  using log_sum_exp = log_sum_exp_of<storage>;
  using context = typename Kernel::context;

  /// All of a query block, and all of a key block.
  static constexpr std::array operands = attention_sizes::backward_tensors;

  attention_backward(const attention_plan<Mask>& plan, const program& p, kernel_plan<Kernel, Memory>& own,
                     plan_memory<Memory>& memory)
      : plan_{&plan}, sizes_{plan.template sizes<Kernel>(p.pass)}, kernel_{&own} {
    queries_.reserve(most_blocks_in_tile(p, side::query));
    keys_.reserve(most_blocks_in_tile(p, side::key));
    pass_ = p.pass;
    std::int64_t key_heads = 0;
    for (const head_slice& s : plan.slices) {
      own_key_heads_before_.push_back(key_heads);
      key_heads += s.key_heads;
    }
    own_key_heads_ = key_heads;
    chunks_under_way_[0] = chunks_under_way_[1] = list<int>(plan.slices.size());
    key_slices_under_way_ = list<int>(plan.chunks);
    keys_direct_ = std::is_same_v<storage, accumulator> && key_heads == plan.key_heads;
    const std::int64_t queries_rows = plan.batch * plan.query_heads * own_tokens(side::query);
    const std::int64_t keys_rows = plan.batch * key_heads * own_tokens(side::key);
    if (is_whole()) return;
    own_delta_ = take_array<accumulator>(memory, queries_rows);
    if constexpr (!lse_direct) own_lse_ = take_array<accumulator>(memory, queries_rows);
    if constexpr (!queries_direct) own_grad_q_ = take_array<accumulator>(memory, queries_rows * plan.head_dim);
    if (!keys_direct_) {
      own_grad_k_ = take_array<accumulator>(memory, keys_rows * plan.head_dim);
      own_grad_v_ = take_array<accumulator>(memory, keys_rows * plan.value_dim);
    }
  }

  /// The trainer's tensors of this call.
  tensor_view<const storage> q, k, v, out, grad_out;
  row_view<const log_sum_exp> lse;
  tensor_view<storage> grad_q, grad_k, grad_v;
  output_listener on_final;

  /// Computes delta, the row sums of grad_out * out.
  void prepare(const context& how) {
    kernel_->begin();
    if (!is_whole()) {
      Kernel::row_dot(how, out, grad_out, own_rows(own_delta_));
      if constexpr (!lse_direct) Kernel::copy(how, lse, own_rows(own_lse_));
    }
    for (list<int>& of_side : chunks_under_way_) {
      for (int& chunks : of_side) chunks = plan_->chunks;
    }
    for (int& slices : key_slices_under_way_) slices = plan_->slices.size();
    shared_chunks_under_way_ = plan_->chunks;
  }

  [[nodiscard]] std::int64_t operand_bytes(int tensor, const block& b) const { return sizes_.operand_bytes(tensor, b); }
  [[nodiscard]] std::int64_t partial_bytes(const block& b) const { return sizes_.partial_bytes(b); }

  void pack(const context& how, int, const block& b, std::byte* to) const {
    if (b.side == side::query) {
      const query_operands from = own_queries(b);
      const query_operands packed = queries_at(b, to);
      Kernel::copy(how, from.lse, mutable_rows(packed.lse));
      Kernel::copy(how, from.delta, mutable_rows(packed.delta));
      Kernel::copy(how, from.q, mutable_tensor(packed.q));
      Kernel::copy(how, from.grad_out, mutable_tensor(packed.grad_out));
    } else {
      block_reader packed = reader(b, to);
      Kernel::copy(how, plan_->part_of(k, b), packed.template tensor<storage>(plan_->head_dim));
      Kernel::copy(how, plan_->part_of(v, b), packed.template tensor<storage>(plan_->value_dim));
    }
  }

  void interact(const context& how, std::span<const tile_block> queries, std::span<const tile_block> keys) {
    if constexpr (kernel_plan<Kernel, Memory>::knows_whole) {
      if (is_whole()) {
        kernel_->run_whole(how,
                           whole_backward<storage>{q, k, v, out, lse, grad_out, grad_q, grad_k, grad_v,
                                                   plan_->positions(queries[0].block), plan_->positions(keys[0].block)},
                           plan_->map_of(queries[0].block), static_cast<accumulator>(plan_->scale),
                           mask_for_kernels(plan_->mask));
        return;
      }
    }
    queries_.clear();
    keys_.clear();
    for (const tile_block& one : queries) {
      const query_operands from =
          one.operand == nullptr ? own_queries(one.block) : queries_at(one.block, writable(one.operand));
      queries_.push_back({from.q, from.grad_out, from.lse, from.delta, grad_q_at(one.block, one.partial),
                          plan_->positions(one.block), one.fresh, one.operand == nullptr});
    }
    for (const tile_block& one : keys) {
      tensor_view<const storage> key = k;
      tensor_view<const storage> value = v;
      if (one.operand == nullptr) {
        key = plan_->part_of(k, one.block);
        value = plan_->part_of(v, one.block);
      } else {
        block_reader packed = reader(one.block, writable(one.operand));
        key = packed.template tensor<storage>(plan_->head_dim);
        value = packed.template tensor<storage>(plan_->value_dim);
      }
      const key_gradients sums = grad_kv_at(one.block, one.partial);
      keys_.push_back({key, value, sums.k, sums.v, plan_->positions(one.block), one.fresh, one.operand == nullptr});
    }
    kernel_->backward(how, std::span<const backward_queries<storage, accumulator>>{queries_},
                      std::span<const backward_keys<storage, accumulator>>{keys_}, plan_->map_of(queries[0].block),
                      static_cast<accumulator>(plan_->scale), mask_for_kernels(plan_->mask));
  }

  void merge(const context& how, const block& b, std::byte* into, const std::byte* from, bool fresh) {
    const auto add = [&](const tensor_view<accumulator>& running, const tensor_view<accumulator>& arrived) {
      if (fresh) {
        Kernel::copy(how, arrived, running);
      } else {
        Kernel::add(how, running, arrived);
      }
    };
    if (b.side == side::query) {
      add(grad_q_at(b, into), grad_q_at(b, writable(from)));
    } else {
      const key_gradients running = grad_kv_at(b, into);
      const key_gradients arrived = grad_kv_at(b, writable(from));
      add(running.k, arrived.k);
      add(running.v, arrived.v);
    }
  }

  /// The gradients of tokens that meet none: 0.
  void clear(const context& how, const block& own) {
    const head_slice& s = plan_->slice(own);
    if (own.side == side::query) {
      if (is_whole()) {
        Kernel::clear(how, grad_q.slice_heads(s.first_query_head, s.query_heads));
      } else {
        Kernel::clear(how, grad_q_at(own, nullptr));
      }
    } else if (is_whole()) {
      Kernel::clear(how, grad_k.slice_heads(s.first_key_head, s.key_heads));
      Kernel::clear(how, grad_v.slice_heads(s.first_key_head, s.key_heads));
    } else {
      const key_gradients sums = grad_kv_at(own, nullptr);
      Kernel::clear(how, sums.k);
      Kernel::clear(how, sums.v);
    }
  }

  void finish(const context& how, const block& own) {
    const head_slice& heads = plan_->slice(own);
    if (own.side == side::query) {
      if (!queries_direct && !is_whole()) {
        Kernel::copy(how, grad_q_at(own, nullptr), plan_->part_of(grad_q, own));
      }
      if (is_last_chunk(own)) on_final({side::query, heads.first_query_head, heads.query_heads});
    } else if (own_key_heads_ == plan_->key_heads) {
      if (!keys_direct_ && !is_whole()) hand_out(how, own, heads.key_heads);
      if (is_last_chunk(own)) on_final({side::key, heads.first_key_head, heads.key_heads});
    } else if (--key_slices_under_way_[own.chunk] == 0) {
      add_up_shared_key_heads(how, own);
      if (--shared_chunks_under_way_ == 0) on_final({side::key, 0, plan_->key_heads});
    }
  }

 private:
  /// Counts a complete chunk of an own result. Returns true if it was the last one of its slice.
  [[nodiscard]] bool is_last_chunk(const block& own) {
    return --chunks_under_way_[static_cast<std::size_t>(own.side)][own.slice] == 0;
  }

  /// Returns true if the kernel writes the gradients itself.
  [[nodiscard]] bool is_whole() const noexcept { return kernel_->is_whole(pass_); }

  static constexpr bool queries_direct = std::is_same_v<storage, accumulator>;
  /// True if the kernel reads the trainer's log-sum-exp where it is.
  static constexpr bool lse_direct = std::is_same_v<log_sum_exp, accumulator>;

  struct query_operands {
    row_view<const accumulator> lse;
    row_view<const accumulator> delta;
    tensor_view<const storage> q;
    tensor_view<const storage> grad_out;
  };
  struct key_gradients {
    tensor_view<accumulator> k;
    tensor_view<accumulator> v;
  };

  template <class T>
  static tensor_view<T> mutable_tensor(const tensor_view<const T>& t) {
    return {const_cast<T*>(t.data), t.batch,           t.sequence,   t.heads, t.dim,
            t.batch_stride,         t.sequence_stride, t.head_stride};
  }
  template <class T>
  static row_view<T> mutable_rows(const row_view<const T>& r) {
    return {const_cast<T*>(r.data), r.batch, r.heads, r.sequence, r.batch_stride, r.head_stride, r.sequence_stride};
  }

  /// Writes the first `ready` key heads of a slice, which are complete, to the trainer's gradients.
  void hand_out(const context& how, const block& own, std::int64_t ready) {
    const key_gradients sums = grad_kv_at(own, nullptr);
    const std::int64_t first = plan_->slice(own).first_key_head;
    Kernel::copy(how, sums.k.slice_heads(0, ready), plan_->part_of(grad_k, own, first, ready));
    Kernel::copy(how, sums.v.slice_heads(0, ready), plan_->part_of(grad_v, own, first, ready));
  }

  /// All slices of the chunk of `some` are there. Slices share at most their outermost key heads with their neighbours:
  /// sums are handed on from slice to slice.
  void add_up_shared_key_heads(const context& how, const block& some) {
    const int slices = plan_->slices.size();
    for (int s = 0; s < slices; ++s) {
      const block own{side::key, some.chunk, plan_->rank, s};
      const head_slice& heads = plan_->slice(own);
      std::int64_t ready = heads.key_heads;
      if (s + 1 < slices) {
        const block next{side::key, some.chunk, plan_->rank, s + 1};
        if (plan_->slice(next).first_key_head < heads.first_key_head + heads.key_heads) {
          --ready;
          const key_gradients sums = grad_kv_at(own, nullptr);
          const key_gradients sums_of_next = grad_kv_at(next, nullptr);
          Kernel::add(how, sums_of_next.k.slice_heads(0, 1), sums.k.slice_heads(ready, 1));
          Kernel::add(how, sums_of_next.v.slice_heads(0, 1), sums.v.slice_heads(ready, 1));
        }
      }
      hand_out(how, own, ready);
    }
  }

  [[nodiscard]] std::int64_t own_tokens(side s) const { return plan_->own_tokens(s); }
  [[nodiscard]] block_reader reader(const block& b, std::byte* memory) const {
    return {memory, plan_->batch, plan_->heads(b), plan_->tokens(b)};
  }
  [[nodiscard]] row_view<accumulator> own_rows(accumulator* rows) const {
    return batch_head_sequence(rows, plan_->batch, plan_->query_heads, own_tokens(side::query));
  }
  [[nodiscard]] query_operands own_queries(const block& b) const {
    row_view<const accumulator> own_lse;
    if constexpr (lse_direct) {
      own_lse = lse;
    } else {
      own_lse = own_rows(own_lse_);
    }
    return {plan_->part_of(own_lse, b), plan_->part_of(own_rows(own_delta_), b), plan_->part_of(q, b),
            plan_->part_of(grad_out, b)};
  }
  [[nodiscard]] query_operands queries_at(const block& b, std::byte* memory) const {
    block_reader packed = reader(b, memory);
    query_operands all;
    // Tensors first, so that they begin at multiples of 16 bytes whatever the number of rows; unless these would then
    // not be aligned.
    const bool tensors_first = (plan_->head_dim + plan_->value_dim) * static_cast<std::int64_t>(sizeof(storage)) %
                                   static_cast<std::int64_t>(sizeof(accumulator)) ==
                               0;
    for (const bool tensors : {tensors_first, !tensors_first}) {
      if (tensors) {
        all.q = packed.template tensor<storage>(plan_->head_dim);
        all.grad_out = packed.template tensor<storage>(plan_->value_dim);
      } else {
        all.lse = packed.template rows<accumulator>();
        all.delta = packed.template rows<accumulator>();
      }
    }
    return all;
  }
  [[nodiscard]] tensor_view<accumulator> grad_q_at(const block& b, std::byte* memory) {
    if (memory != nullptr) return reader(b, memory).template tensor<accumulator>(plan_->head_dim);
    if constexpr (queries_direct) {
      return plan_->part_of(grad_q, b);
    } else {
      return plan_->part_of(batch_head_sequence_dim(own_grad_q_, plan_->batch, plan_->query_heads,
                                                    own_tokens(side::query), plan_->head_dim),
                            b);
    }
  }
  [[nodiscard]] key_gradients grad_kv_at(const block& b, std::byte* memory) {
    if (memory != nullptr) {
      block_reader packed = reader(b, memory);
      const auto packed_k = packed.template tensor<accumulator>(plan_->head_dim);
      return {packed_k, packed.template tensor<accumulator>(plan_->value_dim)};
    }
    if constexpr (queries_direct) {
      if (keys_direct_) {
        return {plan_->part_of(grad_k, b), plan_->part_of(grad_v, b)};
      }
    }
    const std::int64_t first = own_key_heads_before_[b.slice];
    const auto all = [&](accumulator* sums, std::int64_t dim) {
      return plan_->part_of(batch_head_sequence_dim(sums, plan_->batch, own_key_heads_, own_tokens(side::key), dim), b,
                            first, plan_->heads(b));
    };
    return {all(own_grad_k_, plan_->head_dim), all(own_grad_v_, plan_->value_dim)};
  }

  const attention_plan<Mask>* plan_;
  attention_sizes sizes_;
  kernel_plan<Kernel, Memory>* kernel_;
  std::vector<backward_queries<storage, accumulator>> queries_;
  std::vector<backward_keys<storage, accumulator>> keys_;
  // Delta, and what is kept until it is complete in the type that the kernel sums in: the log-sum-exp and gradients.
  // Null: not needed, as all but delta if that is the type that it stores and no two slices share a key head.
  accumulator* own_delta_ = nullptr;
  accumulator* own_lse_ = nullptr;
  accumulator* own_grad_q_ = nullptr;
  accumulator* own_grad_k_ = nullptr;
  accumulator* own_grad_v_ = nullptr;
  list<std::int64_t> own_key_heads_before_;  // of each slice, in own_grad_k_ and own_grad_v_
  std::int64_t own_key_heads_ = 0;
  // In this call:
  list<int> chunks_under_way_[2];    // of the own blocks of each side, in each slice
  list<int> key_slices_under_way_;   // of each chunk, where slices share key heads
  int shared_chunks_under_way_ = 0;  // then: chunks of which slices are under way
  bool keys_direct_ = false;
  pass pass_ = pass::circulate_keys;
};

}  // namespace orrery::detail
