// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Every kernel against the oracle, forward and backward: masks, layouts, shapes, accumulation, memory.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"

#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace {

using kernel_test::contiguous;
using kernel_test::order;
using kernel_test::plan;
using kernel_test::striped;
using kernel_test::zigzag;
using orrery::instruction_set;

/// A user's mask: keys at most `reach` positions away. Its interval test never knows more than `some`.
struct band {
  std::int64_t reach = 3;
  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const {
    return (query > key ? query - key : key - query) <= reach;
  }
  [[nodiscard]] orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) const {
    return orrery::visibility::some;
  }
  [[nodiscard]] std::string name() const { return "band " + std::to_string(reach); }
};

/// The same with an exact interval test, so that whole blocks are skipped and granules of keys trimmed on both sides.
struct exact_band : band {
  [[nodiscard]] orrery::visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const {
    if (key_first - query_last > reach || query_first - key_last > reach) return orrery::visibility::none;
    if (key_last - query_first <= reach && query_last - key_first <= reach) return orrery::visibility::all;
    return orrery::visibility::some;
  }
};

/// Hash-like holes: no structure that a block could hide behind.
struct holes {
  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const { return (query * 7 + key * 13) % 5 != 0; }
  [[nodiscard]] orrery::visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const {
    if (query_first == query_last && key_first == key_last) {
      return visible(query_first, key_first) ? orrery::visibility::all : orrery::visibility::none;
    }
    return orrery::visibility::some;
  }
  [[nodiscard]] std::string name() const { return "holes"; }
};

template <class A>
void check_result(const std::string& kernel, const std::string& mask, const oracle::problem& p, const plan& how,
                  const oracle::answer& expected, const kernel_test::result<A>& got, double tolerance) {
  INFO(kernel, " with ", mask, ", queries ", p.shape.queries, ", keys ", p.shape.keys, ", heads ", p.shape.query_heads,
       "/", p.shape.key_heads, ", dims ", p.shape.key_dim, "/", p.shape.value_dim, ", shards ", how.queries.size(), "/",
       how.keys.size(), ", one call ", how.one_call);
  const auto compare = [&](const char* what, const std::vector<double>& want, const std::vector<A>& have) {
    const oracle::difference d = oracle::compare(want, have);
    INFO(what, ": ", d.text());
    CHECK(d.error <= tolerance);
  };
  compare("out", expected.out, got.out);
  compare("lse", expected.lse, got.lse);
  compare("delta", expected.delta, got.delta);
  compare("grad_q", expected.grad_q, got.grad_q);
  compare("grad_k", expected.grad_k, got.grad_k);
  compare("grad_v", expected.grad_v, got.grad_v);
  CHECK(got.stayed_inside);
}

template <class Kernel, class Mask>
void check(const oracle::problem& p, const Mask& mask, const plan& how,
           double tolerance = oracle::tolerance<typename Kernel::accumulator>) {
  check_result(Kernel::name(), std::string(mask.name()), p, how, oracle::solve(p, mask),
               kernel_test::run<Kernel>(p, mask, how), tolerance);
}

template <class Kernel, class Mask>
void check_all_layouts(const oracle::shape& shape, const Mask& mask, std::uint64_t seed) {
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, seed);
  const std::int64_t n = shape.queries;
  const std::int64_t m = shape.keys;
  for (const bool one_call : {false, true}) {
    plan how;
    how.one_call = one_call;
    how.queries = contiguous(n, 1);
    how.keys = contiguous(m, 1);
    check<Kernel>(p, mask, how);
    how.queries = contiguous(n, 3);
    how.keys = contiguous(m, 2);
    check<Kernel>(p, mask, how);
    how.queries = zigzag(n, 2);
    how.keys = zigzag(m, 3);
    check<Kernel>(p, mask, how);
    how.queries = striped(n, 3, 1);
    how.keys = striped(m, 2, 5);
    check<Kernel>(p, mask, how);
  }
}

}  // namespace

