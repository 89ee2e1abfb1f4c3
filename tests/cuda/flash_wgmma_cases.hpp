// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel's forward by warpgroups against the oracle. On the emulated device every run is also a check
// of its use of shared memory, barriers, copies and products, since that device throws where they are wrong.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_flash.cuh"

#include "cuda/masks.hpp"
#include "kernel/problem.hpp"
#include "oracle.hpp"

namespace {

using cuda_test::any_mask;
using kernel_test::contiguous;
using kernel_test::order;
using kernel_test::plan;
using kernel_test::striped;
using kernel_test::zigzag;
using orrery::bfloat16;
using orrery::float16;
using kind = any_mask::kind;

/// Its backward is that of mma.sync, which has tests of its own.
template <class T, int largest = 64>
struct kernel : orrery::device_flash<T, largest, cuda_test::tested, orrery::device_instructions::wgmma> {
  template <class... Arguments>
  static void backward(const Arguments&...) {}
};

/// Probabilities are rounded to T before they weigh values: half a unit in the last place of each, of which sums see
/// the mean.
template <class T>
const double tolerance = oracle::tolerance<T> / 2;

template <class T, int largest = 64, class Mask>
void check(const oracle::problem& p, const Mask& mask, const plan& how, double bound = tolerance<T>,
           double lse_bound = oracle::tolerance<float>) {
  INFO(std::string{mask.name()}, ", queries ", p.shape.queries, ", keys ", p.shape.keys, ", heads ",
       p.shape.query_heads, "/", p.shape.key_heads, ", dims ", p.shape.key_dim, "/", p.shape.value_dim, ", shards ",
       how.queries.size(), "/", how.keys.size(), ", one call ", how.one_call);
  const auto got = kernel_test::run<kernel<T, largest>>(p, mask, how);
  const auto expected = oracle::solve(p, mask);
  const oracle::difference out = oracle::compare(expected.out, got.out);
  const oracle::difference lse = oracle::compare(expected.lse, got.lse);
  INFO("out: ", out.text(), "; lse: ", lse.text());
  CHECK(out.error <= bound);
  CHECK(lse.error <= lse_bound);
  CHECK(got.stayed_inside);
}

/// In memory that the kernel can read.
std::pmr::vector<std::int64_t> boundaries_at(std::initializer_list<std::int64_t> positions) {
  return std::pmr::vector<std::int64_t>(positions, kernel_test::home.memory);
}

plan cut(const oracle::shape& shape, int queries, int keys) {
  plan how;
  how.queries = zigzag(shape.queries, queries);
  how.keys = zigzag(shape.keys, keys);
  return how;
}

}  // namespace

TEST_CASE("wgmma: every mask, grouped heads, several tiles, shards in one call and in many") {
  const oracle::shape shape{1, 150, 410, 2, 1, 24, 40, 0.25};
  const auto p = oracle::random_problem<bfloat16>(shape, 1);
  const auto boundaries = boundaries_at({0, 20, 21, 160, 500});
  const any_mask every_kind[] = {{},
                                 {kind::causal, false, {200}},
                                 {kind::causal, false, {-30}},  // the first queries see nothing
                                 {kind::band, false, {}, {17}},
                                 {kind::holes},
                                 {kind::packed, false, {}, {}, {boundaries.data(), 4}}};
  for (const any_mask& mask : every_kind) {
    plan how = cut(shape, 1, 2);
    check<bfloat16>(p, mask, how);
    how.queries = striped(shape.queries, 2, 5);
    how.one_call = true;
    check<bfloat16>(p, mask, how);
  }
}

TEST_CASE("wgmma: every head dimension: at its kernel's size, between two, with another of the values") {
  struct dims {
    std::int64_t key, value;
  };
  std::uint64_t seed = 20;
  for (const dims d :
       {dims{64, 64}, {72, 96}, {96, 96}, {104, 128}, {128, 32}, {192, 128}, {136, 8}, {192, 136}, {256, 256}}) {
    const oracle::shape shape{1, 70, 270, 1, 1, d.key, d.value, 1 / std::sqrt(static_cast<double>(d.key))};
    const auto p = oracle::random_problem<bfloat16>(shape, ++seed);
    check<bfloat16, 256>(p, any_mask{kind::causal, false, {seed % 2 == 0 ? 210 : 180}}, cut(shape, 1, 1));
  }
}

