// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/attention/calls.hpp"
#include "orrery/attention/kernel_members.hpp"
#include "orrery/attention/output_part.hpp"
#include "orrery/attention/planned_attention.hpp"
#include "orrery/attention/planned_kernel.hpp"  // IWYU pragma: export
#include "orrery/attention/prepare.hpp"
#include "orrery/attention/shape.hpp"
#include "orrery/attention/started_forward.hpp"
#include "orrery/attention/tile.hpp"
#include "orrery/host/plan_memory.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/token_positions.hpp"
#include "orrery/mask/causal.hpp"  // IWYU pragma: export
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/predict/detail/attention_traffic.hpp"
#include "orrery/predict/traffic.hpp"  // IWYU pragma: export
#include "orrery/schedule/block.hpp"
#include "orrery/tensor/view.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery {

/// A kernel of attention has
///
/// - types `storage` and `accumulator`, of elements and sums, and `context`, with which it is called;
/// - `max_head_dim`, the largest head dimension; `name()`; `supports<Mask>`, true if it is right for this mask;
/// - `forward` and `backward` of a tile, unless it is a `planned_kernel`, which needs handles or a workspace;
/// - `copy`, `add`, `clear`, `merge` and `row_dot` of a backend.
///
/// See `reference`, the readable one. A kernel that not every device can run is a `device_checked_kernel`, too.
/// An operator of a type that is no kernel does not compile, with a message for each member that is missing.
template <class Kernel>
concept attention_kernel = detail::has_types<Kernel> && detail::has_max_head_dim<Kernel> && detail::has_name<Kernel> &&
    detail::has_supports<Kernel> && detail::has_copy<Kernel> && detail::has_add<Kernel> && detail::has_clear<Kernel> &&
    detail::has_merge<Kernel> && detail::has_row_dot<Kernel> && detail::has_forward<Kernel> &&
    detail::has_backward<Kernel>;

/// Exact attention over a sequence that is split across ranks, forward and backward.
///
///     orrery::attention<orrery::wallfacer<2>, orrery::flash<float>> attend{
///         world, {.length = 65536, .query_heads = 32, .key_heads = 8, .head_dim = 128}, orrery::causal{},
///         orrery::zigzag{}};
///     attend.forward(q, k, v, out, lse);
///     attend.backward({.q = q, .k = k, .v = v, .out = out, .lse = lse, .grad_out = grad_out,
///                      .grad_q = grad_q, .grad_k = grad_k, .grad_v = grad_v});
///
/// Tensors are this rank's shards, in the trainer's memory: its tokens are those of `query_positions()` (for k and v
/// `key_positions()`), in that order. All memory is taken at construction; calls allocate nothing. The same call gives
/// the same bits. One operator can serve all layers, one call at a time: one that comes while another is in progress
/// throws `std::logic_error`. Several operators can share a world.
///
/// Operators move and are not copied. One that was moved from may be destroyed and assigned to; every other call on it
/// throws `std::logic_error`. A forward that was begun moves with its operator. Destroying or assigning to an operator
/// whose forward is begun and not finished makes that forward fail on all ranks, as destroying its handle does.
template <topology Topology, class Kernel>
class attention {
  static_assert(detail::expect_kernel<Kernel>() && attention_kernel<Kernel>);

 public:
  using storage = typename Kernel::storage;
  using accumulator = typename Kernel::accumulator;
  /// The type of lse, which depends on the element type alone, so that `reference<T>` can take the place of `flash<T>`:
  /// float for float and the 16-bit types, double for double.
  using log_sum_exp = detail::log_sum_exp_of<storage>;
  using backward_arguments = orrery::backward_arguments<Kernel>;

  /// Collective: all ranks construct it, with the same arguments. Proves the schedule for this world, forward and
  /// backward, once in a process (see `prove_once`), and compares what the ranks say: the arguments, and a digest of
  /// the programs of all ranks, so that topologies that have one name and write different programs are told apart.
  ///
  /// With `forward_only` in the shape, no backward is proven, planned or given memory: for inference.
  ///
  /// Throws `std::invalid_argument`, on every rank, if the shape or the world does not suit, if the topology cuts the
  /// heads into more slices than there are query heads, if the schedule is wrong, if the layout's shards are not a
  /// partition of the sequence (see `detail::layout_source`), if the mask's parameters do not suit the lengths or
  /// samples show that it breaks a promise (see `mask_error`), if a kernel that plans its tiles refuses one, if a
  /// rank's device cannot run the kernel, or if ranks disagree. Throws `memory_error` if there is not enough memory for
  /// the plan.
  template <transport World, mask Mask = full, layout Layout = contiguous>
  attention(World& world, const attention_shape& shape, const Mask& mask = {}, const Layout& layout = {},
            const Topology& topology = {}) {
    std::unique_ptr<detail::attention_calls<Kernel>> none;
    plan(world, shape, mask, layout, topology, none);
  }

