// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "orrery/attention/plan.hpp"
#include "orrery/attention/planned_kernel.hpp"
#include "orrery/attention/tile.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What an operator calls instead of its kernel. Forwards to the kernel's own functions, if the kernel needs no plan.
template <class Kernel, class Memory>
class kernel_plan {
 public:
  template <class Mask>
  void expect(const attention_plan<Mask>&, const program&) const noexcept {}
  void take_memory() const noexcept {}
  void begin() const noexcept {}
  [[nodiscard]] std::int64_t bytes() const noexcept { return 0; }
  static constexpr bool knows_whole = false;
  [[nodiscard]] static constexpr bool is_whole(pass) noexcept { return false; }

  template <class... Arguments>
  void forward(const Arguments&... arguments) const {
    Kernel::forward(arguments...);
  }
  template <class... Arguments>
  void backward(const Arguments&... arguments) const {
    Kernel::backward(arguments...);
  }
};

/// Forwards to `Kernel::planned`, if the kernel has a plan.
template <class Kernel, class Memory>
  requires planned_kernel<Kernel, Memory>
class kernel_plan<Kernel, Memory> {
 public:
  using storage = typename Kernel::storage;
  using accumulator = typename Kernel::accumulator;

  /// True if the kernel can write results itself where a call is whole (see `whole_forward`).
  static constexpr bool knows_whole =
      requires(typename Kernel::template planned<Memory> & made, const whole_forward<storage>& forward,
               const whole_backward<storage>& backward, const head_map& heads, accumulator scale) {
    { made.expect_whole(forward, heads, scale, full{}) } -> std::same_as<bool>;
    { made.expect_whole(backward, heads, scale, full{}) } -> std::same_as<bool>;
  };

  /// Tells the kernel the tiles of this program.
  template <class Mask>
  void expect(const attention_plan<Mask>& plan, const program& p) {
    if (made_ == nullptr) made_ = std::make_unique<planned>();
    const auto scale = static_cast<accumulator>(plan.scale);
    if constexpr (knows_whole) {
      if (expects_whole(plan, p, scale)) return;
    }
    for (const step& now : p.steps) {
      if (now.tile.empty()) continue;
      const head_map heads = plan.map_of(p.queries_of(now.tile)[0].block);
      if (p.pass == pass::forward) {
        std::vector<forward_queries<storage, accumulator>> queries;
        std::vector<forward_keys<storage>> keys;
        each(plan, p.queries_of(now.tile), [&](const block& b, bool own) {
          queries.push_back({operand(plan, b, own, plan.head_dim), sum(plan, b, plan.value_dim), rows(plan, b),
                             plan.positions(b), true, own});
        });
        each(plan, p.keys_of(now.tile), [&](const block& b, bool own) {
          keys.push_back(
              {operand(plan, b, own, plan.head_dim), operand(plan, b, own, plan.value_dim), plan.positions(b), own});
        });
        made_->expect_forward(std::span<const forward_queries<storage, accumulator>>{queries},
                              std::span<const forward_keys<storage>>{keys}, heads, scale, plan.mask);
      } else {
        std::vector<backward_queries<storage, accumulator>> queries;
        std::vector<backward_keys<storage, accumulator>> keys;
        each(plan, p.queries_of(now.tile), [&](const block& b, bool own) {
          queries.push_back({operand(plan, b, own, plan.head_dim), operand(plan, b, own, plan.value_dim), rows(plan, b),
                             rows(plan, b), sum(plan, b, plan.head_dim), plan.positions(b), true, own});
        });
        each(plan, p.keys_of(now.tile), [&](const block& b, bool own) {
          keys.push_back({operand(plan, b, own, plan.head_dim), operand(plan, b, own, plan.value_dim),
                          sum(plan, b, plan.head_dim), sum(plan, b, plan.value_dim), plan.positions(b), true, own});
        });
        made_->expect_backward(std::span<const backward_queries<storage, accumulator>>{queries},
                               std::span<const backward_keys<storage, accumulator>>{keys}, heads, scale, plan.mask);
      }
    }
  }
  /// Returns true if the kernel writes the results of this pass itself.
  [[nodiscard]] bool is_whole(pass p) const noexcept { return p == pass::forward ? whole_forward_ : whole_backward_; }
  template <class... Arguments>
  void run_whole(const Arguments&... arguments) {
    made_->run_whole(arguments...);
  }
  void take_memory() { made_->take_memory(); }
  void begin() { made_->begin(); }
  [[nodiscard]] std::int64_t bytes() const { return made_->bytes(); }