#define KERNELS                                                                                     \
  orrery::reference<float>, orrery::reference<double>, orrery::flash<float>, orrery::flash<double>, \
      orrery::flash<float, instruction_set::avx2>, orrery::flash<double, instruction_set::avx2>,    \
      orrery::flash<float, instruction_set::baseline>, orrery::flash<double, instruction_set::baseline>

TEST_CASE_TEMPLATE("masks and layouts", Kernel, KERNELS) {
  const oracle::shape square{1, 150, 150, 2, 2, 16, 16, 0.25};
  check_all_layouts<Kernel>(square, orrery::full{}, 1);
  check_all_layouts<Kernel>(square, orrery::causal{}, 2);
  check_all_layouts<Kernel>(square, orrery::causal{-40}, 3);  // the first 40 queries see nothing
  check_all_layouts<Kernel>(square, band{5}, 4);
  check_all_layouts<Kernel>(square, exact_band{{17}}, 5);
  check_all_layouts<Kernel>(square, holes{}, 6);
  const oracle::shape cross{1, 70, 190, 2, 1, 16, 24, 0.25};
  check_all_layouts<Kernel>(cross, orrery::full{}, 7);
  check_all_layouts<Kernel>(cross, orrery::causal{120}, 8);
  const oracle::shape more_queries{1, 190, 70, 2, 1, 16, 24, 0.25};
  check_all_layouts<Kernel>(more_queries, orrery::causal{}, 9);
  check_all_layouts<Kernel>(more_queries, orrery::causal{-120}, 10);
}

TEST_CASE_TEMPLATE("shapes: tiny, odd, grouped heads, batches, unequal head dimensions", Kernel, KERNELS) {
  std::uint64_t seed = 100;
  for (const std::int64_t n : {1, 2, 7, 33, 49}) {
    for (const std::int64_t m : {1, 3, 8, 65}) {
      const oracle::shape shape{2, n, m, 6, 2, 5, 3, 0.4};
      const auto p = oracle::random_problem<typename Kernel::storage>(shape, ++seed);
      plan how;
      how.queries = contiguous(n, 2);
      how.keys = zigzag(m, 2);
      check<Kernel>(p, orrery::full{}, how);
      check<Kernel>(p, orrery::causal{}, how);
    }
  }
  for (const std::int64_t key_dim : {1, 17, 64, 100, 128}) {
    for (const std::int64_t value_dim : {1, 31, 64, 128}) {
      const oracle::shape shape{1, 61, 103, 4, 1, key_dim, value_dim, 1 / std::sqrt(static_cast<double>(key_dim))};
      const auto p = oracle::random_problem<typename Kernel::storage>(shape, ++seed);
      plan how;
      how.queries = contiguous(shape.queries, 1);
      how.keys = contiguous(shape.keys, 2);
      check<Kernel>(p, orrery::causal{42}, how);
    }
  }
}

TEST_CASE_TEMPLATE("the largest head dimension", Kernel, KERNELS) {
  const oracle::shape shape{1, 130, 75, 1, 1, 576, 576, 1 / std::sqrt(576.0)};
  plan how;
  how.queries = contiguous(shape.queries, 1);
  how.keys = contiguous(shape.keys, 1);
  check<Kernel>(oracle::random_problem<typename Kernel::storage>(shape, 50), orrery::causal{}, how);
}

TEST_CASE_TEMPLATE("several blocks of rows and keys", Kernel, KERNELS) {
  const oracle::shape shape{1, 700, 700, 1, 1, 64, 64, 0.125};
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 60);
  plan how;
  how.queries = contiguous(shape.queries, 1);
  how.keys = contiguous(shape.keys, 1);
  check<Kernel>(p, orrery::causal{}, how);
  check<Kernel>(p, orrery::full{}, how);
  how.queries = zigzag(shape.queries, 2);
  how.keys = zigzag(shape.keys, 2);
  check<Kernel>(p, orrery::causal{}, how);
  check<Kernel>(p, exact_band{{130}}, how);
}

