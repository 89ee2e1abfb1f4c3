// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention/tile.hpp"
#include "orrery/tensor/view.hpp"

#include "device/check.hpp"
#include "kernel/cuda/masks.hpp"
#include "kernel/problem.hpp"
#include "support/oracle.hpp"

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

/// Batches, with dimensions in every order, and strides and addresses that wide copies fit, and that they do not.
template <class Kernel>
void check_batches(const oracle::shape& shape, const any_mask& mask, double tolerance) {
  using kernel_test::order;
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 2);
  kernel_test::plan how = cut(shape, 1, 2);
  for (const order layout : {order::batch_sequence_head, order::sequence_batch_head, order::batch_head_sequence}) {
    how.layout = layout;
    how.margin = layout == order::batch_sequence_head ? 3 : layout == order::sequence_batch_head ? 8 : 0;
    how.clear_first = how.margin == 8;
    check<Kernel>(p, mask, how, tolerance);
  }
}

/// More shards than a launch takes, of few tokens or none.
template <class Kernel>
void check_many_shards(double tolerance) {
  using S = typename Kernel::storage;
  const any_mask causal{any_mask::kind::causal};
  const auto check_all = [&](const oracle::problem& p, const kernel_test::plan& how) {
    check<Kernel>(p, causal, how, tolerance);
  };
  const oracle::shape shape{1, 5, 4, 1, 1, 8, 8, 0.5};
  const auto p = oracle::random_problem<S>(shape, 3);
  kernel_test::plan how;
  how.queries = kernel_test::contiguous(shape.queries, 6);
  how.keys = kernel_test::contiguous(shape.keys, 5);
  for (const bool one_call : {false, true}) {
    how.one_call = one_call;
    check_all(p, how);
  }
  how.one_call = true;
  how.keys.clear();
  check_all(oracle::random_problem<S>({1, 5, 0, 1, 1, 8, 8, 0.5}, 4), how);
  how.keys = kernel_test::contiguous(7, 2);
  how.queries.clear();
  check_all(oracle::random_problem<S>({1, 0, 7, 1, 1, 8, 8, 0.5}, 5), how);
}

/// Scales of zero and below, with this many keys under this mask.
template <class Kernel>
void check_scales(std::int64_t keys, const any_mask& mask, double tolerance) {
  for (const double scale : {0.0, -0.5}) {
    const oracle::shape shape{1, 30, keys, 1, 1, 8, 8, scale};
    check<Kernel>(oracle::random_problem<typename Kernel::storage>(shape, 7), mask, cut(shape, 1, 2), tolerance);
  }
}

/// Scores up to several hundred, all shifted far above and below what exp can represent; a tile that is not full of
/// keys among them.
template <class Kernel>
void check_shifted_scores(double tolerance) {
  const oracle::shape shape{1, 40, 90, 1, 1, 32, 16, 1.0};
  auto p = oracle::random_problem<typename Kernel::storage>(shape, 8, 6.0);
  for (const double shift : {64.0, -64.0}) {
    for (std::size_t i = 0; i < p.q.size(); i += 32) p.q[i] = 64;
    for (std::size_t i = 0; i < p.k.size(); i += 32) p.k[i] = shift;
    check<Kernel>(p, any_mask{any_mask::kind::causal, false, {100}}, cut(shape, 1, 1),
                  tolerance + oracle::tolerance<float> * 8192, oracle::tolerance<float> * 8192);
  }
}

/// Rows that see nothing are complete: zero, and minus infinity.
template <class Kernel>
void check_nothing_seen() {
  using kind = any_mask::kind;
  const oracle::shape shape{1, 40, 40, 1, 1, 8, 8, 1.0};
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 9);
  for (const any_mask& mask : {any_mask{kind::causal, false, {-1000}}, any_mask{kind::causal, true, {-1000}}}) {
    for (const bool one_call : {false, true}) {
      kernel_test::plan how = cut(shape, 2, 2);  // results are NaN beforehand
      how.one_call = one_call;
      const auto got = kernel_test::run<Kernel>(p, mask, how);
      for (const auto* zeros : {&got.out, &got.grad_q, &got.grad_k, &got.grad_v}) {
        CHECK(std::all_of(zeros->begin(), zeros->end(), [](float value) { return value == 0; }));
      }
      CHECK(std::all_of(got.lse.begin(), got.lse.end(),
                        [](float value) { return value == -std::numeric_limits<float>::infinity(); }));
    }
  }
}

