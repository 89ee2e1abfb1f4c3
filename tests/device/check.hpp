// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "kernel/problem.hpp"
#include "support/oracle.hpp"

/// A device kernel's forward and backward against the oracle. Whatever the storage, log-sum-exp are sums of products
/// that are exact in float, and as precise.
namespace cuda_test {

template <class A>
void compare(const oracle::problem& p, const kernel_test::plan& how, const std::string& what,
             const oracle::answer& expected, const kernel_test::result<A>& got, double tolerance,
             double lse_tolerance) {
  INFO(what, ", queries ", p.shape.queries, ", keys ", p.shape.keys, ", heads ", p.shape.query_heads, "/",
       p.shape.key_heads, ", dims ", p.shape.key_dim, "/", p.shape.value_dim, ", shards ", how.queries.size(), "/",
       how.keys.size(), ", one call ", how.one_call);
  const auto within = [&](double bound, const char* name, const std::vector<double>& want, const std::vector<A>& have) {
    const oracle::difference d = oracle::compare(want, have);
    INFO(name, ": ", d.text());
    CHECK(d.error <= bound);
  };
  const auto one = [&](const char* name, const std::vector<double>& want, const std::vector<A>& have) {
    within(tolerance, name, want, have);
  };
  one("out", expected.out, got.out);
  within((std::min)(tolerance, lse_tolerance), "lse", expected.lse, got.lse);
  one("delta", expected.delta, got.delta);
  one("grad_q", expected.grad_q, got.grad_q);
  one("grad_k", expected.grad_k, got.grad_k);
  one("grad_v", expected.grad_v, got.grad_v);
  CHECK(got.stayed_inside);
}

template <class Kernel, class Mask>
void check(const oracle::problem& p, const Mask& mask, const kernel_test::plan& how, double tolerance,
           double lse_tolerance = oracle::tolerance<float>) {
  compare(p, how, Kernel::name() + " with " + std::string{mask.name()}, oracle::solve(p, mask),
          kernel_test::run<Kernel>(p, mask, how), tolerance, lse_tolerance);
}

}  // namespace cuda_test
