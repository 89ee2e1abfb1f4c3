// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/mask.hpp"

#include "kernel/problem.hpp"
#include "support/oracle.hpp"

/// What tokens that a mask hides may hold: a query that sees no key and a key that no query sees, as padding, are
/// whatever memory held before.
namespace kernel_test {

/// Masks under which some tokens are hidden from all others.
struct hiding_mask {
  enum class kind { full, causal, band, blocks };

  kind which = kind::full;
  std::int64_t number = 0;  ///< the offset of causal, the reach of a band, the length of blocks
  bool padding = false;     ///< tokens here and there are hidden from all
  bool blind = false;       ///< the interval test knows nothing

  [[nodiscard]] constexpr bool is_padding(std::int64_t position) const {
    return padding && (position % 23 == 5 || position % 41 / 3 == 9);
  }
  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const {
    if (is_padding(query) || is_padding(key)) return false;
    switch (which) {
      case kind::full:
        return true;
      case kind::causal:
        return key <= query + number;
      case kind::band:
        return (query > key ? query - key : key - query) <= number;
      default:
        return query / number == key / number;
    }
  }
  [[nodiscard]] constexpr orrery::visibility classify(std::int64_t query_first, std::int64_t query_last,
                                                      std::int64_t key_first, std::int64_t key_last) const {
    using enum orrery::visibility;
    if (blind) return some;
    bool all_visible = true, none_visible = false;
    switch (which) {
      case kind::full:
        break;
      case kind::causal:
        all_visible = key_last <= query_first + number;
        none_visible = key_first > query_last + number;
        break;
      case kind::band:
        all_visible = key_last - query_first <= number && query_last - key_first <= number;
        none_visible = key_first - query_last > number || query_first - key_last > number;
        break;
      default:
        all_visible = query_first / number == key_last / number && query_last / number == key_first / number;
        none_visible = key_last / number < query_first / number || key_first / number > query_last / number;
        break;
    }
    if (none_visible) return none;
    return all_visible && !padding ? all : some;
  }
  [[nodiscard]] std::string name() const {
    return "hiding mask, kind " + std::to_string(static_cast<int>(which)) + ", number " + std::to_string(number) +
           (padding ? ", padding" : "") + (blind ? ", blind" : "");
  }
};

inline const std::initializer_list<hiding_mask> hiding_masks{
    {hiding_mask::kind::full, 0, true},
    {hiding_mask::kind::causal, 0},
    {hiding_mask::kind::causal, 20, false, true},
    {hiding_mask::kind::causal, -30, true},
    {hiding_mask::kind::band, 9},
    {hiding_mask::kind::band, 70, true},
    {hiding_mask::kind::blocks, 37, true},
    {hiding_mask::kind::blocks, 37, false, true},
};

/// Each token of one side that meets nobody of the other.
struct hidden_tokens {
  std::vector<bool> query, key;

  template <class Mask>
  hidden_tokens(const oracle::shape& s, const Mask& mask)
      : query(static_cast<std::size_t>(s.queries), true), key(static_cast<std::size_t>(s.keys), true) {
    for (std::int64_t i = 0; i < s.queries; ++i) {
      for (std::int64_t j = 0; j < s.keys; ++j) {
        if (!mask.visible(i, j)) continue;
        query[static_cast<std::size_t>(i)] = false;
        key[static_cast<std::size_t>(j)] = false;
      }
    }
  }
};

/// The same tensor, [batch, token, heads, dim], with this value in all elements of some tokens.
[[nodiscard]] inline std::vector<double> with_value_in(std::vector<double> tensor, const std::vector<bool>& tokens,
                                                       std::int64_t row, double value) {
  const auto width = static_cast<std::size_t>(row);
  for (std::size_t i = 0; i < tensor.size(); ++i) {
    if (tokens[i / width % tokens.size()]) tensor[i] = value;
  }
  return tensor;
}

/// The same problem with this value in every element of its hidden tokens: q and grad_out, k and v.
[[nodiscard]] inline oracle::problem with_hidden(oracle::problem p, const hidden_tokens& hidden, double value) {
  const oracle::shape& s = p.shape;
  p.q = with_value_in(std::move(p.q), hidden.query, s.query_heads * s.key_dim, value);
  p.grad_out = with_value_in(std::move(p.grad_out), hidden.query, s.query_heads * s.value_dim, value);
  p.k = with_value_in(std::move(p.k), hidden.key, s.key_heads * s.key_dim, value);
  p.v = with_value_in(std::move(p.v), hidden.key, s.key_heads * s.value_dim, value);
  return p;
}

/// Ways to cut a problem.
[[nodiscard]] inline std::vector<plan> some_plans(const oracle::shape& s) {
  std::vector<plan> all(3);
  all[0].queries = contiguous(s.queries, 1);
  all[0].keys = contiguous(s.keys, 1);
  all[1].queries = zigzag(s.queries, 2);
  all[1].keys = zigzag(s.keys, 1);
  all[1].clear_first = true;
  all[2].queries = striped(s.queries, 2, 5);
  all[2].keys = contiguous(s.keys, 3);
  all[2].one_call = true;
  return all;
}

/// What hidden tokens hold changes no bit of any result; their own are zero, and minus infinity.
template <class Kernel, class Mask = hiding_mask>
void check_hidden_tokens(const oracle::shape& shape, const Mask& mask) {
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 60);
  const double tolerance = oracle::tolerance<typename Kernel::storage>;
  const hidden_tokens hidden{shape, mask};
  const auto count = [](const std::vector<bool>& of) { return std::count(of.begin(), of.end(), true); };
  CHECK(count(hidden.query) + count(hidden.key) > 0);
  for (const plan& how : some_plans(shape)) {
    const oracle::problem clean = with_hidden(p, hidden, 0);
    const auto want = run<Kernel>(clean, mask, how);
    const oracle::answer right = oracle::solve(clean, mask);
    CHECK(oracle::compare(right.out, want.out).error <= tolerance);
    CHECK(oracle::compare(right.grad_q, want.grad_q).error <= tolerance);
    CHECK(oracle::compare(right.grad_k, want.grad_k).error <= tolerance);
    CHECK(oracle::compare(right.grad_v, want.grad_v).error <= tolerance);
    const double value =
        how.one_call ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
    INFO(Kernel::name(), " with ", mask.name(), ", shards ", how.queries.size(), "/", how.keys.size(), ", hidden ",
         count(hidden.query), "/", count(hidden.key), " tokens that hold ", value);
    const auto got = run<Kernel>(with_hidden(p, hidden, value), mask, how);
    CHECK(got.out == want.out);
    CHECK(got.lse == want.lse);
    CHECK(got.grad_q == want.grad_q);
    CHECK(got.grad_k == want.grad_k);
    CHECK(got.grad_v == want.grad_v);
    // Each row of a result, [batch, token, row], that is of one of the tokens.
    const auto all_are = [](const auto& result, const std::vector<bool>& tokens, std::int64_t row, auto expected) {
      for (std::size_t i = 0; i < result.size(); ++i) {
        if (tokens[i / static_cast<std::size_t>(row) % tokens.size()] && !(result[i] == expected)) return false;
      }
      return true;
    };
    using A = typename Kernel::accumulator;
    CHECK(all_are(got.out, hidden.query, shape.query_heads * shape.value_dim, A{0}));
    CHECK(all_are(got.lse, hidden.query, 1, -std::numeric_limits<A>::infinity()));
    CHECK(all_are(got.grad_q, hidden.query, shape.query_heads * shape.key_dim, A{0}));
    CHECK(all_are(got.grad_k, hidden.key, shape.key_heads * shape.key_dim, A{0}));
    CHECK(all_are(got.grad_v, hidden.key, shape.key_heads * shape.value_dim, A{0}));
  }
}

