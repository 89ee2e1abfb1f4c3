// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "orrery/attention/calls.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/relation.hpp"
#include "orrery/transport/threads.hpp"

#include "support/conformance.hpp"
#include "support/oracle.hpp"

/// Attention that runs given programs, whoever wrote them, past the operator: for schedules of a part of all pairs.
namespace planned {

using programs = orrery::schedule::list<orrery::program>;

/// The layout `contiguous`, whose shards are cut into chunks of equal size.
struct contiguous_chunks {
  int of_shard = 1;

  [[nodiscard]] int chunks(int, std::int64_t) const { return of_shard; }
  [[nodiscard]] orrery::segments chunk(int rank, int chunk, int world, std::int64_t length) const {
    orrery::segments some;
    some.add(orrery::contiguous::piece(rank * of_shard + chunk, world * of_shard, length));
    return some;
  }
  [[nodiscard]] std::string name() const { return "contiguous_chunks " + std::to_string(of_shard); }
};

/// The mask whose visible pairs are all those of the chunks, under the layout `contiguous_chunks`, that a relation has.
struct shard_mask {
  orrery::schedule::relation pairs;
  std::int64_t length = 0;
  std::int64_t key_length = 0;

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const {
    return pairs(chunk_of(query, length), chunk_of(key, key_length));
  }
  [[nodiscard]] orrery::visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const {
    const int q = chunk_of(query_first, length);
    const int k = chunk_of(key_first, key_length);
    if (q != chunk_of(query_last, length) || k != chunk_of(key_last, key_length)) return orrery::visibility::some;
    return pairs(q, k) ? orrery::visibility::all : orrery::visibility::none;
  }
  [[nodiscard]] std::string name() const { return "shard_mask " + std::to_string(pairs.digest()); }

 private:
  [[nodiscard]] int chunk_of(std::int64_t position, std::int64_t tokens) const {
    int chunk = 0;
    while (chunk + 1 < pairs.blocks() && orrery::contiguous::piece(chunk + 1, pairs.blocks(), tokens).begin <= position)
      ++chunk;
    return chunk;
  }
};

/// The shards of all ranks, in chunks.
[[nodiscard]] inline orrery::schedule::list<orrery::segments> deal(const conformance::any_layout& layout, int world,
                                                                   std::int64_t length, int chunks) {
  orrery::schedule::list<orrery::segments> shards;
  const std::string wrong = orrery::detail::layout_source{layout}.deal(world, length, chunks, shards);
  if (!wrong.empty()) throw std::logic_error{"layout " + layout.name() + " " + wrong};
  return shards;
}

/// The pairs of chunks between which a mask shows any token.
template <class Mask, class Layout>
[[nodiscard]] orrery::schedule::relation relation_of(const Mask& mask, const Layout& layout, int world,
                                                     std::int64_t length, std::int64_t key_length, int chunks = 1) {
  const auto queries = deal(layout, world, length, chunks);
  const auto keys = deal(layout, world, key_length, chunks);
  orrery::schedule::relation seen{world, chunks};
  for (int q = 0; q < world * chunks; ++q) {
    for (int k = 0; k < world * chunks; ++k) {
      for (const std::int64_t query : orrery::token_positions{queries[q]}) {
        for (const std::int64_t key : orrery::token_positions{keys[k]}) {
          if (mask.visible(query, key)) seen.set(q, k);
        }
      }
    }
  }
  return seen;
}

/// The call that `conformance::rank_tensors` makes.
template <class Kernel>
class operator_of_programs {
 public:
  using storage = typename Kernel::storage;
  using log_sum_exp = typename orrery::detail::attention_calls<Kernel>::log_sum_exp;

  explicit operator_of_programs(std::unique_ptr<orrery::detail::attention_calls<Kernel>> calls)
      : calls_{std::move(calls)} {}

