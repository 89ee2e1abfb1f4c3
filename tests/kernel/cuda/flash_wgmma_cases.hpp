// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel by warpgroups against the oracle. On the emulated device every run is also a check
// of its use of shared memory, barriers, copies and products, since that device throws where they are wrong.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_flash.cuh"

#include "device/check.hpp"
#include "kernel/cuda/flash_plans.hpp"
#include "kernel/cuda/masks.hpp"
#include "kernel/cuda/tokens_not_finite.hpp"
#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace {

using cuda_test::any_mask;
using cuda_test::boundaries_at;
using cuda_test::cut;
using kernel_test::contiguous;
using kernel_test::plan;
using kernel_test::striped;
using orrery::bfloat16;
using orrery::float16;
using kind = any_mask::kind;

template <class T, int largest = 64>
using kernel = orrery::device_flash<T, largest, cuda_test::tested, orrery::device_instructions::wgmma>;

/// Probabilities and gradients of scores are rounded to T before they are operands: half a unit in the last place of
/// each, of which sums see the mean.
template <class T>
const double tolerance = oracle::tolerance<T> / 2;

template <class T, int largest = 64, class Mask>
void check(const oracle::problem& p, const Mask& mask, const plan& how) {
  cuda_test::check<kernel<T, largest>>(p, mask, how, tolerance<T>);
}

}  // namespace

TEST_CASE("wgmma: every mask, grouped heads, several tiles, shards in one call and in many") {
  const oracle::shape shape{1, 150, 410, 2, 1, 24, 40, 0.25};
  const auto p = oracle::random_problem<bfloat16>(shape, 1);
  const auto boundaries = boundaries_at({0, 20, 21, 160, 500});
  for (const any_mask& mask : cuda_test::every_mask(200, boundaries)) {
    plan how = cut(shape, 1, 2);
    check<bfloat16>(p, mask, how);
    how.queries = striped(shape.queries, 2, 5);
    how.one_call = true;
    check<bfloat16>(p, mask, how);
  }
}

namespace {

/// Head dimensions at a kernel's size, between two, and with another of the values.
void check_dims(std::int64_t key, std::int64_t value, std::uint64_t seed) {
  const oracle::shape shape{1, 70, 270, 1, 1, key, value, 1 / std::sqrt(static_cast<double>(key))};
  const auto p = oracle::random_problem<bfloat16>(shape, seed);
  check<bfloat16, 256>(p, any_mask{kind::causal, false, {seed % 2 == 0 ? 210 : 180}}, cut(shape, 1, 1));
}

}  // namespace

// A case for each, so that on a GPU one that hangs does not hide the others.
TEST_CASE("wgmma: head dimensions 64 and 64") { check_dims(64, 64, 21); }
TEST_CASE("wgmma: head dimensions 72 and 96") { check_dims(72, 96, 22); }
TEST_CASE("wgmma: head dimensions 96 and 96") { check_dims(96, 96, 23); }
TEST_CASE("wgmma: head dimensions 104 and 128") { check_dims(104, 128, 24); }
TEST_CASE("wgmma: head dimensions 128 and 32") { check_dims(128, 32, 25); }
TEST_CASE("wgmma: head dimensions 192 and 128") { check_dims(192, 128, 26); }
TEST_CASE("wgmma: head dimensions 136 and 8") { check_dims(136, 8, 27); }
TEST_CASE("wgmma: head dimensions 192 and 136") { check_dims(192, 136, 28); }
TEST_CASE("wgmma: head dimensions 256 and 256") { check_dims(256, 256, 29); }

TEST_CASE("wgmma: more tiles than stages, where grad_k and grad_v have kernels of their own") {
  for (const std::int64_t dim : {192, 256}) {
    const std::int64_t queries = dim == 192 ? 300 : 150;
    const oracle::shape shape{1, queries, 70, 1, 1, dim, dim == 192 ? 128 : dim, 0.07};
    const auto p = oracle::random_problem<bfloat16>(shape, 13);
    for (const any_mask& mask : {any_mask{}, any_mask{kind::holes}}) check<bfloat16, 256>(p, mask, cut(shape, 1, 1));
  }
}

TEST_CASE_TEMPLATE("wgmma: batches; strides and addresses that tensor copies fit, and that they do not", T, bfloat16,
                   float16) {
  cuda_test::check_batches<kernel<T>>({2, 45, 150, 2, 2, 16, 8, 0.3}, any_mask{kind::causal, false, {50}},
                                      tolerance<T>);
}

TEST_CASE("wgmma: more shards than a launch takes, of few tokens or none") {
  cuda_test::check_many_shards<kernel<bfloat16>>(tolerance<bfloat16>);
}