TEST_CASE_TEMPLATE("many heads, and so the longest blocks of keys", Kernel, KERNELS) {
  const oracle::shape shape{1, 601, 601, 16, 16, 6, 5, 0.4};
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 65);
  plan how;
  how.queries = contiguous(shape.queries, 1);
  how.keys = contiguous(shape.keys, 1);
  check<Kernel>(p, orrery::causal{}, how);
  check<Kernel>(p, exact_band{{290}}, how);
}

TEST_CASE_TEMPLATE("strided views: nothing outside them is touched", Kernel, KERNELS) {
  const oracle::shape shape{2, 45, 58, 4, 2, 20, 12, 0.3};
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 70);
  for (const order layout : {order::batch_sequence_head, order::sequence_batch_head, order::batch_head_sequence}) {
    for (const std::int64_t margin : {0, 1, 7}) {
      plan how;
      how.layout = layout;
      how.margin = margin;
      how.queries = zigzag(shape.queries, 2);
      how.keys = contiguous(shape.keys, 3);
      check<Kernel>(p, orrery::causal{}, how);
      how.clear_first = true;
      check<Kernel>(p, orrery::causal{}, how);
    }
  }
}

TEST_CASE_TEMPLATE("empty shards and no keys at all", Kernel, KERNELS) {
  const oracle::shape shape{1, 5, 3, 2, 2, 8, 8, 0.5};
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 80);
  for (const bool one_call : {false, true}) {
    plan how;
    how.one_call = one_call;
    how.queries = contiguous(shape.queries, 8);  // some shards hold no token
    how.keys = contiguous(shape.keys, 5);
    check<Kernel>(p, orrery::full{}, how);
    check<Kernel>(p, orrery::causal{}, how);
  }
  const oracle::shape no_keys{1, 5, 0, 2, 2, 8, 8, 0.5};
  plan how;
  how.queries = contiguous(5, 2);
  how.keys = contiguous(0, 1);
  check<Kernel>(oracle::random_problem<typename Kernel::storage>(no_keys, 81), orrery::full{}, how);
  how.keys.clear();
  how.one_call = true;
  check<Kernel>(oracle::random_problem<typename Kernel::storage>(no_keys, 82), orrery::full{}, how);
  const oracle::shape no_queries{1, 0, 5, 2, 2, 8, 8, 0.5};
  how.queries.clear();
  how.keys = contiguous(5, 2);
  check<Kernel>(oracle::random_problem<typename Kernel::storage>(no_queries, 83), orrery::full{}, how);
}

TEST_CASE_TEMPLATE("rows that see nothing are complete: zero, and minus infinity", Kernel, KERNELS) {
  using A = typename Kernel::accumulator;
  const oracle::shape shape{1, 40, 40, 1, 1, 8, 8, 1.0};
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 90);
  for (const bool one_call : {false, true}) {
    plan how;  // results are NaN beforehand
    how.one_call = one_call;
    how.queries = contiguous(40, 2);
    how.keys = contiguous(40, 2);
    const auto got = kernel_test::run<Kernel>(p, orrery::causal{-1000}, how);
    for (const A value : got.out) CHECK(value == 0);
    for (const A value : got.lse) CHECK(value == -std::numeric_limits<A>::infinity());
    for (const A value : got.grad_q) CHECK(value == 0);
    for (const A value : got.grad_k) CHECK(value == 0);
    for (const A value : got.grad_v) CHECK(value == 0);
  }
}

