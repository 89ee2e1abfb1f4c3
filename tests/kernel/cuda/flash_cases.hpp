// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel against the oracle. Every run is also a check of its use of shared memory, barriers and
// copies: the emulated device throws where they are wrong.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <doctest/doctest.h>

#include "orrery/kernel/device_flash.cuh"

#include "device/check.hpp"
#include "kernel/cuda/flash_plans.hpp"
#include "kernel/cuda/masks.hpp"
#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace {

using cuda_test::any_mask;
using cuda_test::boundaries_at;
using cuda_test::cut;
using kernel_test::contiguous;
using kernel_test::order;
using kernel_test::plan;
using kernel_test::striped;
using kernel_test::zigzag;
using orrery::bfloat16;
using orrery::float16;
using kind = any_mask::kind;

template <class T, int largest = 64>
using kernel = orrery::device_flash<T, largest, cuda_test::tested>;

/// Probabilities and gradients of scores are rounded to T before they are operands: half a unit in the last place of
/// each, of which sums see the mean.
template <class T>
const double tolerance = oracle::tolerance<T> / 2;

template <class T, int largest = 64, class Mask>
void check(const oracle::problem& p, const Mask& mask, const plan& how) {
  cuda_test::check<kernel<T, largest>>(p, mask, how, tolerance<T>);
}

}  // namespace

TEST_CASE("every mask, grouped heads, several tiles, shards in one call and in many") {
  const oracle::shape shape{1, 150, 135, 2, 1, 24, 40, 0.25};
  const auto p = oracle::random_problem<bfloat16>(shape, 1);
  const auto boundaries = boundaries_at({0, 20, 21, 60, 200});
  for (const any_mask& mask : cuda_test::every_mask(0, boundaries)) {
    plan how = cut(shape, 1, 1);
    check<bfloat16>(p, mask, how);
    how.queries = striped(shape.queries, 2, 5);
    how.one_call = true;
    check<bfloat16>(p, mask, how);
  }
}

TEST_CASE("every head dimension: at its kernel's size, between two, with another of the values") {
  struct dims {
    std::int64_t key, value;
  };
  std::uint64_t seed = 20;
  for (const dims d : {dims{64, 64}, {72, 96}, {100, 128}, {128, 30}, {192, 128}, {130, 8}, {192, 136}, {256, 256}}) {
    const oracle::shape shape{1, 70, 75, 2, 1, d.key, d.value, 1 / std::sqrt(static_cast<double>(d.key))};
    const auto p = oracle::random_problem<bfloat16>(shape, ++seed);
    check<bfloat16, 256>(p, orrery::causal{seed % 2 == 0 ? 10 : -5}, cut(shape, 1, 1));
  }
}

TEST_CASE_TEMPLATE("batches; strides and addresses that vectors fit, and that they do not", T, bfloat16, float16) {
  const oracle::shape shape{2, 45, 58, 1, 1, 16, 12, 0.3};
  const auto p = oracle::random_problem<T>(shape, 2);
  plan how = cut(shape, 1, 2);
  for (const order layout : {order::batch_sequence_head, order::sequence_batch_head, order::batch_head_sequence}) {
    how.layout = layout;
    how.margin = layout == order::batch_sequence_head ? 3 : layout == order::sequence_batch_head ? 8 : 0;
    how.clear_first = how.margin == 8;
    check<T>(p, orrery::causal{5}, how);
  }
}

TEST_CASE("more shards than a launch takes, of few tokens or none") {
  const oracle::shape shape{1, 5, 4, 1, 1, 8, 8, 0.5};
  const auto p = oracle::random_problem<bfloat16>(shape, 3);
  plan how;
  how.queries = contiguous(shape.queries, 6);
  how.keys = contiguous(shape.keys, 5);
  for (const bool one_call : {false, true}) {
    how.one_call = one_call;
    check<bfloat16>(p, orrery::causal{}, how);
  }
  how.one_call = true;
  how.keys.clear();
  check<bfloat16>(oracle::random_problem<bfloat16>({1, 5, 0, 1, 1, 8, 8, 0.5}, 4), orrery::causal{}, how);
  how.keys = contiguous(7, 2);
  how.queries.clear();
  check<bfloat16>(oracle::random_problem<bfloat16>({1, 0, 7, 1, 1, 8, 8, 0.5}, 5), orrery::causal{}, how);
}

