// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "orrery/attention/backward.hpp"
#include "orrery/attention/calls.hpp"
#include "orrery/attention/forward.hpp"
#include "orrery/attention/kernel_plan.hpp"
#include "orrery/attention/output_part.hpp"
#include "orrery/attention/plan.hpp"
#include "orrery/attention/planned_mask.hpp"
#include "orrery/attention/prepare.hpp"
#include "orrery/attention/tile.hpp"
#include "orrery/host/plan_memory.hpp"
#include "orrery/run/executor.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/split_by_tensor.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// The executors of a prepared operator and what they run.
template <class Kernel, class World, class Mask>
struct attention_executors {
  using memory = typename World::memory;
  using mask_of_plan = planned_mask<Mask, memory>;
  using forward_work = attention_forward<Kernel, mask_of_plan, memory>;
  using backward_work = attention_backward<Kernel, mask_of_plan, memory>;

  attention_plan<mask_of_plan> plan;
  kernel_plan<Kernel, memory> kernel;
  forward_work forward;
  std::optional<backward_work> backward;  ///< none: forward_only
  executor<World, forward_work> run_forward;
  std::optional<executor<World, backward_work>> run_backward;

  /// Collective. The programs must be proven (see `verify`) and finished.
  attention_executors(World& world, prepared_attention<Kernel, World, Mask> of, plan_memory<memory>& buffers)
      : plan{std::move(of.plan)},
        kernel{std::move(of.kernel)},
        forward{plan, of.forward, kernel, buffers},
        backward{of.backward ? std::optional<backward_work>{std::in_place, plan, *of.backward, kernel, buffers}
                             : std::optional<backward_work>{}},
        run_forward{world,
                    of.shape.operand_messages == operand_messages::per_tensor
                        ? split_by_tensor(of.forward, forward_work::operands)
                        : std::move(of.forward),
                    forward, buffers} {
    if (backward) run_backward.emplace(world, *of.backward, *backward, buffers);
  }
};

/// The calls of an operator for one transport and mask: compiled once for them, whatever the topology and the layout.
template <class Kernel, class World, class Mask>
class planned_attention final : public attention_calls<Kernel> {
 public:
  using storage = typename Kernel::storage;
  using log_sum_exp = log_sum_exp_of<storage>;

  /// Collective. Takes the buffers of the plan before, if there was one and they are of this transport's memory.
  planned_attention(World& world, prepared_attention<Kernel, World, Mask> of, std::unique_ptr<any_plan_memory> kept)
      : buffers_{plan_memory<memory>::reuse(std::move(kept))},
        schedules_{std::move(of.schedules)},
        sizes_{of.plan.template sizes<Kernel>(pass::forward)} {
    now_.emplace(world, std::move(of), *buffers_);
  }
  ~planned_attention() override { this->leave_forward(); }

  void begin_forward(const tensor_view<storage>& out, const row_view<log_sum_exp>& lse) override {
    now_->forward.out = out;
    now_->forward.lse = lse;
    now_->run_forward.begin();
  }
  void give_queries(const tensor_view<const storage>& q) override {
    now_->forward.q = q;
    now_->run_forward.give(0);
  }
  void give_keys(const tensor_view<const storage>& k) override {
    now_->forward.k = k;
    now_->run_forward.give(1);
  }
  void give_values(const tensor_view<const storage>& v) override {
    now_->forward.v = v;
    now_->run_forward.give(2);
  }
  void finish_forward(const output_listener& on_final) override {
    now_->forward.on_final = on_final;
    now_->run_forward.finish();
  }
  void abandon_forward() override { now_->run_forward.abandon(": its forward was begun, but not finished"); }

  void backward(const backward_arguments<Kernel>& views, const output_listener& on_final) override {
    auto& work = *now_->backward;
    work.q = views.q;
    work.k = views.k;
    work.v = views.v;
    work.out = views.out;
    work.lse = views.lse;
    work.grad_out = views.grad_out;
    work.grad_q = views.grad_q;
    work.grad_k = views.grad_k;
    work.grad_v = views.grad_v;
    work.on_final = on_final;
    now_->run_backward->run();
  }

  void progress() override { now_->run_forward.progress(); }

  [[nodiscard]] std::int64_t workspace_bytes() const override {
    return buffers_->bytes() + now_->kernel.bytes() + bytes_of_mask(now_->plan.mask);
  }

  [[nodiscard]] planned_pass planned(pass p) const override {
    const operator_schedule& of = schedules_.of(p);
    return {of.of_all(), of.note(), sizes_};
  }

  [[nodiscard]] std::unique_ptr<any_plan_memory> release() override {
    this->leave_forward();
    now_.reset();
    return std::move(buffers_);
  }

 private:
  using memory = typename World::memory;

  std::unique_ptr<plan_memory<memory>> buffers_;
  attention_schedules schedules_;
  attention_sizes sizes_;
  std::optional<attention_executors<Kernel, World, Mask>> now_;  // none: released
};

/// Makes the plans of an operator for one transport and mask, whatever its topology and layout: with all that they run,
/// by far the most of what a compiler makes of an operator. A class, so that it can be compiled once and not in every
/// source file that uses it (see compiled.hpp).
template <class Kernel, class World, class Mask>
struct attention_planner {
  using calls = std::unique_ptr<attention_calls<Kernel>>;

  /// Collective. Plans `now`, after which the plan before it, if there was one, is `old` and has given its buffers to
  /// the new one. Throws as the constructor of `attention` does: `now` is as it was then, or null and its plan lost.
  static plan_description plan(World& world, const attention_shape& shape, const Mask& mask,
                               const layout_source& layout, const any_topology& topology, calls& now, calls& old);
};

template <class Kernel, class World, class Mask>
plan_description attention_planner<Kernel, World, Mask>::plan(World& world, const attention_shape& shape,
                                                              const Mask& mask, const layout_source& layout,
                                                              const any_topology& topology, calls& now, calls& old) {
  auto next = prepare_attention<Kernel>(world, shape, mask, layout, topology);
  plan_description made = next.description();
  std::unique_ptr<any_plan_memory> buffers;
  if (now != nullptr) {
    old = std::move(now);
    buffers = old->release();
  }
  now = std::make_unique<planned_attention<Kernel, World, Mask>>(world, std::move(next), std::move(buffers));
  return made;
}

}  // namespace orrery::detail