TEST_CASE("wgmma: scales of zero and below, large scores") {
  cuda_test::check_scales<kernel<bfloat16>>(170, any_mask{kind::causal, false, {100}}, tolerance<bfloat16>);
  cuda_test::check_shifted_scores<kernel<float16>>(tolerance<float16>);
}

TEST_CASE("wgmma: slices of heads: a key head that is shared with another slice") {
  cuda_test::check_slices_of_heads<kernel<bfloat16>>(tolerance<bfloat16>);
}

TEST_CASE("wgmma: a row whose lse is minus infinity contributes nothing, whatever the mask says") {
  cuda_test::check_rows_without_keys<kernel<bfloat16>>();
}

TEST_CASE("wgmma: rows that see nothing are complete: zero, and minus infinity") {
  cuda_test::check_nothing_seen<kernel<bfloat16>>();
}

namespace {

/// `good`, but with `poison` for the queries and the keys of these positions.
oracle::problem poisoned(const oracle::problem& good, double poison, std::int64_t first_query,
                         std::int64_t end_of_queries, std::int64_t first_key, std::int64_t end_of_keys) {
  oracle::problem p = good;
  const auto fill = [&](std::vector<double>& of, std::int64_t row, std::int64_t first, std::int64_t end) {
    std::fill(of.begin() + first * row, of.begin() + end * row, poison);
  };
  const oracle::shape& s = p.shape;
  fill(p.q, s.query_heads * s.key_dim, first_query, end_of_queries);
  fill(p.grad_out, s.query_heads * s.value_dim, first_query, end_of_queries);
  fill(p.k, s.key_heads * s.key_dim, first_key, end_of_keys);
  fill(p.v, s.key_heads * s.value_dim, first_key, end_of_keys);
  return p;
}

constexpr double poisons[] = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()};

/// What a run of `p` has in common with one of `good`: all but the delta of poisoned queries, which is their own.
void check_poisoned(const oracle::problem& p, const oracle::answer& expected, const any_mask& mask, const plan& how) {
  auto got = kernel_test::run<kernel<bfloat16>>(p, mask, how);
  const auto row = static_cast<std::size_t>(p.shape.value_dim);
  const auto heads = static_cast<std::size_t>(p.shape.query_heads), queries = got.delta.size() / heads;
  for (std::size_t i = 0; i < got.delta.size(); ++i) {
    if (!std::isfinite(p.grad_out[(i % queries * heads + i / queries) * row])) got.delta[i] = 0;
  }
  cuda_test::compare(p, how, mask.name() + (mask.blind ? ", blind" : ""), expected, got, tolerance<bfloat16>,
                     oracle::tolerance<float>);
}

}  // namespace

TEST_CASE("wgmma: infinities and NaN in what nobody sees, or who sees nothing, reach nobody") {
  // Queries see keys 40 positions before them and earlier: some queries see nothing, and some keys nobody, in tiles of
  // which others see and are seen.
  const auto good = oracle::random_problem<bfloat16>({1, 300, 300, 2, 1, 16, 24, 0.25}, 11);
  for (const bool blind : {false, true}) {
    const any_mask mask{kind::causal, blind, {-40}};
    const auto expected = oracle::solve(good, mask);
    for (const double poison : poisons) {
      plan how = cut(good.shape, 1, 1);
      check_poisoned(poisoned(good, poison, 0, 40, 260, 300), expected, mask, how);
      how.queries = how.keys = contiguous(300, 1);
      check_poisoned(poisoned(good, poison, 0, 40, 260, 300), expected, mask, how);
    }
  }
}

TEST_CASE("wgmma: nor do those of the tokens after a segment's end") {
  // More queries than keys, or keys than queries, of which those beyond 216 meet nobody. Shards have some of these as a
  // second piece, right behind a first one that ends within a tile.
  kernel_test::sharding gap{kernel_test::piece(0, 100), kernel_test::piece(100, 160)};
  gap[0].add({260, 40, 40, 1});
  for (const bool more_keys : {false, true}) {
    const oracle::shape shape{1, more_keys ? 200 : 300, more_keys ? 300 : 200, 1, 1, 16, 24, 0.25};
    const auto good = oracle::random_problem<bfloat16>(shape, 12);
    const any_mask mask{kind::band, false, {}, {17}};
    const auto expected = oracle::solve(good, mask);
    plan how;
    how.queries = more_keys ? contiguous(200, 1) : gap;
    how.keys = more_keys ? gap : contiguous(200, 1);
    for (const double poison : poisons) {
      const std::int64_t first_query = more_keys ? 200 : 217, first_key = more_keys ? 217 : 200;
      check_poisoned(poisoned(good, poison, first_query, shape.queries, first_key, shape.keys), expected, mask, how);
    }
  }
}