TEST_CASE_TEMPLATE("wgmma: batches; strides and addresses that tensor copies fit, and that they do not", T, bfloat16,
                   float16) {
  const oracle::shape shape{2, 45, 150, 2, 2, 16, 8, 0.3};
  const auto p = oracle::random_problem<T>(shape, 2);
  plan how = cut(shape, 1, 2);
  for (const order layout : {order::batch_sequence_head, order::sequence_batch_head, order::batch_head_sequence}) {
    how.layout = layout;
    how.margin = layout == order::batch_sequence_head ? 3 : layout == order::sequence_batch_head ? 8 : 0;
    how.clear_first = how.margin == 8;
    check<T>(p, any_mask{kind::causal, false, {50}}, how);
  }
}

TEST_CASE("wgmma: more shards than a launch takes, of few tokens or none") {
  const oracle::shape shape{1, 5, 4, 1, 1, 8, 8, 0.5};
  const auto p = oracle::random_problem<bfloat16>(shape, 3);
  plan how;
  how.queries = contiguous(shape.queries, 6);
  how.keys = contiguous(shape.keys, 5);
  for (const bool one_call : {false, true}) {
    how.one_call = one_call;
    check<bfloat16>(p, any_mask{kind::causal}, how);
  }
  how.one_call = true;
  how.keys.clear();
  check<bfloat16>(oracle::random_problem<bfloat16>({1, 5, 0, 1, 1, 8, 8, 0.5}, 4), any_mask{kind::causal}, how);
}

TEST_CASE("wgmma: scales of zero and below, large scores") {
  for (const double scale : {0.0, -0.5}) {
    const oracle::shape shape{1, 30, 170, 1, 1, 8, 8, scale};
    check<bfloat16>(oracle::random_problem<bfloat16>(shape, 7), any_mask{kind::causal, false, {100}}, cut(shape, 1, 2));
  }
  // One shift of all scores far above and below what exp can represent; a tile that is not full of keys among them.
  const oracle::shape shape{1, 40, 190, 1, 1, 32, 16, 1.0};
  auto p = oracle::random_problem<float16>(shape, 8, 6.0);
  for (const double shift : {64.0, -64.0}) {
    for (std::size_t i = 0; i < p.q.size(); i += 32) p.q[i] = 64;
    for (std::size_t i = 0; i < p.k.size(); i += 32) p.k[i] = shift;
    check<float16>(p, any_mask{kind::causal, false, {170}}, cut(shape, 1, 1),
                   tolerance<float16> + oracle::tolerance<float> * 8192, oracle::tolerance<float> * 8192);
  }
}

TEST_CASE("wgmma: rows that see nothing are complete: zero, and minus infinity") {
  const oracle::shape shape{1, 40, 40, 1, 1, 8, 8, 1.0};
  const auto p = oracle::random_problem<bfloat16>(shape, 9);
  for (const any_mask& mask : {any_mask{kind::causal, false, {-1000}}, any_mask{kind::causal, true, {-1000}}}) {
    const auto got = kernel_test::run<kernel<bfloat16>>(p, mask, cut(shape, 2, 2));  // results are NaN beforehand
    CHECK(std::all_of(got.out.begin(), got.out.end(), [](float value) { return value == 0; }));
    CHECK(std::all_of(got.lse.begin(), got.lse.end(),
                      [](float value) { return value == -std::numeric_limits<float>::infinity(); }));
  }
}

TEST_CASE("wgmma: the same call twice gives the same bits; keys that a running result does not see leave them alone") {
  const oracle::shape shape{1, 64, 128, 2, 1, 16, 16, 0.25};
  const auto p = oracle::random_problem<bfloat16>(shape, 10);
  plan seen_only = cut(shape, 1, 1);
  seen_only.keys = {kernel_test::piece(0, 64)};
  plan both = seen_only;
  // Calls go through the keys from the last to the first: the visible half, then the half that nobody sees, for which
  // the interval test of one kind skips the tile and that of the other does not.
  both.keys = {kernel_test::piece(64, 64), kernel_test::piece(0, 64)};
  const auto halves = boundaries_at({0, 64, 128});
  for (const any_mask& mask :
       {any_mask{kind::packed, false, {}, {}, {halves.data(), 2}}, any_mask{kind::causal, true}}) {
    const auto one = kernel_test::run<kernel<bfloat16>>(p, mask, seen_only);
    const auto same = kernel_test::run<kernel<bfloat16>>(p, mask, seen_only);
    const auto other = kernel_test::run<kernel<bfloat16>>(p, mask, both);
    CHECK(one.out == same.out);
    CHECK(one.lse == same.lse);
    CHECK(one.out == other.out);
    CHECK(one.lse == other.lse);
  }
}