  template <class... Arguments>
  void forward(const Arguments&... arguments) {
    made_->forward(arguments...);
  }
  template <class... Arguments>
  void backward(const Arguments&... arguments) {
    made_->backward(arguments...);
  }

 private:
  template <class Mask>
  [[nodiscard]] bool expects_whole(const attention_plan<Mask>& plan, const program& p, accumulator scale) {
    if (!p.exchanges.empty() || p.queries.size() != 1 || p.keys.size() != 1 || p.chunks != 1) return false;
    const block& query = p.queries[0].block;
    const block& key = p.keys[0].block;
    if (query.shard != plan.rank || key.shard != plan.rank) return false;
    const auto q = operand(plan, query, true, plan.head_dim);
    const auto k = operand(plan, key, true, plan.head_dim);
    const auto v = operand(plan, key, true, plan.value_dim);
    const auto out = operand(plan, query, true, plan.value_dim);
    const auto lse = result_rows(plan, query);
    if (p.pass == pass::forward) {
      const whole_forward<storage> call{q, k, v, result(out), lse, plan.positions(query), plan.positions(key)};
      return whole_forward_ = made_->expect_whole(call, plan.map_of(query), scale, plan.mask);
    }
    const whole_backward<storage> call{
        q, k, v, out, lse, out, result(q), result(k), result(v), plan.positions(query), plan.positions(key)};
    return whole_backward_ = made_->expect_whole(call, plan.map_of(query), scale, plan.mask);
  }
  static tensor_view<storage> result(const tensor_view<const storage>& like) {
    return {nullptr,  like.batch,        like.sequence,        like.heads,
            like.dim, like.batch_stride, like.sequence_stride, like.head_stride};
  }

  template <class Mask, class Visit>
  static void each(const attention_plan<Mask>& plan, const entries<const held_block>& blocks, const Visit& visit) {
    for (const held_block& held : blocks) visit(held.block, held.block.shard == plan.rank);
  }
  template <class Mask>
  static tensor_view<const storage> operand(const attention_plan<Mask>& plan, const block& b, bool own,
                                            std::int64_t dim) {
    const storage* const nowhere = nullptr;
    if (!own) return batch_head_sequence_dim(nowhere, plan.batch, plan.heads(b), plan.tokens(b), dim);
    const bool query = b.side == side::query;
    return plan.part_of(batch_sequence_head_dim(nowhere, plan.batch, plan.own_tokens(b.side),
                                                query ? plan.query_heads : plan.key_heads, dim),
                        b, 0, plan.heads(b));
  }
  template <class Mask>
  static tensor_view<accumulator> sum(const attention_plan<Mask>& plan, const block& b, std::int64_t dim) {
    accumulator* const nowhere = nullptr;
    return batch_head_sequence_dim(nowhere, plan.batch, plan.heads(b), plan.tokens(b), dim);
  }
  template <class Mask>
  static row_view<accumulator> rows(const attention_plan<Mask>& plan, const block& b) {
    accumulator* const nowhere = nullptr;
    return batch_head_sequence(nowhere, plan.batch, plan.heads(b), plan.tokens(b));
  }

  template <class Mask>
  static row_view<log_sum_exp_of<storage>> result_rows(const attention_plan<Mask>& plan, const block& b) {
    log_sum_exp_of<storage>* const nowhere = nullptr;
    return batch_head_sequence(nowhere, plan.batch, plan.heads(b), plan.tokens(b));
  }

  using planned = typename Kernel::template planned<Memory>;
  std::unique_ptr<planned> made_;
  bool whole_forward_ = false;
  bool whole_backward_ = false;
};

}  // namespace orrery::detail
