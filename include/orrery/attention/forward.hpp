// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
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

/// The forward as an interaction (see `interaction`). Query operand: Q. Key operand: K, V. Query partial: the output
/// and its log-sum-exp. What belongs to the rank's own shard is read and written where the trainer has it.
template <class Kernel, class Mask, class Memory>
class attention_forward {
 public:
  using storage = typename Kernel::storage;
  using accumulator = typename Kernel::accumulator;
  using log_sum_exp = log_sum_exp_of<storage>;
  using context = typename Kernel::context;

  /// Q, K and V.
  static constexpr std::array operands = attention_sizes::forward_tensors;

  attention_forward(const attention_plan<Mask>& plan, const program& p, kernel_plan<Kernel, Memory>& own,
                    plan_memory<Memory>& memory)
      : plan_{&plan}, sizes_{plan.template sizes<Kernel>(pass::forward)}, kernel_{&own} {
    chunks_under_way_ = list<int>(plan.slices.size());
    queries_.reserve(most_blocks_in_tile(p, side::query));
    keys_.reserve(most_blocks_in_tile(p, side::key));
    if (own.is_whole(pass::forward)) return;
    if constexpr (!direct) {
      own_out_ = take_array<accumulator>(memory, plan.batch * plan.query_heads * own_tokens() * plan.value_dim);
      own_lse_ = take_array<accumulator>(memory, plan.batch * plan.query_heads * own_tokens());
    }
  }

  /// The trainer's tensors of this call.
  tensor_view<const storage> q, k, v;
  tensor_view<storage> out;
  row_view<log_sum_exp> lse;
  output_listener on_final;

  void prepare(const context&) {
    kernel_->begin();
    for (int& chunks : chunks_under_way_) chunks = plan_->chunks;
  }

  [[nodiscard]] std::int64_t operand_bytes(int tensor, const block& b) const { return sizes_.operand_bytes(tensor, b); }
  [[nodiscard]] std::int64_t partial_bytes(const block& b) const { return sizes_.partial_bytes(b); }

  void pack(const context& how, int tensor, const block& b, std::byte* to) const {
    const tensor_view<const storage>& whole = tensor == 0 ? q : tensor == 1 ? k : v;
    Kernel::copy(how, plan_->part_of(whole, b), reader(b, to).template tensor<storage>(dim_of(tensor)));
  }

  void interact(const context& how, std::span<const tile_block> queries, std::span<const tile_block> keys) {
    if constexpr (kernel_plan<Kernel, Memory>::knows_whole) {
      if (kernel_->is_whole(pass::forward)) {
        kernel_->run_whole(how,
                           whole_forward<storage>{q, k, v, out, lse, plan_->positions(queries[0].block),
                                                  plan_->positions(keys[0].block)},
                           plan_->map_of(queries[0].block), static_cast<accumulator>(plan_->scale),
                           mask_for_kernels(plan_->mask));
        return;
      }
    }
    queries_.clear();
    keys_.clear();
    for (const tile_block& one : queries) {
      const tensor_view<const storage> operand =
          one.operand == nullptr ? plan_->part_of(q, one.block)
                                 : reader(one.block, writable(one.operand)).template tensor<storage>(plan_->head_dim);
      const partial result = partial_at(one.block, one.partial);
      queries_.push_back(
          {operand, result.out, result.lse, plan_->positions(one.block), one.fresh, one.operand == nullptr});
    }
    for (const tile_block& one : keys) {
      forward_keys<storage> from{k, v, plan_->positions(one.block), one.operand == nullptr};
      if (one.operand == nullptr) {
        from.k = plan_->part_of(k, one.block);
        from.v = plan_->part_of(v, one.block);
      } else {
        block_reader packed = reader(one.block, writable(one.operand));
        from.k = packed.template tensor<storage>(plan_->head_dim);
        from.v = packed.template tensor<storage>(plan_->value_dim);
      }
      keys_.push_back(from);
    }
    kernel_->forward(how, std::span<const forward_queries<storage, accumulator>>{queries_},
                     std::span<const forward_keys<storage>>{keys_}, plan_->map_of(queries[0].block),
                     static_cast<accumulator>(plan_->scale), mask_for_kernels(plan_->mask));
  }

