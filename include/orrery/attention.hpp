// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/kernel/mask.hpp"
#include "orrery/kernel/view.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/run/attention_backward.hpp"
#include "orrery/run/attention_forward.hpp"
#include "orrery/run/executor.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/transport/transport.hpp"
#include "orrery/verify/verify.hpp"

namespace orrery {

/// The sizes of an attention operator, for the whole sequence and all heads: what every rank must say alike.
struct attention_shape {
  std::int64_t batch = 1;
  std::int64_t length = 0;  ///< tokens of the query sequence, over all ranks
  std::int64_t query_heads = 1;
  std::int64_t key_heads = 0;             ///< a divisor of query_heads; 0: as many as query heads
  std::int64_t head_dim = 0;              ///< of queries and keys
  std::int64_t value_dim = 0;             ///< of values and outputs; 0: head_dim
  std::int64_t key_length = 0;            ///< tokens of the key sequence, over all ranks; 0: length
  double scale = 0;                       ///< of the scores; 0: 1 / sqrt(head_dim)
  pass circulate = pass::circulate_keys;  ///< the backward's policy
};

/// A kernel of attention: element and accumulator types, the execution context that it is called with, and the largest
/// head dimension; `forward`, `backward` and the copies and sums of a backend (see `reference`, the readable one). It
/// says by `supports<Mask>` for which masks it is right.
template <class Kernel>
concept attention_kernel = requires {
  typename Kernel::storage;
  typename Kernel::accumulator;
  typename Kernel::context;
  { Kernel::max_head_dim } -> std::convertible_to<std::int64_t>;
  { Kernel::name() } -> std::convertible_to<std::string>;
};

/// Exact attention over a sequence that is split across ranks, forward and backward.
///
///     orrery::attention<orrery::wallfacer<2>, orrery::flash<float>> attend{
///         world, {.length = 65536, .query_heads = 32, .key_heads = 8, .head_dim = 128}, orrery::causal{},
///         orrery::zigzag{}};
///     attend.forward(q, k, v, out, lse);
///     attend.backward(q, k, v, out, lse, grad_out, grad_q, grad_k, grad_v);
///
/// Tensors are this rank's shards, in the trainer's memory: its tokens are those of `query_positions()` (for k and v
/// `key_positions()`), in that order. All memory is taken at construction; calls allocate nothing. The same call gives
/// the same bits. One operator can serve all layers, one call at a time; several operators can share a world.
template <topology Topology, attention_kernel Kernel>
class attention {
 public:
  using storage = typename Kernel::storage;
  using accumulator = typename Kernel::accumulator;

  /// Collective: all ranks construct it, with the same arguments. Proves the schedule for this world, forward and
  /// backward, and compares what the ranks say.
  ///
  /// Throws `std::invalid_argument`, on every rank, if the shape or the world does not suit, if the topology cuts the
  /// heads into more slices than there are query heads, if the schedule is wrong, or if ranks disagree.
  template <transport World, mask Mask = full, layout Layout = contiguous>
  attention(World& world, const attention_shape& shape, const Mask& mask = {}, const Layout& layout = {},
            const Topology& topology = {}) {
    static_assert(
        Kernel::template supports<Mask>,
        "orrery: this kernel does not support this mask; orrery::flash and orrery::reference support every mask");
    const attention_shape complete = completed(shape);
    std::string error = what_is_wrong(complete, topology, world.size());
    if (error.empty()) error = what_is_unproven(complete, topology, world.size());
    agree(world, complete, mask.name(), layout.name(), name_of(topology), error);
    shape_ = complete;
    query_positions_ = layout.shard(world.rank(), world.size(), complete.length);
    key_positions_ = layout.shard(world.rank(), world.size(), complete.key_length);
    calls_ = std::make_unique<planned_calls<World, Mask>>(world, complete, mask, layout, topology);
  }