  struct handle {
    orrery::detail::attention_calls<Kernel>* calls;
    void queries(const orrery::tensor_view<const storage>& q) const { calls->give_queries(q); }
    void keys(const orrery::tensor_view<const storage>& k) const { calls->give_keys(k); }
    void values(const orrery::tensor_view<const storage>& v) const { calls->give_values(v); }
    void progress() const { calls->progress(); }
    void finish(const orrery::output_listener& on_final) const { calls->finish_forward(on_final); }
  };
  [[nodiscard]] handle begin_forward(const orrery::tensor_view<storage>& out,
                                     const orrery::row_view<log_sum_exp>& lse) const {
    calls_->begin_forward(out, lse);
    return {calls_.get()};
  }
  void forward(const orrery::tensor_view<const storage>& q, const orrery::tensor_view<const storage>& k,
               const orrery::tensor_view<const storage>& v, const orrery::tensor_view<storage>& out,
               const orrery::row_view<log_sum_exp>& lse, const orrery::output_listener& on_final = {}) const {
    const handle call = begin_forward(out, lse);
    call.queries(q);
    call.keys(k);
    call.values(v);
    call.finish(on_final);
  }
  void backward(const orrery::tensor_view<const storage>& q, const orrery::tensor_view<const storage>& k,
                const orrery::tensor_view<const storage>& v, const orrery::tensor_view<const storage>& out,
                const orrery::row_view<const log_sum_exp>& lse, const orrery::tensor_view<const storage>& grad_out,
                const orrery::tensor_view<storage>& grad_q, const orrery::tensor_view<storage>& grad_k,
                const orrery::tensor_view<storage>& grad_v, const orrery::output_listener& on_final = {}) {
    parts[0] = parts[1] = 0;
    calls_->backward({q, k, v, out, lse, grad_out, grad_q, grad_k, grad_v}, [&](const orrery::output_part& part) {
      parts[part.side == orrery::schedule::side::key] += part.heads;
      on_final(part);
    });
  }

  /// The heads whose gradients the last backward said to be final, of queries and of keys.
  std::int64_t parts[2] = {};

 private:
  std::unique_ptr<orrery::detail::attention_calls<Kernel>> calls_;
};

template <class Kernel>
struct attention final : conformance::any_attention<Kernel> {
  operator_of_programs<Kernel> attend;
  orrery::token_positions queries, keys;
  orrery::attention_shape shape;

  attention(std::unique_ptr<orrery::detail::attention_calls<Kernel>> calls, orrery::token_positions own_queries,
            orrery::token_positions own_keys, const orrery::attention_shape& of)
      : attend{std::move(calls)}, queries{std::move(own_queries)}, keys{std::move(own_keys)}, shape{of} {}
  void call(conformance::rank_tensors<Kernel>& tensors) override {
    tensors.forward(attend);
    backward(tensors);
  }
  void call_by_tensor(conformance::rank_tensors<Kernel>& tensors) override {
    tensors.forward_by_tensor(attend);
    backward(tensors);
  }
  void backward(conformance::rank_tensors<Kernel>& tensors) {
    tensors.backward(attend);
    if (attend.parts[0] != shape.query_heads || attend.parts[1] != *shape.key_heads)
      throw std::logic_error{"gradients of " + std::to_string(attend.parts[0]) + " query heads and " +
                             std::to_string(attend.parts[1]) + " key heads were said to be final"};
  }
  [[nodiscard]] const orrery::token_positions& query_positions() const override { return queries; }
  [[nodiscard]] const orrery::token_positions& key_positions() const override { return keys; }
};

/// Runs the finished programs of a world over threads, forward and backward, twice, and compares with the oracle. Empty
/// if all is well.
template <class Kernel, class Mask>
[[nodiscard]] std::string failures(const programs& forward, const programs& backward,
                                   const orrery::attention_shape& partial_shape, const Mask& mask,
                                   const conformance::any_layout& layout, std::uint64_t seed = 1) {
  using World = orrery::threads::world;
  const int world = forward.size();
  const orrery::attention_shape shape = partial_shape.completed();
  const auto p = oracle::random_problem<typename Kernel::storage>(conformance::oracle_shape(shape), seed);
  const auto make = [&](World& on) -> std::unique_ptr<conformance::any_attention<Kernel>> {
    orrery::detail::prepared_attention<Kernel, World, Mask> of{
        shape, {shape, on.rank(), mask, forward[0].slices}, {}, forward[on.rank()], backward[on.rank()], {}};
    of.shape.operand_messages =
        seed % 2 == 0 ? orrery::operand_messages::per_tensor : orrery::operand_messages::per_block;
    const int chunks = forward[0].chunks;
    of.plan.deal(chunks, deal(layout, world, shape.length, chunks), deal(layout, world, *shape.key_length, chunks));
    const orrery::token_positions own_queries = of.plan.own_positions(orrery::schedule::side::query);
    const orrery::token_positions own_keys = of.plan.own_positions(orrery::schedule::side::key);
    auto calls = std::make_unique<orrery::detail::planned_attention<Kernel, World, Mask>>(on, std::move(of), nullptr);
    return std::make_unique<attention<Kernel>>(std::move(calls), own_queries, own_keys, shape);
  };
  return conformance::failures_of<Kernel>([](int ranks, auto&& body) { orrery::threads::run(ranks, body); }, world,
                                          make, p, oracle::solve(p, mask), seed);
}

}  // namespace planned
