// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory_resource>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/tile.hpp"
#include "orrery/kernel/view.hpp"

#include "cuda/masks.hpp"
#include "kernel/problem.hpp"
#include "oracle.hpp"

/// What the tests of `device_flash`'s kernels have in common.
namespace cuda_test {

/// In memory that the kernel can read.
template <class T>
std::pmr::vector<T> vector_of(std::size_t count, T value) {
  return std::pmr::vector<T>(count, value, kernel_test::home.memory);
}
inline std::pmr::vector<std::int64_t> boundaries_at(std::initializer_list<std::int64_t> positions) {
  return std::pmr::vector<std::int64_t>(positions, kernel_test::home.memory);
}

/// Masks of every kind; of the causal ones one with this offset, and one under which the first queries see nothing.
inline std::vector<any_mask> every_mask(std::int64_t offset, const std::pmr::vector<std::int64_t>& boundaries) {
  using kind = any_mask::kind;
  return {{},
          {kind::causal, false, {offset}},
          {kind::causal, false, {-30}},
          {kind::band, false, {}, {17}},
          {kind::holes},
          {kind::packed, false, {}, {}, {boundaries.data(), static_cast<int>(boundaries.size()) - 1}}};
}

/// Shards of two pieces each.
inline kernel_test::plan cut(const oracle::shape& shape, int queries, int keys) {
  kernel_test::plan how;
  how.queries = kernel_test::zigzag(shape.queries, queries);
  how.keys = kernel_test::zigzag(shape.keys, keys);
  return how;
}

/// The backward of slices of heads, of which two share a key head, against the oracle's of all heads.
template <class Kernel>
void check_slices_of_heads(double tolerance) {
  using S = typename Kernel::storage;
  // Query heads 1 to 4 of a model with 6 query and 2 key heads: key head 0 is read by two of them, key head 1 by two.
  constexpr std::int64_t n = 20, dim = 8;
  const oracle::shape whole{1, n, n, 6, 2, dim, dim, 0.4};
  const auto p = oracle::random_problem<S>(whole, 6);
  const auto expected = oracle::solve(p, [&](std::int64_t, std::int64_t) { return true; });
  const auto narrow = [](const std::vector<double>& from) {
    auto to = vector_of(from.size(), S{0});
    std::transform(from.begin(), from.end(), to.begin(), [](double value) { return S{value}; });
    return to;
  };
  const auto q = narrow(p.q), k = narrow(p.k), v = narrow(p.v), grad_out = narrow(p.grad_out);
  auto lse = vector_of(6 * n, 0.0f), delta = lse, grad_q = vector_of(6 * n * dim, 0.0f);
  auto grad_k = vector_of(2 * n * dim, 0.0f), grad_v = grad_k;
  for (std::size_t i = 0; i < lse.size(); ++i) {
    lse[i] = static_cast<float>(expected.lse[i]);
    delta[i] = static_cast<float>(expected.delta[i]);
  }
  const auto view = [&](auto& data, std::int64_t count) {
    return orrery::batch_sequence_head_dim(data.data(), 1, n, count, dim);
  };
  const auto rows = [&](auto& data) { return orrery::batch_head_sequence(data.data(), 1, 6, n).slice_heads(1, 4); };
  const orrery::segments positions = kernel_test::piece(0, n);
  const orrery::backward_queries<S, float> queries{view(q, 6).slice_heads(1, 4),
                                                   view(grad_out, 6).slice_heads(1, 4),
                                                   rows(lse),
                                                   rows(delta),
                                                   view(grad_q, 6).slice_heads(1, 4),
                                                   positions,
                                                   true};
  const orrery::backward_keys<S, float> keys{view(k, 2), view(v, 2), view(grad_k, 2), view(grad_v, 2), positions, true};
  Kernel::backward({}, std::span(&queries, 1), std::span(&keys, 1), {1, 0, 3}, 0.4f, any_mask{});
  // The other heads' parts of the keys' gradients, each by a call of its own.
  orrery::backward_queries<S, float> rest = queries;
  orrery::backward_keys<S, float> again = keys;
  again.fresh = false;
  for (const std::int64_t head : {0, 5}) {
    rest.q = view(q, 6).slice_heads(head, 1);
    rest.grad_out = view(grad_out, 6).slice_heads(head, 1);
    rest.lse = orrery::batch_head_sequence(lse.data(), 1, 6, n).slice_heads(head, 1);
    rest.delta = orrery::batch_head_sequence(delta.data(), 1, 6, n).slice_heads(head, 1);
    rest.grad_q = view(grad_q, 6).slice_heads(head, 1);
    Kernel::backward({}, std::span(&rest, 1), std::span(&again, 1), {head, 0, 3}, 0.4f, any_mask{});
  }
  kernel_test::home.wait();
  const auto error = [](const std::vector<double>& want, const auto& got) {
    return oracle::compare(want, std::vector<float>(got.begin(), got.end())).error;
  };
  CHECK(error(expected.grad_q, grad_q) <= tolerance);
  CHECK(error(expected.grad_k, grad_k) <= tolerance);
  CHECK(error(expected.grad_v, grad_v) <= tolerance);
}

/// The backward of queries whose log-sum-exp is minus infinity, whatever the mask says: all gradients are 0.
template <class Kernel>
void check_rows_without_keys() {
  using S = typename Kernel::storage;
  constexpr std::int64_t n = 21, dim = 8;
  const auto ones = vector_of(n * dim, S{1});
  auto grad_q = vector_of(n * dim, 7.0f), grad_k = grad_q, grad_v = grad_q;
  const auto lse = vector_of(n, -std::numeric_limits<float>::infinity()), delta = vector_of(n, 3.0f);
  const auto view = [](auto& data) { return orrery::batch_sequence_head_dim(data.data(), 1, n, 1, dim); };
  const auto rows = [](auto& data) { return orrery::batch_head_sequence(data.data(), 1, 1, n); };
  const orrery::segments positions = kernel_test::piece(0, n);
  const orrery::backward_queries<S, float> queries{view(ones),   view(ones), rows(lse), rows(delta),
                                                   view(grad_q), positions,  true};
  const orrery::backward_keys<S, float> keys{view(ones), view(ones), view(grad_k), view(grad_v), positions, true};
  Kernel::backward({}, std::span(&queries, 1), std::span(&keys, 1), {}, 1, any_mask{});
  kernel_test::home.wait();
  for (const float value : grad_q) CHECK(value == 0);
  for (const float value : grad_k) CHECK(value == 0);
  for (const float value : grad_v) CHECK(value == 0);
}

}  // namespace cuda_test