  /// out = softmax(scale · q kᵀ, masked) v and lse = log of the softmax's denominators (natural; -infinity, with out =
  /// 0, for a query that sees no key).
  ///
  /// q: [batch, tokens, query_heads, head_dim], k: [batch, key tokens, key_heads, head_dim], v and out alike with
  /// value_dim; lse: [batch, query_heads, tokens]. Cost: 2 (head_dim + value_dim) flop for each visible pair and query
  /// head, and the topology's forward traffic. `on_final` is called with each `output_part` as soon as it is final,
  /// once for each slice into which the topology cuts the heads.
  ///
  /// Views may be slices of one tensor, such as packed Q, K and V, in any order of dimensions. Inputs may share memory
  /// with each other, and their strides may be 0 (keys of which several heads are one); outputs, out and lse, must not
  /// share memory with inputs, with each other or with themselves. Negative strides are refused.
  ///
  /// Throws `std::invalid_argument`, before anything is written or sent, for a view that does not fit or whose memory
  /// does not suit, and `transport_error` if a peer fails.
  void forward(const tensor_view<const storage>& q, const tensor_view<const storage>& k,
               const tensor_view<const storage>& v, const tensor_view<storage>& out, const row_view<log_sum_exp>& lse,
               const output_listener& on_final = {}) {
    const detail::exclusive_call here{calls_.get(), "forward"};
    expect_nothing_under_way("forward");
    detail::call_views views;
    views.writes(query_view("forward", "out", shape_.query_heads, *shape_.value_dim), out);
    views.writes(query_view("forward", "lse", shape_.query_heads, 1), lse);
    views.reads(query_view("forward", "q", shape_.query_heads, shape_.head_dim), q);
    views.reads(key_view("forward", "k", *shape_.key_heads, shape_.head_dim), k);
    views.reads(key_view("forward", "v", *shape_.key_heads, *shape_.value_dim), v);
    calls_->begin_forward(out, lse);
    calls_->give_queries(q);
    calls_->give_keys(k);
    calls_->give_values(v);
    calls_->finish_forward(on_final);
  }

  /// The same forward for a trainer that computes q, k and v one after the other: each leaves for other ranks as soon
  /// as it is given, so that most of the first gather or transposition hides behind the projections that remain; and
  /// what uses the output can begin with the heads that are final. (The early hand-over of WallFacer, arXiv
  /// 2407.00611.)
  ///
  ///     auto call = attend.begin_forward(out, lse);
  ///     project(x, w_q, q), call.queries(q);
  ///     project(x, w_k, k), call.keys(k);
  ///     project(x, w_v, v), call.values(v);
  ///     call.finish([&](const orrery::output_part& heads) { project(out, w_out, heads); });
  ///
  /// With `operand_messages::per_tensor` in the shape; with `operand_messages::per_block` it is right, too, but a block
  /// leaves when its last tensor is there. One call at a time: the operator takes the next one when `finish` has
  /// returned. Throws as `forward` does.
  [[nodiscard]] started_forward<Kernel> begin_forward(const tensor_view<storage>& out,
                                                      const row_view<log_sum_exp>& lse) {
    constexpr const char* call = "begin_forward";
    const detail::exclusive_call here{calls_.get(), call};
    expect_nothing_under_way(call);
    detail::call_views views;
    views.writes(query_view(call, "out", shape_.query_heads, *shape_.value_dim), out);
    views.writes(query_view(call, "lse", shape_.query_heads, 1), lse);
    return {*calls_,
            views,
            query_view(call, "q", shape_.query_heads, shape_.head_dim),
            key_view(call, "k", *shape_.key_heads, shape_.head_dim),
            key_view(call, "v", *shape_.key_heads, *shape_.value_dim),
            out,
            lse};
  }