TEST_CASE("wgmma: nor do those of the tokens after a segment's end, where all of the segment is visible") {
  // Behind keys that all queries see, keys that none sees; behind queries that see all keys, queries that see none.
  for (const bool of_keys : {true, false}) {
    const oracle::shape shape{1, of_keys ? 150 : 240, of_keys ? 290 : 100, 1, 1, 16, 24, 0.25};
    const auto good = oracle::random_problem<bfloat16>(shape, 14);
    const any_mask mask{kind::causal, false, {of_keys ? 100 : -40}};
    const auto expected = oracle::solve(good, mask);
    plan how = cut(shape, 1, 1);
    if (of_keys) {
      how.keys = {kernel_test::piece(0, 100), kernel_test::piece(100, 150)};
      how.keys[0].add({250, 40, 40, 1});
    } else {
      how.queries = {kernel_test::piece(140, 100), kernel_test::piece(40, 100)};
      how.queries[0].add({0, 40, 40, 1});
    }
    for (const double poison : poisons) {
      const auto p = of_keys ? poisoned(good, poison, 0, 0, 250, 290) : poisoned(good, poison, 0, 40, 0, 0);
      check_poisoned(p, expected, mask, how);
    }
  }
}

TEST_CASE("wgmma: the same call twice gives the same bits; keys that a running result does not see leave them alone") {
  cuda_test::check_same_bits<kernel<bfloat16>>();
}

TEST_CASE("wgmma: scores that are NaN, infinite or overflow, in one of several tiles") {
  for (const bool of_infinite_keys : {false, true}) {
    cuda_test::check_scores_not_finite<kernel<bfloat16>>(tolerance<bfloat16>, of_infinite_keys);
  }
}

TEST_CASE("wgmma: tokens that are infinite or NaN reach the gradients of pairs with a weight, and no other") {
  cuda_test::check_tokens_not_finite<kernel<bfloat16>>({1, 150, 150, 1, 1, 8, 8, 0.25}, any_mask{},
                                                       tolerance<bfloat16>);
  cuda_test::check_tokens_not_finite<kernel<float16>>({1, 150, 150, 1, 1, 24, 40, -0.25},
                                                      any_mask{kind::causal, false, {20}}, tolerance<float16>);
  cuda_test::check_long_sums_not_finite<kernel<bfloat16>>(16 * tolerance<bfloat16>);  // of 20000 rounded terms
}

TEST_CASE("wgmma: sums over many tokens are as exact as those over few") {
  cuda_test::check_long_sums<kernel<float16>>();
}

namespace {

/// Other tiles, registers and turns than those of `device_flash_policies`.
struct other_tiles : orrery::device_flash_policies {
  static constexpr orrery::device_warpgroup_policy warpgroup_forward(int, int) {
    return {.columns = 64,
            .stages = 2,
            .producer_registers = 120,
            .compute_registers = 192,
            .take_turns = false,
            .overlap_softmax = false};
  }
  static constexpr orrery::device_warpgroup_policy warpgroup_backward(int, int, orrery::device_gradient) {
    return {.columns = 64, .stages = 2, .producer_registers = 104, .compute_registers = 200};
  }
};

/// 96 columns as they are, for a GPU to decide whether it multiplies them.
struct narrow_columns : orrery::device_flash_policies {
  static constexpr int warpgroup_columns(int dim) { return dim; }
};

}  // namespace

TEST_CASE("wgmma: 96 columns at once, chosen by a policy; by default they are 128, of which the last are zeros") {
  CHECK(orrery::device_flash_policies::warpgroup_columns(96) == 128);
  using narrow =
      orrery::device_flash<bfloat16, 96, cuda_test::tested, orrery::device_instructions::wgmma, narrow_columns>;
  const oracle::shape shape{1, 70, 270, 1, 1, 96, 88, 0.1};
  const auto p = oracle::random_problem<bfloat16>(shape, 7);
  cuda_test::check<narrow>(p, orrery::causal{200}, cut(shape, 1, 1), tolerance<bfloat16>);
}

TEST_CASE("wgmma: tiles of other sizes, chosen by a policy") {
  using chosen = orrery::device_flash<bfloat16, 64, cuda_test::tested, orrery::device_instructions::wgmma, other_tiles>;
  const oracle::shape shape{1, 150, 410, 2, 1, 24, 40, 0.25};
  const auto p = oracle::random_problem<bfloat16>(shape, 3);
  cuda_test::check<chosen>(p, orrery::causal{200}, cut(shape, 1, 2), tolerance<bfloat16>);
  CHECK(chosen::policies(24, 40).find(
            "forward by warpgroups: {.columns = 64, .stages = 2, .producer_registers = 120, .compute_registers = 192, "
            ".take_turns = false, .overlap_softmax = false}\n") != std::string::npos);
}
