// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What only the flash kernel has: work items, blocks of tokens, instruction sets.
#include "orrery/kernel/flash.hpp"

#include <cstdint>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include "kernel/problem.hpp"
#include "oracle.hpp"

namespace {

/// Contiguous tensors of one small attention, and calls that run its work items in some order.
struct tensors {
  static constexpr std::int64_t batch = 2, n = 600, query_heads = 4, key_heads = 2, dim = 128;
  std::vector<float> q, k, v, grad_out, out, grad_q, grad_k, grad_v, lse, delta;
  orrery::segments positions = kernel_test::piece(0, n);
  orrery::head_map heads{0, 0, query_heads / key_heads};
  orrery::causal mask{};
  orrery::flash_steps<float> steps = orrery::flash_steps_for<float>(orrery::flash<float>::instructions());
  orrery::host_context context{};

  tensors() {
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

  void run(std::int64_t forward_stride, std::int64_t backward_stride) {
    const orrery::forward_queries<float, float> fq{view(q, query_heads), view(out, query_heads), rows(lse), positions};
    const orrery::forward_keys<float> fk{view(k, key_heads), view(v, key_heads), positions};
    const orrery::flash_forward<float, float, orrery::causal> forward{
        std::span(&fq, 1), std::span(&fk, 1), heads, 0.1f, mask, steps};
    CHECK(run_items(forward, forward_stride) >= batch * query_heads * 2);
    orrery::host_backend::row_dot(context, view(out, query_heads), view(grad_out, query_heads), rows(delta));
    const orrery::backward_queries<float, float> bq{view(q, query_heads), view(grad_out, query_heads), rows(lse),
                                                    rows(delta),          view(grad_q, query_heads),   positions};
    const orrery::backward_keys<float, float> bk{view(k, key_heads), view(v, key_heads), view(grad_k, key_heads),
                                                 view(grad_v, key_heads), positions};
    const orrery::flash_backward<float, float, orrery::causal> backward{
        std::span(&bq, 1), std::span(&bk, 1), heads, 0.1f, mask, steps};
    CHECK(run_items(backward, backward_stride) == batch * key_heads);
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
        const orrery::token_blocks blocks{positions, largest, 8};
        std::int64_t token = 0;
        for (std::int64_t i = 0; i < blocks.count(); ++i) {
          const orrery::token_block block = blocks[i];
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

TEST_CASE("a transport is polled between blocks") {
  int polls = 0;
  tensors t;
  t.context.progress = [](void* count) { ++*static_cast<int*>(count); };
  t.context.progress_argument = &polls;
  t.run(1, 1);
  CHECK(polls > 16);
}
