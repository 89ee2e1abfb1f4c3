// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "kernel/cuda/flash_plans.hpp"
#include "kernel/cuda/masks.hpp"
#include "kernel/problem.hpp"
#include "support/oracle.hpp"

/// Queries, keys and gradients that are infinite or NaN, for kernels of devices.
namespace cuda_test {

/// What happens to a random problem of one batch and one head, and one of its tokens.
struct not_finite_token {
  std::string name;
  void (*change)(oracle::problem& p, std::size_t token);
};

/// Makes the first elements of all rows positive.
inline void make_first_positive(std::vector<double>& rows, std::int64_t dim) {
  for (std::size_t i = 0; i < rows.size(); i += static_cast<std::size_t>(dim)) rows[i] = std::abs(rows[i]) + 0.25;
}

inline const not_finite_token not_finite_tokens[] = {
    {"a key is -infinity, and so are all of its scores",
     [](oracle::problem& p, std::size_t token) {
       make_first_positive(p.q, p.shape.key_dim);
       p.k[token * static_cast<std::size_t>(p.shape.key_dim)] = -std::numeric_limits<double>::infinity();
     }},
    {"a key is infinite: its scores are +infinity and -infinity",
     [](oracle::problem& p, std::size_t token) {
       p.k[token * static_cast<std::size_t>(p.shape.key_dim)] = std::numeric_limits<double>::infinity();
     }},
    {"a key is NaN",
     [](oracle::problem& p, std::size_t token) {
       p.k[token * static_cast<std::size_t>(p.shape.key_dim) + 1] = std::numeric_limits<double>::quiet_NaN();
     }},
    {"all keys from one on are -infinity",
     [](oracle::problem& p, std::size_t token) {
       make_first_positive(p.q, p.shape.key_dim);
       const auto dim = static_cast<std::size_t>(p.shape.key_dim);
       for (std::size_t i = token * dim; i < p.k.size(); i += dim) p.k[i] = -std::numeric_limits<double>::infinity();
     }},
    {"a query is -infinity and sees nothing, and the gradient of its output is NaN",
     [](oracle::problem& p, std::size_t token) {
       make_first_positive(p.k, p.shape.key_dim);
       p.q[token * static_cast<std::size_t>(p.shape.key_dim)] = -std::numeric_limits<double>::infinity();
       p.grad_out[token * static_cast<std::size_t>(p.shape.value_dim)] = std::numeric_limits<double>::quiet_NaN();
     }},
    {"a query is infinite: its scores are +infinity and -infinity",
     [](oracle::problem& p, std::size_t token) {
       p.q[token * static_cast<std::size_t>(p.shape.key_dim)] = std::numeric_limits<double>::infinity();
     }},
    {"a gradient is NaN",
     [](oracle::problem& p, std::size_t token) {
       p.grad_out[token * static_cast<std::size_t>(p.shape.value_dim) + 2] = std::numeric_limits<double>::quiet_NaN();
     }},
    {"gradients are infinite, of both signs",
     [](oracle::problem& p, std::size_t token) {
       const std::size_t at = token * static_cast<std::size_t>(p.shape.value_dim);
       p.grad_out[at] = p.grad_out[at + 1] = std::numeric_limits<double>::infinity();
       p.grad_out[at + 3] = -std::numeric_limits<double>::infinity();
     }},
};

/// The larger of 1 and the largest finite number.
[[nodiscard]] inline double size_of(const std::vector<double>& all) {
  double largest = 1;
  for (const double value : all) {
    if (std::isfinite(value)) largest = (std::max)(largest, std::abs(value));
  }
  return largest;
}

/// Checks forward and backward with each of these, at one of the first tokens or of the last ones, of which there are
/// as many on both sides, in one call or in some.
template <class Kernel, class Mask>
void check_tokens_not_finite(const oracle::shape& shape, const Mask& mask, double tolerance) {
  int cases = 0;
  for (const not_finite_token& one : not_finite_tokens) {
    const std::int64_t token = cases % 2 == 0 ? shape.keys - 2 : 3;
    const int shards = cases % 3 == 0 ? 2 : 1;
    ++cases;
    auto p = oracle::random_problem<typename Kernel::storage>(shape, 80);
    one.change(p, static_cast<std::size_t>(token));
    const auto expected = oracle::solve(p, mask);
    INFO(Kernel::name(), ", ", one.name, ": token ", token, ", shards ", shards);
    const auto got = kernel_test::run<Kernel>(p, mask, cut(shape, shards, shards));
    check_numbers("out", expected.out, got.out, tolerance);
    check_numbers("lse", expected.lse, got.lse, tolerance);
    check_numbers("grad_q", expected.grad_q, got.grad_q, tolerance * size_of(expected.grad_q));
    check_numbers("grad_k", expected.grad_k, got.grad_k, tolerance * size_of(expected.grad_k));
    check_numbers("grad_v", expected.grad_v, got.grad_v, tolerance * size_of(expected.grad_v));
  }
}

/// Checks gradients that sum up more tokens than a kernel's registers do at once, of which one, in the second of three
/// such sums, is -infinity and seen by nobody, or sees nobody.
template <class Kernel>
void check_long_sums_not_finite(double tolerance) {
  for (const bool many_keys : {true, false}) {
    const oracle::shape shape{1, many_keys ? 3 : 20000, many_keys ? 20000 : 3, 1, 1, 1, 2, 1.0};
    auto p = oracle::random_problem<typename Kernel::storage>(shape, 81);
    make_first_positive(many_keys ? p.q : p.k, 1);
    (many_keys ? p.k : p.q)[9000] = -std::numeric_limits<double>::infinity();
    if (!many_keys) p.grad_out[18000] = std::numeric_limits<double>::quiet_NaN();
    const auto expected = oracle::solve(p, [](std::int64_t, std::int64_t) { return true; });
    kernel_test::plan how = cut(shape, 1, 1);
    how.clear_first = many_keys;  // results are added to, or written
    INFO(Kernel::name(), std::string{many_keys ? ", many keys" : ", many queries"});
    const auto got = kernel_test::run<Kernel>(p, any_mask{}, how);
    check_numbers("grad_q", expected.grad_q, got.grad_q, tolerance * size_of(expected.grad_q));
    check_numbers("grad_k", expected.grad_k, got.grad_k, tolerance * size_of(expected.grad_k));
    check_numbers("grad_v", expected.grad_v, got.grad_v, tolerance * size_of(expected.grad_v));
  }
}

}  // namespace cuda_test