  void merge(const context& how, const block& b, std::byte* into, const std::byte* from, bool fresh) {
    const partial running = partial_at(b, into);
    const partial arrived = partial_at(b, writable(from));
    if (fresh) {
      Kernel::copy(how, arrived.out, running.out);
      Kernel::copy(how, arrived.lse, running.lse);
    } else {
      Kernel::merge(how, running.out, running.lse, arrived.out, arrived.lse);
    }
  }

  /// The attention of queries that see no key: out is 0, and the log-sum-exp -infinity.
  void clear(const context& how, const block& own) {
    const auto clear_result = [&]<class T>(const auto& result, const row_view<T>& sums) {
      Kernel::clear(how, result);
      Kernel::clear(how, sums, -std::numeric_limits<T>::infinity());
    };
    if (kernel_->is_whole(pass::forward)) {
      const head_slice& s = plan_->slice(own);
      clear_result(out.slice_heads(s.first_query_head, s.query_heads),
                   lse.slice_heads(s.first_query_head, s.query_heads));
    } else {
      const partial result = partial_at(own, nullptr);
      clear_result(result.out, result.lse);
    }
  }

  void finish(const context& how, const block& own) {
    const head_slice& heads = plan_->slice(own);
    if (!direct && !kernel_->is_whole(pass::forward)) {
      const partial result = partial_at(own, nullptr);
      Kernel::copy(how, result.out, plan_->part_of(out, own));
      Kernel::copy(how, result.lse, plan_->part_of(lse, own));
    }
    if (--chunks_under_way_[own.slice] == 0) on_final({side::query, heads.first_query_head, heads.query_heads});
  }

 private:
  /// True if the kernel accumulates in the trainer's own types. Then it does so in the trainer's memory.
  static constexpr bool direct = std::is_same_v<storage, accumulator> && std::is_same_v<log_sum_exp, accumulator>;

  struct partial {
    tensor_view<accumulator> out;
    row_view<accumulator> lse;
  };

  [[nodiscard]] std::int64_t dim_of(int tensor) const { return tensor == 2 ? plan_->value_dim : plan_->head_dim; }
  [[nodiscard]] std::int64_t own_tokens() const { return plan_->own_tokens(side::query); }
  [[nodiscard]] block_reader reader(const block& b, std::byte* memory) const {
    return {memory, plan_->batch, plan_->heads(b), plan_->tokens(b)};
  }
  [[nodiscard]] partial partial_at(const block& b, std::byte* memory) {
    if (memory != nullptr) {
      block_reader packed = reader(b, memory);
      const auto packed_out = packed.template tensor<accumulator>(plan_->value_dim);
      return {packed_out, packed.template rows<accumulator>()};
    }
    if constexpr (direct) {
      return {plan_->part_of(out, b), plan_->part_of(lse, b)};
    } else {
      return {
          plan_->part_of(
              batch_head_sequence_dim(own_out_, plan_->batch, plan_->query_heads, own_tokens(), plan_->value_dim), b),
          plan_->part_of(batch_head_sequence(own_lse_, plan_->batch, plan_->query_heads, own_tokens()), b)};
    }
  }

  const attention_plan<Mask>* plan_;
  attention_sizes sizes_;
  kernel_plan<Kernel, Memory>* kernel_;
  std::vector<forward_queries<storage, accumulator>> queries_;
  std::vector<forward_keys<storage>> keys_;
  list<int> chunks_under_way_;  // of the own queries in each slice, in this call
  // The results, until they are complete; null if the kernel sums in the type that it stores.
  accumulator* own_out_ = nullptr;
  accumulator* own_lse_ = nullptr;
};

}  // namespace orrery::detail