TEST_CASE("slices of heads: a key head that is shared with another slice") {
  cuda_test::check_slices_of_heads<kernel<bfloat16>>(tolerance<bfloat16>);
}

TEST_CASE("scales of zero and below, large scores") {
  for (const double scale : {0.0, -0.5}) {
    const oracle::shape shape{1, 30, 70, 1, 1, 8, 8, scale};
    check<bfloat16>(oracle::random_problem<bfloat16>(shape, 7), orrery::causal{}, cut(shape, 1, 2));
  }
  // Scores up to several hundred: a rounding of one of them is |score| roundings of its exponential.
  const oracle::shape shape{1, 40, 90, 1, 1, 32, 16, 1.0};
  auto p = oracle::random_problem<float16>(shape, 8, 6.0);
  const double largest_score = 32 * 6 * 6;
  cuda_test::check<kernel<float16>>(p, orrery::causal{100}, cut(shape, 1, 3),
                                    tolerance<float16> + oracle::tolerance<float> * largest_score,
                                    oracle::tolerance<float> * largest_score);
  // One shift of all scores far above and below what exp can represent; a tile that is not full of keys among them.
  for (const double shift : {64.0, -64.0}) {
    for (std::size_t i = 0; i < p.q.size(); i += 32) p.q[i] = 64;
    for (std::size_t i = 0; i < p.k.size(); i += 32) p.k[i] = shift;
    cuda_test::check<kernel<float16>>(p, orrery::causal{100}, cut(shape, 1, 1),
                                      tolerance<float16> + oracle::tolerance<float> * 8192,
                                      oracle::tolerance<float> * 8192);
  }
}

TEST_CASE("rows that see nothing are complete: zero, and minus infinity") {
  const oracle::shape shape{1, 40, 40, 1, 1, 8, 8, 1.0};
  const auto p = oracle::random_problem<bfloat16>(shape, 9);
  for (const bool one_call : {false, true}) {
    plan how = cut(shape, 2, 2);  // results are NaN beforehand
    how.one_call = one_call;
    const auto got = kernel_test::run<kernel<bfloat16>>(p, any_mask{kind::causal, false, {-1000}}, how);
    for (const float value : got.out) CHECK(value == 0);
    for (const float value : got.lse) CHECK(value == -std::numeric_limits<float>::infinity());
    for (const float value : got.grad_q) CHECK(value == 0);
    for (const float value : got.grad_k) CHECK(value == 0);
    for (const float value : got.grad_v) CHECK(value == 0);
  }
}

TEST_CASE("backward: a row whose lse is minus infinity contributes nothing, whatever the mask says") {
  cuda_test::check_rows_without_keys<kernel<bfloat16>>();
}

TEST_CASE("the same call twice gives the same bits; keys that a running result does not see leave them alone") {
  const oracle::shape shape{1, 64, 128, 2, 1, 16, 16, 0.25};
  const auto p = oracle::random_problem<bfloat16>(shape, 10);
  plan seen_only = cut(shape, 1, 1);
  seen_only.keys = {kernel_test::piece(0, 64)};
  plan both = seen_only;
  // Calls go through the keys from the last to the first: the visible half, then the half that nobody sees, for which
  // the interval test of one kind skips the tile and that of the other does not.
  both.keys = {kernel_test::piece(64, 64), kernel_test::piece(0, 64)};
  const auto halves = boundaries_at({0, 64, 128});
  const auto check_alone = [&](const auto& mask) {
    const auto one = kernel_test::run<kernel<bfloat16>>(p, mask, seen_only);
    const auto same = kernel_test::run<kernel<bfloat16>>(p, mask, seen_only);
    const auto other = kernel_test::run<kernel<bfloat16>>(p, mask, both);
    CHECK(one.out == same.out);
    CHECK(one.grad_q == same.grad_q);
    CHECK(one.grad_k == same.grad_k);
    CHECK(one.grad_v == same.grad_v);
    CHECK(one.out == other.out);
    CHECK(one.lse == other.lse);
    CHECK(one.grad_q == other.grad_q);
  };
  check_alone(any_mask{kind::packed, false, {}, {}, {halves.data(), 2}});
  check_alone(any_mask{kind::causal, true});
}

TEST_CASE("scores that are NaN or overflow, in one of several tiles") {
  cuda_test::check_scores_not_finite<kernel<bfloat16>>(tolerance<bfloat16>, false);
}

TEST_CASE("sums over many tokens are as exact as those over few") { cuda_test::check_long_sums<kernel<float16>>(); }
