// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What only the flash kernel has: work items, blocks of tokens, instruction sets.
#include "orrery/kernel/flash.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"

#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace {

/// Contiguous tensors of one small attention, and calls that run its work items in some order.
struct tensors {
  static constexpr std::int64_t batch = 2, n = 900, query_heads = 4, key_heads = 2, dim = 128;
  std::vector<float> q, k, v, grad_out, out, grad_q, grad_k, grad_v, lse, delta;
  orrery::segments positions = kernel_test::piece(0, n);
  orrery::head_map heads{0, 0, query_heads / key_heads};
  orrery::causal mask{};
  orrery::detail::flash_steps<float> steps =
      orrery::detail::flash_steps_for<float>(orrery::flash<float>::instructions());
  orrery::host_context context{};
  int polls = 0, polls_of_forward = 0, polls_of_backward = 0;
  std::int64_t forward_items = 0, backward_items = 0;

  tensors() {
    context.progress = {polls, [](int& count) { ++count; }};
    const auto fill = [](std::vector<float>& to, std::int64_t count, std::uint64_t seed) {
      for (const double x : oracle::random_values(count * dim, seed)) to.push_back(static_cast<float>(x));
    };
    fill(q, batch * n * query_heads, 1);
    fill(k, batch * n * key_heads, 2);
    fill(v, batch * n * key_heads, 3);
    fill(grad_out, batch * n * query_heads, 4);
    out.resize(q.size());
    grad_q.resize(q.size());
    grad_k.resize(k.size());
    grad_v.resize(k.size());
    lse.resize(static_cast<std::size_t>(batch * n * query_heads));
    delta.resize(lse.size());
  }

  template <class T>
  static orrery::tensor_view<T> view(std::vector<T>& data, std::int64_t count) {
    return orrery::batch_sequence_head_dim(data.data(), batch, n, count, dim);
  }
  static orrery::row_view<float> rows(std::vector<float>& data) {
    return orrery::batch_head_sequence(data.data(), batch, query_heads, n);
  }

  template <class Tile>
  std::int64_t run_items(const Tile& tile, std::int64_t stride) const {
    // With a stride that has no common factor with the number of items, every item runs once, in another order.
    const std::int64_t items = tile.items();
    for (std::int64_t i = 0; i < items; ++i) tile.run(i * stride % items, context);
    return items;
  }

  /// `threads` choose the size of the forward's items.
  void run(std::int64_t forward_stride, std::int64_t backward_stride, int threads = 1) {
    const orrery::forward_queries<float, float> fq{view(q, query_heads), view(out, query_heads), rows(lse), positions};
    const orrery::forward_keys<float> fk{view(k, key_heads), view(v, key_heads), positions};
    const orrery::detail::flash_forward<float, float, orrery::causal> forward{
        std::span(&fq, 1), std::span(&fk, 1), heads, 0.1f, mask, steps, threads};
    polls = 0;
    forward_items = run_items(forward, forward_stride);
    polls_of_forward = polls;
    CHECK(forward_items >= batch * query_heads * 2);
    orrery::detail::host_backend::row_dot(context, view(out, query_heads), view(grad_out, query_heads), rows(delta));
    const orrery::backward_queries<float, float> bq{view(q, query_heads), view(grad_out, query_heads), rows(lse),
                                                    rows(delta),          view(grad_q, query_heads),   positions};
    const orrery::backward_keys<float, float> bk{view(k, key_heads), view(v, key_heads), view(grad_k, key_heads),
                                                 view(grad_v, key_heads), positions};
    const orrery::detail::flash_backward<float, float, orrery::causal> backward{
        std::span(&bq, 1), std::span(&bk, 1), heads, 0.1f, mask, steps};
    polls = 0;
    backward_items = run_items(backward, backward_stride);
    polls_of_backward = polls;
    CHECK(backward_items == batch * key_heads);
  }

  /// The backward's first item, its blocks of keys one after the other; `turn` is told of each stage.
  template <class Turn>
  void run_in_turn(int blocks, Turn& turn) {
    const orrery::backward_queries<float, float> bq{view(q, query_heads),
                                                    view(grad_out, query_heads),
                                                    rows(lse),
                                                    rows(delta),
                                                    view(grad_q, query_heads),
                                                    positions,
                                                    true};
    const orrery::backward_keys<float, float> bk{view(k, key_heads), view(v, key_heads), view(grad_k, key_heads),
                                                 view(grad_v, key_heads), positions};
    const orrery::detail::flash_backward<float, float, orrery::causal> backward{
        std::span(&bq, 1), std::span(&bk, 1), heads, 0.1f, mask, steps};
    for (int block = 0; block < blocks; ++block) backward.run_block(0, block, turn, context);
  }
};

}  // namespace

TEST_CASE("work items may run in any order: the bits are the same") {
  tensors one;
  one.run(1, 1);
  tensors other;
  other.run(11, 3);
  CHECK(one.out == other.out);
  CHECK(one.lse == other.lse);
  CHECK(one.grad_q == other.grad_q);
  CHECK(one.grad_k == other.grad_k);
  CHECK(one.grad_v == other.grad_v);
  CHECK(one.out != std::vector<float>(one.out.size()));
}