  /// The gradients of a loss with respect to q, k and v (overwritten, not added to), from its gradient with respect to
  /// out. q, k, v are the forward's arguments, out and lse its results: nothing of the forward is computed again.
  ///
  ///     attend.backward({.q = q, .k = k, .v = v, .out = out, .lse = lse, .grad_out = grad_out,
  ///                      .grad_q = grad_q, .grad_k = grad_k, .grad_v = grad_v});
  ///
  /// Cost: 2 (3 head_dim + 2 value_dim) flop for each visible pair and query head, and the topology's backward traffic.
  /// `on_final` is called with each part of the gradients as soon as it is final. The same holds for memory as in
  /// `forward`: the outputs, grad_q, grad_k and grad_v, may be slices of one tensor, but must not share memory with any
  /// of the inputs (q, k, v, out, lse, grad_out), with each other or with themselves. Throws as `forward` does; a view
  /// that was left out does not fit. Throws `std::logic_error` if the operator is `forward_only`.
  void backward(const backward_arguments& given, const output_listener& on_final = {}) {
    const detail::exclusive_call here{calls_.get(), "backward"};
    expect_nothing_under_way("backward");
    if (shape_.forward_only) {
      throw std::logic_error{
          "orrery: attention::backward: this operator is forward_only, and has no backward; construct one without "
          "forward_only in its shape"};
    }
    detail::call_views views;
    views.writes(query_view("backward", "grad_q", shape_.query_heads, shape_.head_dim), given.grad_q);
    views.writes(key_view("backward", "grad_k", *shape_.key_heads, shape_.head_dim), given.grad_k);
    views.writes(key_view("backward", "grad_v", *shape_.key_heads, *shape_.value_dim), given.grad_v);
    views.reads(query_view("backward", "q", shape_.query_heads, shape_.head_dim), given.q);
    views.reads(key_view("backward", "k", *shape_.key_heads, shape_.head_dim), given.k);
    views.reads(key_view("backward", "v", *shape_.key_heads, *shape_.value_dim), given.v);
    views.reads(query_view("backward", "out", shape_.query_heads, *shape_.value_dim), given.out);
    views.reads(query_view("backward", "lse", shape_.query_heads, 1), given.lse);
    views.reads(query_view("backward", "grad_out", shape_.query_heads, *shape_.value_dim), given.grad_out);
    calls_->backward(given, on_final);
  }

  /// The same, with the views in the order of `backward_arguments`.
  void backward(const tensor_view<const storage>& q, const tensor_view<const storage>& k,
                const tensor_view<const storage>& v, const tensor_view<const storage>& out,
                const row_view<const log_sum_exp>& lse, const tensor_view<const storage>& grad_out,
                const tensor_view<storage>& grad_q, const tensor_view<storage>& grad_k,
                const tensor_view<storage>& grad_v, const output_listener& on_final = {}) {
    backward({q, k, v, out, lse, grad_out, grad_q, grad_k, grad_v}, on_final);
  }

  /// Plans the calls that follow for another mask, layout or topology, as for the next batch of packed documents. The
  /// shape stays. Buffers are taken anew only where they are too small.
  ///
  ///     for (const batch& next : batches) {
  ///       const orrery::packed_plan plan = orrery::pack(next.lengths, world.size());
  ///       attend.replan(world, orrery::documents{next.lengths} & orrery::causal{}, orrery::contiguous{},
  ///                     orrery::precomputed{"packed", plan.work});
  ///       attend.forward(q, k, v, out, lse);
  ///     }
  ///
  /// Collective: all ranks call it between their other calls, with the same arguments, in the world of construction.
  /// Costs what construction costs but for memory: a proof, unless this process has proven the same lately, and an
  /// agreement of the ranks. What was captured of earlier calls (see `device_graph`) must not be replayed.
  ///
  /// Throws `std::invalid_argument`, on every rank, for what the constructor refuses; the operator then has the plan
  /// that it had. Throws `memory_error` or `transport_error` as the constructor does; the operator may then have no
  /// plan, and its other calls throw `std::logic_error`.
  template <transport World, mask Mask, layout Layout = contiguous>
  void replan(World& world, const Mask& mask, const Layout& layout = {}, const Topology& topology = {}) {
    constexpr const char* call = "replan";
    std::unique_ptr<detail::attention_calls<Kernel>> old;  // holds what `here` releases
    const detail::exclusive_call here{calls_.get(), call};
    expect_nothing_under_way(call);
    plan(world, shape_, mask, layout, topology, old);
  }