  /// out = softmax(scale · q kᵀ, masked) v and lse = log of the softmax's denominators (natural; -infinity, with out =
  /// 0, for a query that sees no key).
  ///
  /// q: [batch, tokens, query_heads, head_dim], k: [batch, key tokens, key_heads, head_dim], v and out alike with
  /// value_dim; lse: [batch, query_heads, tokens]. Cost: 2 (head_dim + value_dim) flop for each visible pair and query
  /// head, and the topology's forward traffic. Throws `std::invalid_argument`, before anything is written or sent, for
  /// a view that does not fit, and `transport_error` if a peer fails.
  void forward(const tensor_view<const storage>& q, const tensor_view<const storage>& k,
               const tensor_view<const storage>& v, const tensor_view<storage>& out, const row_view<accumulator>& lse) {
    check("forward", "q", q, query_positions_, shape_.query_heads, shape_.head_dim);
    check("forward", "k", k, key_positions_, shape_.key_heads, shape_.head_dim);
    check("forward", "v", v, key_positions_, shape_.key_heads, shape_.value_dim);
    check("forward", "out", out, query_positions_, shape_.query_heads, shape_.value_dim);
    check("forward", "lse", lse, query_positions_, shape_.query_heads);
    calls_->forward(q, k, v, out, lse);
  }

  /// The gradients of a loss with respect to q, k and v (overwritten, not added to), from its gradient with respect to
  /// out. q, k, v are the forward's arguments, out and lse its results: nothing of the forward is computed again.
  ///
  /// Cost: 2 (3 head_dim + 2 value_dim) flop for each visible pair and query head, and the topology's backward traffic.
  /// Throws as `forward` does.
  void backward(const tensor_view<const storage>& q, const tensor_view<const storage>& k,
                const tensor_view<const storage>& v, const tensor_view<const storage>& out,
                const row_view<const accumulator>& lse, const tensor_view<const storage>& grad_out,
                const tensor_view<storage>& grad_q, const tensor_view<storage>& grad_k,
                const tensor_view<storage>& grad_v) {
    check("backward", "q", q, query_positions_, shape_.query_heads, shape_.head_dim);
    check("backward", "k", k, key_positions_, shape_.key_heads, shape_.head_dim);
    check("backward", "v", v, key_positions_, shape_.key_heads, shape_.value_dim);
    check("backward", "out", out, query_positions_, shape_.query_heads, shape_.value_dim);
    check("backward", "lse", lse, query_positions_, shape_.query_heads);
    check("backward", "grad_out", grad_out, query_positions_, shape_.query_heads, shape_.value_dim);
    check("backward", "grad_q", grad_q, query_positions_, shape_.query_heads, shape_.head_dim);
    check("backward", "grad_k", grad_k, key_positions_, shape_.key_heads, shape_.head_dim);
    check("backward", "grad_v", grad_v, key_positions_, shape_.key_heads, shape_.value_dim);
    calls_->backward(q, k, v, out, lse, grad_out, grad_q, grad_k, grad_v);
  }

  /// The global positions of this rank's queries, and outputs, in their local order.
  [[nodiscard]] const segments& query_positions() const noexcept { return query_positions_; }
  /// The global positions of this rank's keys and values, in their local order.
  [[nodiscard]] const segments& key_positions() const noexcept { return key_positions_; }
  /// The shape, with all defaults filled in.
  [[nodiscard]] const attention_shape& shape() const noexcept { return shape_; }
  /// Bytes of the plan's buffers on this rank, forward and backward: block slots and packed own operands.
  [[nodiscard]] std::int64_t workspace_bytes() const noexcept { return calls_->workspace_bytes(); }

 private:
  struct calls {
    virtual ~calls() = default;
    virtual void forward(const tensor_view<const storage>& q, const tensor_view<const storage>& k,
                         const tensor_view<const storage>& v, const tensor_view<storage>& out,
                         const row_view<accumulator>& lse) = 0;
    virtual void backward(const tensor_view<const storage>& q, const tensor_view<const storage>& k,
                          const tensor_view<const storage>& v, const tensor_view<const storage>& out,
                          const row_view<const accumulator>& lse, const tensor_view<const storage>& grad_out,
                          const tensor_view<storage>& grad_q, const tensor_view<storage>& grad_k,
                          const tensor_view<storage>& grad_v) = 0;
    [[nodiscard]] virtual std::int64_t workspace_bytes() const = 0;
  };

  template <class World, class Mask>
  struct planned_calls final : calls {
    using memory = typename World::memory;

    attention_plan<Mask> plan;
    program forward_program, backward_program;
    attention_forward<Kernel, Mask, memory> forward_work;
    attention_backward<Kernel, Mask, memory> backward_work;
    executor<World, attention_forward<Kernel, Mask, memory>> forward_run;
    executor<World, attention_backward<Kernel, Mask, memory>> backward_run;