/// Which tokens of a result, [batch, token, row], have an element that is no number.
template <class A>
[[nodiscard]] std::vector<bool> not_numbers(const std::vector<A>& result, std::int64_t tokens, std::int64_t row) {
  std::vector<bool> found(static_cast<std::size_t>(tokens), false);
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (std::isnan(result[i])) found[i / static_cast<std::size_t>(row) % found.size()] = true;
  }
  return found;
}

/// A token that somebody sees and that holds NaN is not passed over: all that depend on it are NaN. Nor does it reach a
/// token more than `tile` away from all of these; 0 if it must not reach any other at all.
template <class Kernel, class Mask = hiding_mask>
void check_visible_nan(const oracle::shape& shape, const Mask& mask, std::int64_t tile) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto p = oracle::random_problem<typename Kernel::storage>(shape, 61);
  const auto one_of = [](std::int64_t tokens, std::int64_t token) {
    std::vector<bool> just(static_cast<std::size_t>(tokens), false);
    just[static_cast<std::size_t>(token)] = true;
    return just;
  };
  const auto check = [&](const std::string& what, const std::vector<bool>& got, const auto& depends) {
    const auto tokens = static_cast<std::int64_t>(got.size());
    for (std::int64_t i = 0; i < tokens; ++i) {
      bool must = depends(i), may = false;
      for (std::int64_t near = i - tile; near <= i + tile && !may; ++near) {
        may = near >= 0 && near < tokens && depends(near);
      }
      const bool is = got[static_cast<std::size_t>(i)];
      if ((must && !is) || (is && !may)) FAIL_CHECK(what, " ", i, std::string{is ? " is" : " is not"}, " NaN");
    }
  };
  plan how;
  how.queries = contiguous(shape.queries, 1);
  how.keys = contiguous(shape.keys, 1);
  // A key and its value.
  const std::int64_t key = shape.keys / 2;
  for (const bool of_value : {false, true}) {
    INFO(Kernel::name(), " with ", mask.name(), ", ", std::string{of_value ? "value " : "key "}, key, " is NaN");
    auto poisoned = p;
    auto& tensor = of_value ? poisoned.v : poisoned.k;
    tensor = with_value_in(tensor, one_of(shape.keys, key),
                           shape.key_heads * (of_value ? shape.value_dim : shape.key_dim), nan);
    const auto got = run<Kernel>(poisoned, mask, how);
    const auto sees = [&](std::int64_t query) { return mask.visible(query, key); };
    check("out", not_numbers(got.out, shape.queries, shape.query_heads * shape.value_dim), sees);
    check("grad_q", not_numbers(got.grad_q, shape.queries, shape.query_heads * shape.key_dim), sees);
  }
  // The gradient of one query's output.
  const std::int64_t query = shape.queries / 2;
  INFO(Kernel::name(), " with ", mask.name(), ", grad_out ", query, " is NaN");
  auto poisoned = p;
  poisoned.grad_out =
      with_value_in(poisoned.grad_out, one_of(shape.queries, query), shape.query_heads * shape.value_dim, nan);
  const auto got = run<Kernel>(poisoned, mask, how);
  const auto is_seen = [&](std::int64_t of) { return mask.visible(query, of); };
  check("grad_k", not_numbers(got.grad_k, shape.keys, shape.key_heads * shape.key_dim), is_seen);
  check("grad_v", not_numbers(got.grad_v, shape.keys, shape.key_heads * shape.value_dim), is_seen);
  check("grad_q", not_numbers(got.grad_q, shape.queries, shape.query_heads * shape.key_dim),
        [&](std::int64_t of) { return of == query; });
}

}  // namespace kernel_test