TEST_CASE_TEMPLATE("backward: a row whose lse is minus infinity contributes nothing, whatever the mask says", Kernel,
                   KERNELS) {
  using S = typename Kernel::storage;
  using A = typename Kernel::accumulator;
  constexpr std::int64_t n = 21, dim = 8;
  const std::vector<S> ones(n * dim, S{1});
  std::vector<A> grad_q(n * dim, A{7}), grad_k(n * dim, A{7}), grad_v(n * dim, A{7});
  const std::vector<A> lse(n, -std::numeric_limits<A>::infinity()), delta(n, A{3});
  const auto view = [](auto& data) { return orrery::batch_sequence_head_dim(data.data(), 1, n, 1, dim); };
  const auto rows = [](auto& data) { return orrery::batch_head_sequence(data.data(), 1, 1, n); };
  const orrery::segments positions = kernel_test::piece(0, n);
  const orrery::backward_queries<S, A> queries{view(ones),   view(ones), rows(lse), rows(delta),
                                               view(grad_q), positions,  true};
  const orrery::backward_keys<S, A> keys{view(ones), view(ones), view(grad_k), view(grad_v), positions, true};
  Kernel::backward(orrery::host_context{}, std::span(&queries, 1), std::span(&keys, 1), orrery::head_map{}, A{1},
                   orrery::full{});
  for (const A value : grad_q) CHECK(value == 0);
  for (const A value : grad_k) CHECK(value == 0);
  for (const A value : grad_v) CHECK(value == 0);
}

TEST_CASE_TEMPLATE("backward: a pair whose score is minus infinity contributes nothing, though delta is NaN", Kernel,
                   orrery::reference<float>, orrery::flash<float>, orrery::flash<double>) {
  using S = typename Kernel::storage;
  using A = typename Kernel::accumulator;
  constexpr std::int64_t keys_count = 100, dim = 8;
  constexpr std::int64_t hidden[] = {1, 70};  // in parts of a block that are computed one after the other
  const S large = std::sqrt((std::numeric_limits<S>::max)());
  std::vector<S> k(keys_count * dim, S{0});
  for (const std::int64_t key : hidden) std::fill_n(k.begin() + key * dim, dim, -large);
  for (const bool infinite_query : {false, true}) {
    std::vector<S> q(dim, infinite_query ? S{0} : large);
    if (infinite_query) q[0] = std::numeric_limits<S>::infinity();
    const std::vector<S> ones(keys_count * dim, S{1});
    std::vector<A> grad_q(dim), grad_k(keys_count * dim), grad_v(keys_count * dim);
    const std::vector<A> lse(1, A{0}), delta(1, std::numeric_limits<A>::quiet_NaN());
    const auto view = [](auto& data, std::int64_t tokens) {
      return orrery::batch_sequence_head_dim(data.data(), 1, tokens, 1, dim);
    };
    const auto rows = [](auto& data) { return orrery::batch_head_sequence(data.data(), 1, 1, 1); };
    const orrery::segments query = kernel_test::piece(0, 1), key = kernel_test::piece(0, keys_count);
    const orrery::backward_queries<S, A> queries{view(q, 1),      view(ones, 1), rows(lse), rows(delta),
                                                 view(grad_q, 1), query,         true};
    const orrery::backward_keys<S, A> keys{
        view(k, keys_count), view(ones, keys_count), view(grad_k, keys_count), view(grad_v, keys_count), key, true};
    Kernel::backward(orrery::host_context{}, std::span(&queries, 1), std::span(&keys, 1), orrery::head_map{}, A{1},
                     orrery::full{});
    for (std::size_t i = 0; i < dim; ++i) {
      CHECK(std::isnan(grad_k[i]));
      if (!infinite_query) CHECK(grad_v[i] == 1);
      for (const std::int64_t of : hidden) {
        CHECK(grad_k[static_cast<std::size_t>(of * dim) + i] == 0);
        CHECK(grad_v[static_cast<std::size_t>(of * dim) + i] == 0);
      }
    }
  }
}

