// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "orrery/attention/output_part.hpp"
#include "orrery/attention/shape.hpp"
#include "orrery/attention/sizes.hpp"
#include "orrery/attention/tile.hpp"
#include "orrery/host/plan_memory.hpp"
#include "orrery/layout/token_positions.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery {

/// The arguments of `attention::backward` by name, as views:
///
///     attend.backward({.q = q, .k = k, .v = v, .out = out, .lse = lse, .grad_out = grad_out,
///                      .grad_q = grad_q, .grad_k = grad_k, .grad_v = grad_v});
///
/// All nine are needed: one that is left out is refused by name.
template <class Kernel>
struct backward_arguments {
  using storage = typename Kernel::storage;
  using log_sum_exp = detail::log_sum_exp_of<storage>;

  tensor_view<const storage> q{};         ///< the forward's: [batch, tokens, query_heads, head_dim]
  tensor_view<const storage> k{};         ///< the forward's: [batch, key tokens, key_heads, head_dim]
  tensor_view<const storage> v{};         ///< the forward's: [batch, key tokens, key_heads, value_dim]
  tensor_view<const storage> out{};       ///< the forward's result: [batch, tokens, query_heads, value_dim]
  row_view<const log_sum_exp> lse{};      ///< the forward's result: [batch, query_heads, tokens]
  tensor_view<const storage> grad_out{};  ///< the gradient of the loss with respect to out, as large as out
  tensor_view<storage> grad_q{};          ///< written: as large as q
  tensor_view<storage> grad_k{};          ///< written: as large as k
  tensor_view<storage> grad_v{};          ///< written: as large as v
};

}  // namespace orrery

namespace orrery::detail {

/// What an operator says of its plan.
struct plan_description {
  attention_shape shape;  ///< completed
  token_positions query_positions;
  token_positions key_positions;
};

/// What the calls of one pass run.
struct planned_pass {
  list<program> programs;  ///< the finished ones of all ranks
  std::string note;        ///< says what became of the topology's schedule
  attention_sizes sizes;
};

/// The calls of a planned attention operator, whatever its transport and mask.
template <class Kernel>
struct attention_calls {
  using storage = typename Kernel::storage;
  using log_sum_exp = log_sum_exp_of<storage>;

  attention_calls() = default;
  attention_calls(const attention_calls&) = delete;
  attention_calls& operator=(const attention_calls&) = delete;
  virtual ~attention_calls() = default;

  virtual void begin_forward(const tensor_view<storage>& out, const row_view<log_sum_exp>& lse) = 0;
  virtual void give_queries(const tensor_view<const storage>& q) = 0;
  virtual void give_keys(const tensor_view<const storage>& k) = 0;
  virtual void give_values(const tensor_view<const storage>& v) = 0;
  virtual void finish_forward(const output_listener& on_final) = 0;
  /// Leaves a forward that was begun.
  virtual void abandon_forward() = 0;
  virtual void backward(const backward_arguments<Kernel>& views, const output_listener& on_final) = 0;
  virtual void progress() = 0;
  [[nodiscard]] virtual std::int64_t workspace_bytes() const = 0;
  /// Writes the programs of a pass that the operator has.
  [[nodiscard]] virtual planned_pass planned(pass p) const = 0;
  /// Ends the plan and gives up its buffers. No call may follow.
  [[nodiscard]] virtual std::unique_ptr<any_plan_memory> release() = 0;

  /// Leaves the forward that was begun, if it is not over: the other ranks fail at once.
  void leave_forward() noexcept {
    if (forward_under_way == nullptr) return;
    end_forward();
    try {
      abandon_forward();
    } catch (...) {  // out of memory: the others have their deadline
    }
  }

  /// The forward is over: its handle and this no longer know each other.
  void end_forward() noexcept {
    *forward_under_way = nullptr;
    forward_under_way = nullptr;
  }

  /// The pointer to this in the handle of the forward that was begun and is not over. Null: there is none.
  attention_calls** forward_under_way = nullptr;
  /// A thread is in a call (see `exclusive_call`).
  std::atomic<bool> taken = false;
};

/// Takes an operator for one call of one thread.
class exclusive_call {
 public:
  /// Throws `std::logic_error` if another call is in progress. `calls` may be null.
  template <class Kernel>
  exclusive_call(attention_calls<Kernel>* calls, const char* call)
      : taken_{calls == nullptr ? nullptr : &calls->taken} {
    if (taken_ == nullptr || !taken_->exchange(true, std::memory_order_acquire)) return;
    throw std::logic_error{std::string{"orrery: attention::"} + call +
                           ": called while another call of this operator is in progress, on another thread or in "
                           "on_final; make one call at a time, or use an operator for each thread"};
  }
  exclusive_call(const exclusive_call&) = delete;
  exclusive_call& operator=(const exclusive_call&) = delete;
  ~exclusive_call() {
    if (taken_ != nullptr) taken_->store(false, std::memory_order_release);
  }

 private:
  std::atomic<bool>* taken_;
};

}  // namespace orrery::detail