    template <class Layout>
    planned_calls(World& world, const attention_shape& shape, const Mask& mask, const Layout& layout,
                  const Topology& topology)
        : plan{plan_of(world, shape, mask, layout, topology)},
          forward_program{program_of(topology, world.rank(), world.size(), pass::forward)},
          backward_program{program_of(topology, world.rank(), world.size(), shape.circulate)},
          forward_work{plan, forward_program},
          backward_work{plan, backward_program},
          forward_run{world, forward_program, forward_work},
          backward_run{world, backward_program, backward_work} {}

    void forward(const tensor_view<const storage>& q, const tensor_view<const storage>& k,
                 const tensor_view<const storage>& v, const tensor_view<storage>& out,
                 const row_view<accumulator>& lse) override {
      forward_work.q = q;
      forward_work.k = k;
      forward_work.v = v;
      forward_work.out = out;
      forward_work.lse = lse;
      forward_run.run();
    }

    void backward(const tensor_view<const storage>& q, const tensor_view<const storage>& k,
                  const tensor_view<const storage>& v, const tensor_view<const storage>& out,
                  const row_view<const accumulator>& lse, const tensor_view<const storage>& grad_out,
                  const tensor_view<storage>& grad_q, const tensor_view<storage>& grad_k,
                  const tensor_view<storage>& grad_v) override {
      backward_work.q = q;
      backward_work.k = k;
      backward_work.v = v;
      backward_work.out = out;
      backward_work.lse = lse;
      backward_work.grad_out = grad_out;
      backward_work.grad_q = grad_q;
      backward_work.grad_k = grad_k;
      backward_work.grad_v = grad_v;
      backward_run.run();
    }

    [[nodiscard]] std::int64_t workspace_bytes() const override {
      return forward_run.workspace_bytes() + backward_run.workspace_bytes();
    }

    template <class Layout>
    static attention_plan<Mask> plan_of(World& world, const attention_shape& shape, const Mask& mask,
                                        const Layout& layout, const Topology& topology) {
      attention_plan<Mask> made{shape.batch,
                                shape.query_heads,
                                shape.key_heads,
                                shape.head_dim,
                                shape.value_dim,
                                shape.scale,
                                world.rank(),
                                mask,
                                {},
                                {},
                                {}};
      for (int rank = 0; rank < world.size(); ++rank) {
        made.query_shards.push_back(layout.shard(rank, world.size(), shape.length));
        made.key_shards.push_back(layout.shard(rank, world.size(), shape.key_length));
      }
      const int slices = slices_of(topology, world.size());
      for (int s = 0; s < slices; ++s)
        made.slices.push_back(head_slice::of(s, slices, shape.query_heads, shape.key_heads));
      return made;
    }
  };

  [[nodiscard]] static attention_shape completed(attention_shape shape) {
    if (shape.key_heads == 0) shape.key_heads = shape.query_heads;
    if (shape.value_dim == 0) shape.value_dim = shape.head_dim;
    if (shape.key_length == 0) shape.key_length = shape.length;
    if (shape.scale == 0 && shape.head_dim > 0) shape.scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
    return shape;
  }

  /// Empty, or a sentence.
  [[nodiscard]] static std::string what_is_wrong(const attention_shape& shape, const Topology& topology, int world) {
    const auto number = [](std::int64_t n) { return std::to_string(n); };
    const std::pair<const char*, std::int64_t> sizes[] = {
        {"batch", shape.batch},          {"length", shape.length},     {"query_heads", shape.query_heads},
        {"key_heads", shape.key_heads},  {"head_dim", shape.head_dim}, {"value_dim", shape.value_dim},
        {"key_length", shape.key_length}};
    for (const auto& [name, size] : sizes) {
      if (size < 1) return std::string{name} + " is " + number(size) + ", expected at least 1";
    }
    if (shape.query_heads % shape.key_heads != 0) {
      return "key_heads is " + number(shape.key_heads) + ", expected a divisor of query_heads, " +
             number(shape.query_heads);
    }
    for (const auto& [name, dim] : {std::pair{"head_dim", shape.head_dim}, std::pair{"value_dim", shape.value_dim}}) {
      if (dim > Kernel::max_head_dim) {
        return std::string{name} + " is " + number(dim) + ", but kernel " + Kernel::name() + " goes up to " +
               number(Kernel::max_head_dim) + "; orrery::reference has no limit";
      }
    }
    if (!std::isfinite(shape.scale)) return "scale is " + std::to_string(shape.scale) + ", expected a finite number";
    if (shape.circulate != pass::circulate_keys && shape.circulate != pass::circulate_queries) {
      return "circulate is pass::forward, expected pass::circulate_keys or pass::circulate_queries";
    }
    for (const pass p : {pass::forward, shape.circulate}) {
      if (const char* reason = refuses(topology, world, p)) {
        return "topology " + name_of(topology) + " over " + number(world) + " ranks " + reason;
      }
    }
    const int slices = slices_of(topology, world);
    if (slices > shape.query_heads) {
      int hybrid = 1;
      for (int u = 2; u <= world; ++u) {
        if (world % u == 0 && u <= shape.query_heads) hybrid = u;
      }
      return "topology " + name_of(topology) + " cuts the heads into " + number(slices) +
             " slices, but query_heads is " + number(shape.query_heads) + "; " +
             (hybrid > 1 ? "usp<" + number(hybrid) + "> works here: all-to-all over " + number(hybrid) +
                               " ranks, a ring across"
                         : std::string{"ring and concentric do not cut heads"});
    }
    return "";
  }