TEST_CASE_TEMPLATE("large scores: no overflow, and an error in proportion to the scores' own rounding", Kernel,
                   KERNELS) {
  using S = typename Kernel::storage;
  // Scores up to several hundred: a rounding of one of them is |score| roundings of its exponential.
  const oracle::shape shape{1, 80, 120, 1, 1, 32, 16, 1.0};
  for (const double magnitude : {6.0, 30.0}) {
    const auto p = oracle::random_problem<S>(shape, 95, magnitude);
    plan how;
    how.queries = contiguous(shape.queries, 1);
    how.keys = contiguous(shape.keys, 3);
    const double largest_score = 32 * magnitude * magnitude;
    const double tolerance = oracle::tolerance<typename Kernel::accumulator> * largest_score;
    check<Kernel>(p, orrery::full{}, how, tolerance);
    check<Kernel>(p, orrery::causal{}, how, tolerance);
    // One shift of all of a row's scores far below and above what exp can represent.
    auto shifted = p;
    for (std::size_t i = 0; i < shifted.q.size(); i += 32) shifted.q[i] = 64;
    for (std::size_t i = 0; i < shifted.k.size(); i += 32) shifted.k[i] = magnitude < 10 ? 64 : -64;
    check<Kernel>(shifted, orrery::full{}, how, oracle::tolerance<typename Kernel::accumulator> * 4096 * 2);
  }
}

TEST_CASE_TEMPLATE("negative and zero scale", Kernel, KERNELS) {
  for (const double scale : {-0.5, 0.0}) {
    const oracle::shape shape{1, 30, 70, 1, 1, 8, 8, scale};
    plan how;
    how.queries = contiguous(30, 1);
    how.keys = contiguous(70, 2);
    check<Kernel>(oracle::random_problem<typename Kernel::storage>(shape, 96), orrery::causal{}, how);
  }
}

TEST_CASE_TEMPLATE("the same call twice gives the same bits", Kernel, KERNELS) {
  const oracle::shape shape{2, 90, 130, 4, 2, 40, 24, 0.2};
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 97);
  plan how;
  how.queries = zigzag(shape.queries, 2);
  how.keys = striped(shape.keys, 2, 3);
  const auto one = kernel_test::run<Kernel>(p, orrery::causal{20}, how);
  const auto other = kernel_test::run<Kernel>(p, orrery::causal{20}, how);
  CHECK(one.out == other.out);
  CHECK(one.lse == other.lse);
  CHECK(one.grad_q == other.grad_q);
  CHECK(one.grad_k == other.grad_k);
  CHECK(one.grad_v == other.grad_v);
}

// The later keys are seen by half of the block's rows, so that the others are read and written with them.
TEST_CASE_TEMPLATE("keys that a running result does not see leave its bits alone", Kernel, KERNELS) {
  const oracle::shape shape{1, 64, 64, 1, 1, 16, 16, 0.25};
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 98);
  plan seen_only;
  seen_only.queries = contiguous(64, 1);
  seen_only.keys = {kernel_test::piece(0, 32)};
  plan both = seen_only;
  both.keys = {kernel_test::piece(32, 32), kernel_test::piece(0, 32)};
  // Calls go through the keys from the last to the first: those that all rows see, then those that half of them see.
  const auto one = kernel_test::run<Kernel>(p, orrery::causal{}, seen_only);
  const auto other = kernel_test::run<Kernel>(p, orrery::causal{}, both);
  const auto is_kept = [](const auto& before, const auto& after, std::ptrdiff_t first, std::ptrdiff_t last) {
    return std::equal(before.begin() + first, before.begin() + last, after.begin() + first);
  };
  CHECK(is_kept(one.out, other.out, 0, 32 * 16));
  CHECK(is_kept(one.lse, other.lse, 0, 32));
  CHECK(is_kept(one.grad_q, other.grad_q, 0, 32 * 16));
  CHECK_FALSE(is_kept(one.out, other.out, 33 * 16, 64 * 16));
  CHECK_FALSE(is_kept(one.lse, other.lse, 33, 64));
  CHECK_FALSE(is_kept(one.grad_q, other.grad_q, 33 * 16, 64 * 16));
}

