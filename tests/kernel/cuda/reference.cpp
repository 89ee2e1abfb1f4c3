// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <limits>

#include <doctest/doctest.h>

#include "orrery/kernel/device_reference.cuh"
#include "orrery/mask/full.hpp"

#include "device/check.hpp"
#include "device/emulator.hpp"
#include "kernel/cuda/flash_plans.hpp"
#include "kernel/cuda/masks.hpp"
#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace {

using kernel_test::contiguous;
using kernel_test::order;
using kernel_test::plan;
using kernel_test::striped;
using kernel_test::zigzag;
using orrery::bfloat16;
using orrery::float16;

template <class T>
using kernel = orrery::device_reference<T, emulator::device>;

template <class T, class Mask>
void check(const oracle::problem& p, const Mask& mask, const plan& how) {
  cuda_test::check<kernel<T>>(p, mask, how, oracle::tolerance<typename kernel<T>::accumulator>);
}

}  // namespace

TEST_CASE_TEMPLATE("masks, layouts, grouped heads, several blocks a side in one call and in many", T, float, double,
                   bfloat16, float16) {
  const oracle::shape shape{2, 75, 83, 4, 2, 7, 5, 0.3};
  const auto p = oracle::random_problem<T>(shape, 1);
  const std::int64_t boundaries[] = {0, 20, 21, 60, 83};
  for (const bool one_call : {false, true}) {
    plan how;
    how.one_call = one_call;
    how.queries = zigzag(shape.queries, 3);
    how.keys = striped(shape.keys, 2, 5);
    check<T>(p, orrery::full{}, how);
    check<T>(p, orrery::causal{}, how);
    check<T>(p, orrery::causal{-30}, how);  // the first queries see nothing
    how.layout = order::sequence_batch_head;
    how.margin = 3;
    how.clear_first = true;
    how.queries = contiguous(shape.queries, 9);  // more than one launch takes
    how.keys = contiguous(shape.keys, 6);
    check<T>(p, cuda_test::band{17}, how);
    check<T>(p, cuda_test::holes{}, how);
    check<T>(p, cuda_test::packed{boundaries, 4}, how);
  }
}

TEST_CASE_TEMPLATE("fewer tokens than shards, no keys, no queries", T, double, bfloat16) {
  const oracle::shape shape{1, 3, 2, 2, 1, 4, 4, 0.5};
  plan how;
  how.queries = contiguous(shape.queries, 6);
  how.keys = contiguous(shape.keys, 5);
  for (const bool one_call : {false, true}) {
    how.one_call = one_call;
    check<T>(oracle::random_problem<T>(shape, 2), orrery::causal{}, how);
  }
  how.one_call = true;
  how.keys.clear();
  check<T>(oracle::random_problem<T>({1, 3, 0, 2, 1, 4, 4, 0.5}, 3), orrery::full{}, how);
  how.keys = contiguous(5, 2);
  how.queries.clear();
  check<T>(oracle::random_problem<T>({1, 0, 5, 2, 1, 4, 4, 0.5}, 4), orrery::full{}, how);
}

TEST_CASE("large scores, scales of zero and below") {
  plan how;
  how.queries = contiguous(20, 1);
  how.keys = contiguous(30, 2);
  for (const double scale : {1.0, 0.0, -0.5}) {
    const auto p = oracle::random_problem<double>({1, 20, 30, 1, 1, 16, 8, scale}, 5, 30.0);
    const double tolerance = oracle::tolerance<double> * 16 * 30 * 30;
    cuda_test::check<kernel<double>>(p, orrery::causal{}, how, tolerance);
  }
}

TEST_CASE("masks that a launch cannot copy are refused") {
  struct by_reference : orrery::full {
    std::string words;
  };
  CHECK(kernel<float>::supports<orrery::causal>);
  CHECK(!kernel<float>::supports<by_reference>);
}

TEST_CASE_TEMPLATE("scores that are NaN, infinite or overflow, in one of several blocks", T, float, double, bfloat16) {
  for (const bool of_infinite_keys : {false, true}) {
    cuda_test::check_scores_not_finite<kernel<T>, orrery::full>(1e-6, of_infinite_keys);
  }
}
