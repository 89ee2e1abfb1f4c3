// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <atomic>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/attention/backward.hpp"
#include "orrery/attention/forward.hpp"
#include "orrery/attention/kernel_plan.hpp"
#include "orrery/attention/output_part.hpp"
#include "orrery/attention/plan.hpp"
#include "orrery/attention/tile.hpp"
#include "orrery/run/executor.hpp"
#include "orrery/schedule/detail/split_by_tensor.hpp"
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

/// The same for one transport and mask: compiled once for them, whatever the topology and the layout.
template <class Kernel, class World, class Mask>
class planned_attention final : public attention_calls<Kernel> {
 public:
  using storage = typename Kernel::storage;
  using log_sum_exp = log_sum_exp_of<storage>;
  using memory = typename World::memory;

  /// Collective. The programs must be proven (see `verify`) and finished. Without a backward program there is no
  /// backward to call.
  planned_attention(World& world, attention_plan<Mask> plan, kernel_plan<Kernel, memory> own, program forward_program,
                    const std::optional<program>& backward_program, operand_messages how)
      : plan_{std::move(plan)},
        kernel_{std::move(own)},
        forward_{plan_, forward_program, kernel_},
        backward_{backward_program ? std::optional<backward_work>{std::in_place, plan_, *backward_program, kernel_}
                                   : std::optional<backward_work>{}},
        run_forward_{world,
                     how == operand_messages::per_tensor
                         ? split_by_tensor(forward_program, decltype(forward_)::operands)
                         : std::move(forward_program),
                     forward_} {
    if (backward_) run_backward_.emplace(world, *backward_program, *backward_);
  }
  ~planned_attention() override { this->leave_forward(); }

  void begin_forward(const tensor_view<storage>& out, const row_view<log_sum_exp>& lse) override {
    forward_.out = out;
    forward_.lse = lse;
    run_forward_.begin();
  }
  void give_queries(const tensor_view<const storage>& q) override {
    forward_.q = q;
    run_forward_.give(0);
  }
  void give_keys(const tensor_view<const storage>& k) override {
    forward_.k = k;
    run_forward_.give(1);
  }
  void give_values(const tensor_view<const storage>& v) override {
    forward_.v = v;
    run_forward_.give(2);
  }
  void finish_forward(const output_listener& on_final) override {
    forward_.on_final = on_final;
    run_forward_.finish();
  }
  void abandon_forward() override { run_forward_.abandon(": its forward was begun, but not finished"); }

  void backward(const backward_arguments<Kernel>& views, const output_listener& on_final) override {
    backward_->q = views.q;
    backward_->k = views.k;
    backward_->v = views.v;
    backward_->out = views.out;
    backward_->lse = views.lse;
    backward_->grad_out = views.grad_out;
    backward_->grad_q = views.grad_q;
    backward_->grad_k = views.grad_k;
    backward_->grad_v = views.grad_v;
    backward_->on_final = on_final;
    run_backward_->run();
  }

  void progress() override { run_forward_.progress(); }

  [[nodiscard]] std::int64_t workspace_bytes() const override {
    const std::int64_t forward = run_forward_.workspace_bytes() + forward_.own_bytes() + kernel_.bytes();
    return backward_ ? forward + run_backward_->workspace_bytes() + backward_->own_bytes() : forward;
  }

 private:
  using backward_work = attention_backward<Kernel, Mask, memory>;
  using backward_executor = executor<World, backward_work>;

  attention_plan<Mask> plan_;
  kernel_plan<Kernel, memory> kernel_;
  attention_forward<Kernel, Mask, memory> forward_;
  std::optional<backward_work> backward_;  // none: forward_only
  executor<World, attention_forward<Kernel, Mask, memory>> run_forward_;
  std::optional<backward_executor> run_backward_;
};

}  // namespace orrery::detail