namespace {

enum class scores { equal_but_one, gaussian };
enum class values { ones, random, halves };

/// Attention of many keys or many queries, whose scores and values are such as let roundings add up.
oracle::problem long_problem(std::int64_t queries, std::int64_t keys, scores of, values how) {
  oracle::problem p = oracle::random_problem<float>({1, queries, keys, 1, 1, 2, 2, 0.5}, 99, 3.0);
  if (of == scores::equal_but_one) {
    for (double& x : p.q) x = static_cast<double>(0.7F);
    for (double& x : p.k) x = static_cast<double>(0.3F);
    p.k[p.k.size() / 3] = 1.5;
  } else {  // sums of four uniform numbers
    for (int i = 0; i < 4; ++i) {
      const auto q = oracle::random_values(queries * 2, 100 + static_cast<std::uint64_t>(i));
      const auto k = oracle::random_values(keys * 2, 200 + static_cast<std::uint64_t>(i));
      for (std::size_t j = 0; j < q.size(); ++j) p.q[j] = i == 0 ? q[j] : p.q[j] + q[j];
      for (std::size_t j = 0; j < k.size(); ++j) p.k[j] = i == 0 ? k[j] : p.k[j] + k[j];
    }
    oracle::round_to<float>(p.q);
    oracle::round_to<float>(p.k);
  }
  for (std::size_t i = 0; i < p.v.size() && how != values::random; ++i) {
    p.v[i] = how == values::ones || i < p.v.size() / 2 ? 1 : -1;
  }
  // Of equal terms, roundings have one sign.
  for (double& x : p.grad_out) x = how == values::halves ? static_cast<double>(0.7F) : x;
  return p;
}

/// The largest error among elements, each relative to the sum of its terms' absolute values.
template <class A>
double worst(const std::vector<A>& got, const std::vector<double>& expected, const std::vector<double>& terms) {
  double most = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - expected[i]);
    if (!(error <= most * terms[i])) most = error / terms[i];
  }
  return most;
}

/// What the terms of each sum add up to without their signs, as many times as they are a difference of two products.
oracle::answer sizes_of_sums(const oracle::problem& p, const oracle::answer& right) {
  oracle::answer sizes{std::vector<double>(right.out.size()),    std::vector<double>(right.lse.size()),
                       std::vector<double>(right.lse.size()),    std::vector<double>(right.grad_q.size()),
                       std::vector<double>(right.grad_k.size()), std::vector<double>(right.grad_v.size())};
  for (std::int64_t i = 0; i < p.shape.queries; ++i) {
    const auto row = static_cast<std::size_t>(i);
    sizes.lse[row] = std::max(1.0, std::abs(right.lse[row]));
    for (std::int64_t j = 0; j < p.shape.keys; ++j) {
      const std::size_t q = row * 2, k = static_cast<std::size_t>(j) * 2;
      const double probability = std::exp(p.shape.scale * (p.q[q] * p.k[k] + p.q[q + 1] * p.k[k + 1]) - right.lse[row]);
      double size = 0;
      for (std::size_t c = 0; c < 2; ++c) {
        sizes.out[q + c] += probability * std::abs(p.v[k + c]);
        sizes.grad_v[k + c] += probability * std::abs(p.grad_out[q + c]);
        size += std::abs(p.grad_out[q + c]) * (std::abs(p.v[k + c]) + std::abs(right.out[q + c]));
      }
      size *= probability * p.shape.scale;
      for (std::size_t c = 0; c < 2; ++c) {
        sizes.grad_q[q + c] += size * std::abs(p.k[k + c]);
        sizes.grad_k[k + c] += size * std::abs(p.q[q + c]);
      }
    }
  }
  return sizes;
}

}  // namespace

TEST_CASE_TEMPLATE("scores that rise or fall over many blocks of keys", Kernel, orrery::flash<float>,
                   orrery::flash<double>) {
  const oracle::shape shape{1, 2, 5000, 1, 1, 1, 2, 1.0};
  auto p = oracle::random_problem<typename Kernel::storage>(shape, 96);
  p.q = {1, -1};
  for (std::size_t i = 0; i < p.k.size(); ++i) p.k[i] = 0x1p-5 * static_cast<double>(i);
  plan how;
  how.queries = contiguous(shape.queries, 1);
  how.keys = contiguous(shape.keys, 1);
  const double largest_score = p.k.back();
  check<Kernel>(p, orrery::full{}, how, oracle::tolerance<typename Kernel::accumulator> * largest_score);
}