  [[nodiscard]] static std::string what_is_unproven(const attention_shape& shape, const Topology& topology, int world) {
    for (const pass p : {pass::forward, shape.circulate}) {
      const verdict v = verify(topology, world, p);
      if (!v.ok()) {
        return "the schedule of topology " + name_of(topology) + " (" + name_of(p) + ") is wrong for " +
               std::to_string(world) + " ranks: " + v.sentence();
      }
    }
    return "";
  }

  template <class World>
  static void agree(World& world, const attention_shape& shape, const std::string& mask, const std::string& layout,
                    const std::string& topology, const std::string& error) {
    const auto number = [](std::int64_t n) { return std::to_string(n); };
    char scale[32];
    std::snprintf(scale, sizeof scale, "%.17g", shape.scale);
    const agreement fields[] = {{"error", error},
                                {"topology", topology},
                                {"kernel", Kernel::name()},
                                {"mask", mask},
                                {"layout", layout},
                                {"batch", number(shape.batch)},
                                {"length", number(shape.length)},
                                {"query_heads", number(shape.query_heads)},
                                {"key_heads", number(shape.key_heads)},
                                {"head_dim", number(shape.head_dim)},
                                {"value_dim", number(shape.value_dim)},
                                {"key_length", number(shape.key_length)},
                                {"scale", scale},
                                {"circulate", name_of(shape.circulate)}};
    require_agreement(world, fields);
  }

  [[noreturn]] static void refuse(const char* call, const char* name, const std::string& why) {
    throw std::invalid_argument{std::string{"orrery: attention::"} + call + ": " + name + " " + why};
  }

  template <class View>
  static void check_memory(const char* call, const char* name, const View& view) {
    if (view.size() == 0) return;
    if (view.data == nullptr) refuse(call, name, "is null");
    if (reinterpret_cast<std::uintptr_t>(view.data) % alignof(typename View::element) != 0) {
      refuse(call, name,
             "is not aligned to its elements of " + std::to_string(alignof(typename View::element)) + " bytes");
    }
  }

  static void check_size(const char* call, const char* name, const char* what, std::int64_t is, std::int64_t expected) {
    if (is != expected) {
      refuse(call, name,
             "has " + std::string{what} + " " + std::to_string(is) + ", expected " + std::to_string(expected));
    }
  }

  template <class T>
  void check(const char* call, const char* name, const tensor_view<T>& view, const segments& tokens, std::int64_t heads,
             std::int64_t dim) const {
    check_size(call, name, "batch", view.batch, shape_.batch);
    check_size(call, name, "sequence (this rank's tokens)", view.sequence, tokens.tokens());
    check_size(call, name, "heads", view.heads, heads);
    check_size(call, name, "dim", view.dim, dim);
    check_memory(call, name, view);
  }
  template <class T>
  void check(const char* call, const char* name, const row_view<T>& view, const segments& tokens,
             std::int64_t heads) const {
    check_size(call, name, "batch", view.batch, shape_.batch);
    check_size(call, name, "heads", view.heads, heads);
    check_size(call, name, "sequence (this rank's tokens)", view.sequence, tokens.tokens());
    check_memory(call, name, view);
  }

  attention_shape shape_;
  segments query_positions_;
  segments key_positions_;
  std::unique_ptr<calls> calls_;
};

}  // namespace orrery
