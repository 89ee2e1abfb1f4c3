// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel against the oracle. Every run is also a check of its use of shared memory, barriers and
// copies: the emulated device throws where they are wrong.
#include <cmath>
#include <cstdint>

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
using kernel_test::plan;
using kernel_test::striped;
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
  cuda_test::check_batches<kernel<T>>({2, 45, 58, 1, 1, 16, 12, 0.3}, any_mask{kind::causal, false, {5}}, tolerance<T>);
}

TEST_CASE("more shards than a launch takes, of few tokens or none") {
  cuda_test::check_many_shards<kernel<bfloat16>>(tolerance<bfloat16>);
}

TEST_CASE("slices of heads: a key head that is shared with another slice") {
  cuda_test::check_slices_of_heads<kernel<bfloat16>>(tolerance<bfloat16>);
}

TEST_CASE("scales of zero and below, large scores") {
  cuda_test::check_scales<kernel<bfloat16>>(70, any_mask{kind::causal}, tolerance<bfloat16>);
  // A rounding of a score is |score| roundings of its exponential.
  const oracle::shape shape{1, 40, 90, 1, 1, 32, 16, 1.0};
  const double largest_score = 32 * 6 * 6;
  cuda_test::check<kernel<float16>>(oracle::random_problem<float16>(shape, 8, 6.0), orrery::causal{100},
                                    cut(shape, 1, 3), tolerance<float16> + oracle::tolerance<float> * largest_score,
                                    oracle::tolerance<float> * largest_score);
  cuda_test::check_shifted_scores<kernel<float16>>(tolerance<float16>);
}

TEST_CASE("rows that see nothing are complete: zero, and minus infinity") {
  cuda_test::check_nothing_seen<kernel<bfloat16>>();
}

TEST_CASE("backward: a row whose lse is minus infinity contributes nothing, whatever the mask says") {
  cuda_test::check_rows_without_keys<kernel<bfloat16>>();
}

TEST_CASE("the same call twice gives the same bits; keys that a running result does not see leave them alone") {
  cuda_test::check_same_bits<kernel<bfloat16>>();
}

TEST_CASE("scores that are NaN, infinite or overflow, in one of several tiles") {
  for (const bool of_infinite_keys : {false, true}) {
    cuda_test::check_scores_not_finite<kernel<bfloat16>>(tolerance<bfloat16>, of_infinite_keys);
  }
}

TEST_CASE("tokens that are infinite or NaN reach the gradients of pairs with a weight, and no other") {
  cuda_test::check_tokens_not_finite<kernel<bfloat16>>({1, 150, 150, 1, 1, 8, 8, 0.25}, any_mask{},
                                                       tolerance<bfloat16>);
  cuda_test::check_tokens_not_finite<kernel<float16>>({1, 150, 150, 1, 1, 24, 40, -0.25},
                                                      any_mask{kind::causal, false, {20}}, tolerance<float16>);
  cuda_test::check_long_sums_not_finite<kernel<bfloat16>>(16 * tolerance<bfloat16>);  // of 20000 rounded terms
}

TEST_CASE("sums over many tokens are as exact as those over few") { cuda_test::check_long_sums<kernel<float16>>(); }

namespace {

// Other tiles than those of `device_flash_policies`.
struct short_tiles : orrery::device_flash_policies {
  static constexpr orrery::device_tile_policy forward(int, int) { return {.warps = 2, .row_tiles = 1, .columns = 32}; }
  static constexpr orrery::device_tile_policy backward(int, int, orrery::device_gradient) {
    return {.warps = 2, .row_tiles = 1, .columns = 32};
  }
};
struct long_tiles : orrery::device_flash_policies {
  static constexpr orrery::device_tile_policy forward(int, int) { return {.warps = 4, .row_tiles = 2, .columns = 128}; }
  static constexpr orrery::device_tile_policy backward(int, int, orrery::device_gradient) {
    return {.warps = 4, .row_tiles = 1, .columns = 64, .blocks_at_once = 1};
  }
};

template <class Policies>
using kernel_with =
    orrery::device_flash<bfloat16, 64, cuda_test::tested, orrery::device_instructions::mma_sync, Policies>;

}  // namespace

TEST_CASE_TEMPLATE("tiles of other sizes, chosen by a policy", Policies, short_tiles, long_tiles) {
  const oracle::shape shape{1, 150, 135, 2, 1, 24, 40, 0.25};
  const auto p = oracle::random_problem<bfloat16>(shape, 5);
  plan how = cut(shape, 1, 1);
  how.queries = striped(shape.queries, 2, 5);
  for (const orrery::causal mask : {orrery::causal{0}, orrery::causal{-30}})
    cuda_test::check<kernel_with<Policies>>(p, mask, how, tolerance<bfloat16>);
}

TEST_CASE("policies print") {
  CHECK(kernel<bfloat16, 256>::policies(64, 64) ==
        "forward: {.warps = 4, .row_tiles = 2, .columns = 64, .blocks_at_once = 0}\n"
        "backward: {.warps = 4, .row_tiles = 1, .columns = 64, .blocks_at_once = 3}\n"
        "backward: {.warps = 8, .row_tiles = 1, .columns = 64, .blocks_at_once = 0}\n");
  CHECK(kernel<bfloat16, 256>::policies(192, 128) ==
        "forward: {.warps = 4, .row_tiles = 1, .columns = 64, .blocks_at_once = 3}\n"
        "backward: {.warps = 4, .row_tiles = 1, .columns = 32, .blocks_at_once = 0}\n"
        "backward: {.warps = 4, .row_tiles = 1, .columns = 32, .blocks_at_once = 0}\n");
  CHECK(kernel_with<short_tiles>::policies(8, 8) ==
        "forward: {.warps = 2, .row_tiles = 1, .columns = 32, .blocks_at_once = 0}\n"
        "backward: {.warps = 2, .row_tiles = 1, .columns = 32, .blocks_at_once = 0}\n"
        "backward: {.warps = 2, .row_tiles = 1, .columns = 32, .blocks_at_once = 0}\n");
}