/// The same call twice gives the same bits, and keys that a running result does not see leave them alone.
template <class Kernel>
void check_same_bits() {
  using kind = any_mask::kind;
  const oracle::shape shape{1, 64, 128, 2, 1, 16, 16, 0.25};
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 10);
  kernel_test::plan seen_only = cut(shape, 1, 1);
  seen_only.keys = {kernel_test::piece(0, 64)};
  kernel_test::plan both = seen_only;
  // Calls go through the keys from the last to the first: the visible half, then the half that nobody sees, for which
  // the interval test of one kind skips the tile and that of the other does not.
  both.keys = {kernel_test::piece(64, 64), kernel_test::piece(0, 64)};
  const auto halves = boundaries_at({0, 64, 128});
  for (const any_mask& mask :
       {any_mask{kind::packed, false, {}, {}, {halves.data(), 2}}, any_mask{kind::causal, true}}) {
    const auto one = kernel_test::run<Kernel>(p, mask, seen_only);
    const auto same = kernel_test::run<Kernel>(p, mask, seen_only);
    const auto other = kernel_test::run<Kernel>(p, mask, both);
    CHECK(one.out == same.out);
    CHECK(one.lse == same.lse);
    CHECK(one.grad_q == same.grad_q);
    CHECK(one.grad_k == same.grad_k);
    CHECK(one.grad_v == same.grad_v);
    CHECK(one.out == other.out);
    CHECK(one.lse == other.lse);
    CHECK(one.grad_q == other.grad_q);
  }
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

/// Checks that elements are NaN, or infinite, exactly where the oracle's are, and the others within `tolerance`.
inline void check_numbers(const std::string& name, const std::vector<double>& expected, const auto& got,
                          double tolerance) {
  REQUIRE(expected.size() == got.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto value = static_cast<double>(got[i]);
    const bool is_same = std::isnan(expected[i])   ? std::isnan(value)
                         : std::isinf(expected[i]) ? value == expected[i]
                                                   : std::abs(value - expected[i]) <= tolerance;
    if (is_same) continue;
    INFO(name, " ", i, ": expected ", expected[i], ", got ", value);
    CHECK(is_same);
    return;
  }
}