  /// The global positions of this rank's queries, and outputs, in their local order:
  ///
  ///     for (const std::int64_t p : attend.query_positions()) ...
  ///
  /// `size()` is their number; `segments()` the same as regular pieces. See `take`, which cuts this rank's
  /// tokens out of a whole sequence. Kept by the operator: copy it to use it longer.
  [[nodiscard]] const token_positions& query_positions() const {
    expect_not_moved_from("query_positions");
    return query_positions_;
  }
  /// The global positions of this rank's keys and values, in their local order.
  [[nodiscard]] const token_positions& key_positions() const {
    expect_not_moved_from("key_positions");
    return key_positions_;
  }
  /// The shape, with all defaults filled in.
  [[nodiscard]] const attention_shape& shape() const {
    expect_not_moved_from("shape");
    return shape_;
  }
  /// Bytes of all the plan's buffers on this rank, forward and backward, taken when it was made: for each pass
  /// `traffic`'s slots times the size of a block (rounded up to 64 bytes), and one packed copy of each own block that
  /// the rank sends as an operand; delta (one number for each query and head) and, where the kernel sums in another
  /// type than it stores, the results under way, unless the kernel writes them itself; what the kernel needs, where it
  /// is a `planned_kernel`; and the table of a mask that a kernel of a device reads. Without what only a backward
  /// needs, delta among it, if the operator is `forward_only`.
  [[nodiscard]] std::int64_t workspace_bytes() const {
    expect_not_moved_from("workspace_bytes");
    return calls_->workspace_bytes();
  }
  /// What a call moves, in bytes, for every rank: what `counted` counts, sent and received, and what nodes send and
  /// receive. `p` is the forward or the shape's `circulate`.
  ///
  ///     attend.traffic().node_egress(8);                          // of a forward
  ///     attend.traffic(attend.shape().circulate).ranks[rank].received;  // of a backward
  ///
  /// Its `schedule` says whether the topology's schedule was pruned for the mask and the layout, or why not.
  ///
  /// Not collective. Writes the programs of all ranks in every call: costs what they cost, and world² numbers. Throws
  /// `std::invalid_argument` for a pass that this operator does not have.
  [[nodiscard]] operator_traffic traffic(schedule::pass p = schedule::pass::forward) const {
    expect_not_moved_from("traffic");
    detail::require_pass(shape_, p);
    return detail::attention_traffic(shape_, calls_->planned(p), p);
  }

 private:
  /// Collective. The plan before this one, if there is one, moves to `old` and gives its buffers to the new one.
  template <class World, class Mask, class Layout>
  void plan(World& world, const attention_shape& shape, const Mask& mask, const Layout& layout,
            const Topology& topology, std::unique_ptr<detail::attention_calls<Kernel>>& old) try {
    static_assert(
        Kernel::template supports<Mask>,
        "orrery: this kernel does not support this mask; orrery::flash and orrery::reference support every mask, and "
        "kernels on a device those that are trivially copyable or have a table (see orrery::mask_with_table)");
    detail::plan_description made = detail::attention_planner<Kernel, World, Mask>::plan(
        world, shape, mask, detail::layout_source{layout}, any_topology{topology}, calls_, old);
    lost_plan_ = false;
    shape_ = made.shape;
    query_positions_ = std::move(made.query_positions);
    key_positions_ = std::move(made.key_positions);
  } catch (...) {  // an exception of this rank alone, as for want of memory
    give_up_on_exception(world, "while it constructed an operator");
    lost_plan_ = lost_plan_ || (calls_ == nullptr && old != nullptr);
    throw;
  }

  void expect_not_moved_from(const char* call) const {
    if (calls_ != nullptr) return;
    if (lost_plan_) {
      throw std::logic_error{std::string{"orrery: attention::"} + call +
                             ": this operator has no plan, since replan failed; construct another one"};
    }
    throw std::logic_error{
        std::string{"orrery: attention::"} + call +
        ": this operator was moved from, and has nothing left to call; use the one that it was moved to"};
  }

  void expect_nothing_under_way(const char* call) const {
    expect_not_moved_from(call);
    if (!calls_->forward_under_way) return;
    throw std::logic_error{
        std::string{"orrery: attention::"} + call +
        ": a forward was begun on this operator and is not finished; finish it first, or use another "
        "operator"};
  }

  [[nodiscard]] detail::expected_view query_view(const char* call, const char* name, std::int64_t heads,
                                                 std::int64_t dim) const {
    return {call, name, shape_.batch, query_positions_.size(), heads, dim};
  }
  [[nodiscard]] detail::expected_view key_view(const char* call, const char* name, std::int64_t heads,
                                               std::int64_t dim) const {
    return {call, name, shape_.batch, key_positions_.size(), heads, dim};
  }

  attention_shape shape_;
  token_positions query_positions_;
  token_positions key_positions_;
  std::unique_ptr<detail::attention_calls<Kernel>> calls_;  // none: moved from, or the plan is lost
  bool lost_plan_ = false;                                  // replan failed when the old plan was gone
};

}  // namespace orrery