TEST_CASE("blocks of tokens cover each token once, in order, and cross no segment") {
  for (const std::int64_t length : {1, 5, 8, 64, 65, 1000}) {
    for (const std::int64_t largest : {8, 64, 96}) {
      for (const auto& positions : kernel_test::zigzag(length, 3)) {
        const orrery::detail::token_blocks blocks{positions, largest, 8};
        std::int64_t token = 0;
        for (std::int64_t i = 0; i < blocks.count(); ++i) {
          const orrery::detail::token_block block = blocks[i];
          CHECK(block.first == token);
          CHECK(block.count > 0);
          CHECK(block.count <= largest);
          CHECK(block.offset % 8 == 0);
          CHECK(block.offset + block.count <= block.piece.count);
          for (std::int64_t t = 0; t < block.count; ++t) CHECK(block.position(t) == positions.position(token + t));
          token += block.count;
        }
        CHECK(token == positions.tokens());
      }
    }
  }
}

TEST_CASE("a limit on the instruction set is kept") {
  CHECK(orrery::flash<float, orrery::instruction_set::baseline>::instructions() == orrery::instruction_set::baseline);
  CHECK(orrery::flash<float>::instructions() == orrery::widest_instruction_set());
  CHECK(orrery::flash<float>::name() == "flash<float>");
  CHECK(orrery::flash<double>::name() == "flash<double>");
}

TEST_CASE("a transport is polled between blocks, in both directions") {
  tensors t;
  t.run(1, 1);
  CHECK(t.polls_of_forward >= t.forward_items);
  CHECK(t.polls_of_backward >= t.backward_items * (tensors::query_heads / tensors::key_heads));
}

TEST_CASE("the forward has smaller items where there would be too few for the threads, and the same bits") {
  tensors one;
  one.run(1, 1);
  for (const int threads : {2, 8, 24}) {
    tensors other;
    other.run(1, 1, threads);
    CHECK(other.forward_items >= 4 * threads);
    CHECK(other.out == one.out);
    CHECK(other.lse == one.lse);
  }
  CHECK(one.forward_items < 4 * 24);
}

TEST_CASE("the backward adds to gradients of queries in its turn only, stage after stage") {
  tensors t;
  t.run(1, 1);
  t.grad_q.assign(t.grad_q.size(), 7.0f);
  struct recorder {
    const std::vector<float>& grad_q;
    mutable std::vector<float> seen = grad_q;
    mutable std::int64_t entered = 0, left = 0, all_left = 0;

    void enter(std::int64_t stage) const {
      if (stage == 0) entered = left = 0;
      CHECK(stage == entered);
      CHECK(stage == left);
      CHECK((grad_q == seen));
      ++entered;
    }
    void leave(std::int64_t stage) const {
      CHECK(stage == left);
      CHECK(entered == left + 1);
      CHECK((grad_q != seen));
      seen = grad_q;
      ++left;
      ++all_left;
    }
  } turn{t.grad_q};
  t.run_in_turn(1, turn);
  CHECK(turn.all_left > tensors::query_heads / tensors::key_heads);  // several blocks of queries for each head
  CHECK((t.grad_q == turn.seen));
}

// What a shard is a part of: zeros that are added to the rows after its last are seen by the sign of theirs. The number
// of rows is no multiple of those that are computed at once, and so large that sums are added to memory directly.
TEST_CASE("the backward touches no row after a shard's last") {
  using orrery::instruction_set;
  constexpr std::int64_t rows = 301, after = 16, keys = 40, dim = 64;
  for (const instruction_set limit : {instruction_set::baseline, instruction_set::avx2, instruction_set::avx512}) {
    const instruction_set widest = orrery::flash<float>::instructions();
    const auto steps = orrery::detail::flash_steps_for<float>(widest < limit ? widest : limit);
    const auto filled = [](std::int64_t tokens, float value) {
      return std::vector<float>(static_cast<std::size_t>(tokens * dim), value);
    };
    std::vector<float> q = filled(rows, 0.5f), grad_out = filled(rows, 0.25f), grad_q = filled(rows + after, -0.0f);
    std::vector<float> k = filled(keys, 0.5f), v = filled(keys, 1.0f), grad_k = k, grad_v = v;
    for (std::size_t i = 0; i < k.size(); i += 3) k[i] = v[i] = -1.5f;
    std::vector<float> lse(static_cast<std::size_t>(rows), 1.0f), delta(static_cast<std::size_t>(rows), 0.0f);
    const auto view = [](std::vector<float>& data, std::int64_t tokens) {
      return orrery::batch_sequence_head_dim(data.data(), 1, tokens, 1, dim);
    };
    const auto of_rows = [](std::vector<float>& data) { return orrery::batch_head_sequence(data.data(), 1, 1, rows); };
    const orrery::backward_queries<float, float> queries{view(q, rows),      view(grad_out, rows),
                                                         of_rows(lse),       of_rows(delta),
                                                         view(grad_q, rows), kernel_test::piece(0, rows)};
    const orrery::backward_keys<float, float> of_keys{view(k, keys), view(v, keys), view(grad_k, keys),
                                                      view(grad_v, keys), kernel_test::piece(0, keys)};
    const orrery::full mask;
    const orrery::head_map heads;
    const orrery::detail::flash_backward<float, float, orrery::full> backward{
        std::span(&queries, 1), std::span(&of_keys, 1), heads, 0.1f, mask, steps};
    backward.run(0, {});
    const auto end = grad_q.begin() + rows * dim;
    CHECK(std::all_of(grad_q.begin(), end, [](float x) { return x != 0; }));
    CHECK(std::all_of(end, grad_q.end(), [](float x) { return x == 0 && std::signbit(x); }));
  }
}