/// Forward and backward where queries meet several tiles of keys, in either order, and some scores are NaN or overflow.
/// With `of_infinite_keys` they are infinite since the keys are.
template <class Kernel, class Mask = any_mask>
void check_scores_not_finite(double tolerance, bool of_infinite_keys) {
  using S = typename Kernel::storage;
  using A = typename Kernel::accumulator;
  constexpr std::int64_t queries = 5, keys = 150;
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const double large = std::ldexp(1.0, std::numeric_limits<A>::max_exponent / 2);  // its square overflows
  struct special {
    std::int64_t key;
    double value;  ///< of the key; 1: the score overflows, -1: it overflows below
  };
  const auto check = [&](const std::vector<special>& of_keys, double others) {
    // Scores are those of numbers of size 1: queries are large, and keys small.
    oracle::problem p = oracle::random_problem<S>({1, queries, keys, 1, 1, 1, 8, 1.0}, 70);
    for (double& value : p.k) value = others != 0 ? others * large : value / large;
    for (std::size_t i = 0; i < p.q.size(); ++i) p.q[i] = i == 2 || i == 3 ? -large : large;
    if (others != 0) std::fill(p.q.begin(), p.q.end(), large);
    for (const special& one : of_keys) p.k[static_cast<std::size_t>(one.key)] = one.value * large;
    // The oracle computes in double, where no score overflows.
    oracle::problem infinite = p;
    for (double& value : infinite.k) {
      if (std::abs(value) == large) value *= infinity;
    }
    const auto expected = oracle::solve(infinite, [](std::int64_t, std::int64_t) { return true; });
    for (const std::int64_t shards : {1, 2, 5}) {
      kernel_test::plan how;
      how.queries = kernel_test::contiguous(queries, 1);
      how.keys = kernel_test::contiguous(keys, shards);
      how.one_call = shards == 5;
      INFO(Kernel::name(), ", key ", of_keys.empty() ? -1 : of_keys[0].key, " is ",
           of_keys.empty() ? 0.0 : of_keys[0].value, ", ", of_keys.size(), " special keys, others ", others,
           ", shards ", shards);
      const auto got = kernel_test::run<Kernel>(of_infinite_keys ? infinite : p, Mask{}, how);
      check_numbers("out", expected.out, got.out, tolerance);
      check_numbers("lse", expected.lse, got.lse, tolerance);
      check_numbers("delta", expected.delta, got.delta, tolerance);
      check_numbers("grad_q", expected.grad_q, got.grad_q, tolerance / large);
      check_numbers("grad_k", expected.grad_k, got.grad_k, tolerance * large);
      check_numbers("grad_v", expected.grad_v, got.grad_v, tolerance);
    }
  };
  // Of the queries some are positive and some negative, so that one key has scores of both signs.
  for (const std::int64_t key : {3, 70, 149}) {
    check({{key, nan}}, 0);
    check({{key, 1}}, 0);
  }
  check({{3, 1}, {149, 1}}, 0);
  check({{3, 1}, {149, -1}}, 0);
  check({{3, nan}, {149, 1}}, 0);
  // All scores are too low to be seen, or all but one, in the first tile or the last.
  check({}, -1);
  check({{3, 0}}, -1);
  check({{149, 0}}, -1);
  check({{149, nan}}, -1);
  check({{3, 1}}, -1);
}

/// One query and many keys, then few keys and many queries, all scores 0: sums over tokens whose terms are exact and
/// the same, but have more bits than a sum of so many of them has left. Their errors do not grow with their length.
template <class Kernel>
void check_long_sums() {
  using S = typename Kernel::storage;
  static_assert(std::same_as<S, orrery::float16>);
  constexpr double odd = 1 + 0x1p-10;  // the last of float16's bits
  for (const bool many_keys : {true, false}) {
    INFO(Kernel::name(), std::string{many_keys ? ", many keys" : ", many queries"});
    const std::int64_t queries = many_keys ? 1 : 20480, keys = many_keys ? 32768 : 2;
    oracle::problem p = oracle::random_problem<S>({1, queries, keys, 1, 1, 1, 2, 1.0}, 71);
    // Gradients of scores have the sign of the second column of the value, which a mean of 0 leaves of it.
    for (std::size_t i = 0; i < p.v.size(); i += 2) {
      p.v[i] = odd;
      p.v[i + 1] = i % 4 == 0 ? 1 : -1;
      p.k[i / 2] = many_keys ? odd * p.v[i + 1] : 0;
    }
    for (std::size_t i = 0; i < p.grad_out.size(); i += 2) {
      p.grad_out[i] = 0;
      p.grad_out[i + 1] = many_keys ? 1 : odd;
      p.q[i / 2] = many_keys ? 0 : 1;
    }
    const auto expected = oracle::solve(p, [](std::int64_t, std::int64_t) { return true; });
    kernel_test::plan how;
    how.queries = kernel_test::contiguous(queries, 1);
    how.keys = kernel_test::contiguous(keys, 1);
    const auto got = kernel_test::run<Kernel>(p, any_mask{}, how);
    const auto bound = [&](const std::vector<double>& all) {
      double largest = 1;
      for (const double value : all) largest = (std::max)(largest, std::abs(value));
      return 0x1p-22 * largest;
    };
    check_numbers("out", expected.out, got.out, bound(expected.out));
    check_numbers("lse", expected.lse, got.lse, bound(expected.lse));
    check_numbers("grad_q", expected.grad_q, got.grad_q, bound(expected.grad_q));
    check_numbers("grad_k", expected.grad_k, got.grad_k, bound(expected.grad_k));
    check_numbers("grad_v", expected.grad_v, got.grad_v, bound(expected.grad_v));
  }
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