TEST_CASE("errors of long sums do not grow with their length") {
  constexpr double rounding = 0x1p-24;
  constexpr std::int64_t length = std::int64_t{1} << 20;
  for (const bool many_keys : {true, false}) {
    const std::int64_t queries = many_keys ? 1 : length, keys = many_keys ? length : 1;
    for (const scores of : {scores::equal_but_one, scores::gaussian}) {
      for (const values how : {values::ones, values::random, values::halves}) {
        if (!many_keys && (of != scores::gaussian || how == values::ones)) continue;  // one key has the weight 1
        const oracle::problem p = long_problem(queries, keys, of, how);
        const oracle::answer right = oracle::solve(p, orrery::full{});
        const oracle::answer sizes = sizes_of_sums(p, right);
        for (const int parts : {1, 8, 64}) {
          plan cut;
          cut.queries = contiguous(queries, many_keys ? 1 : parts);
          cut.keys = contiguous(keys, many_keys ? parts : 1);
          const auto got = kernel_test::run<orrery::flash<float>>(p, orrery::full{}, cut);
          INFO(queries, " x ", keys, ", scores ", static_cast<int>(of), ", values ", static_cast<int>(how), ", parts ",
               parts);
          const double merges = parts - 1;
          CHECK(worst(got.out, right.out, sizes.out) <= (4 + merges) * rounding);
          CHECK(worst(got.lse, right.lse, sizes.lse) <= (4 + merges) * rounding);
          // A rounding of lse is one of all probabilities of its row.
          const double of_gradients = 20 + merges * (many_keys ? sizes.lse[0] : 1);
          CHECK(worst(got.grad_q, right.grad_q, sizes.grad_q) <= of_gradients * rounding);
          CHECK(worst(got.grad_k, right.grad_k, sizes.grad_k) <= of_gradients * rounding);
          CHECK(worst(got.grad_v, right.grad_v, sizes.grad_v) <= of_gradients * rounding);
        }
      }
    }
  }
}

TEST_CASE("errors of sums over many short shards in one call do not grow with their number") {
  constexpr std::int64_t keys = std::int64_t{1} << 17;
  const oracle::problem p = long_problem(1, keys, scores::gaussian, values::halves);
  const oracle::answer right = oracle::solve(p, orrery::full{});
  plan cut;
  cut.queries = contiguous(1, 1);
  cut.keys = contiguous(keys, keys / 8);
  cut.one_call = true;
  const auto got = kernel_test::run<orrery::flash<float>>(p, orrery::full{}, cut);
  const oracle::answer sizes = sizes_of_sums(p, right);
  CHECK(worst(got.out, right.out, sizes.out) <= 4 * 0x1p-24);
  CHECK(worst(got.lse, right.lse, sizes.lse) <= 4 * 0x1p-24);
}

namespace {

/// Other blocks than those of `flash_policies`.
struct small_blocks : orrery::flash_policies {
  static constexpr orrery::flash_block_policy forward() { return {.most_keys = 32, .blocks_in_part = 2}; }
  static constexpr orrery::flash_block_policy backward() { return {.most_keys = 64, .blocks_in_part = 3}; }
};

}  // namespace

TEST_CASE("blocks of other sizes, chosen by a policy") {
  using chosen = orrery::flash<float, orrery::instruction_set::avx512, small_blocks>;
  const oracle::shape shape{1, 260, 300, 2, 1, 24, 40, 0.25};
  const auto p = oracle::random_problem<float>(shape, 77);
  plan how;
  how.queries = kernel_test::zigzag(shape.queries, 2);
  how.keys = kernel_test::zigzag(shape.keys, 1);
  check<chosen>(p, orrery::causal{40}, how);
  check<chosen>(p, orrery::full{}, how);
  CHECK(to_string(chosen::policies::forward()) == "{.most_keys = 32, .blocks_in_part = 2}");
  CHECK(to_string(orrery::flash<double>::policies::backward()) == "{.most_keys = 512, .blocks_in_part = 32}");
}
