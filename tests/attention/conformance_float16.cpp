// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// 16-bit storage through the operator: right to its own rounding, and no less exact on many ranks than on one.
#include <algorithm>
#include <array>
#include <cstddef>
#include <mutex>
#include <vector>

#include "orrery/kernel/reference.hpp"

#include "attention/matrix.hpp"

namespace conformance_float16_test {

using attention_test::check;
using orrery::bfloat16;
using orrery::flash;
using orrery::float16;

namespace {

constexpr orrery::attention_shape shape{
    .batch = 2, .length = 101, .query_heads = 6, .key_heads = 3, .head_dim = 24, .value_dim = 19};

/// Largest errors against the oracle of out, grad_q, grad_k and grad_v, over all ranks.
template <class Topology, class Kernel>
std::array<double, 4> errors(int world) {
  const auto p = oracle::random_problem<typename Kernel::storage>(conformance::oracle_shape(shape), 7);
  const oracle::answer a = oracle::solve(p, orrery::causal{});
  std::array<double, 4> worst{};
  std::mutex mutex;
  orrery::threads::run(world, [&](auto& on) {
    orrery::attention<Topology, Kernel> attend{on, shape, orrery::causal{}, orrery::zigzag{}};
    const orrery::token_positions& at = attend.query_positions();
    conformance::rank_tensors<Kernel> mine{p, at, at, {}};
    mine.forward(attend);
    mine.backward(attend);
    const oracle::shape& s = p.shape;
    const auto error = [&](const std::vector<double>& whole, std::int64_t heads, std::int64_t dim, const auto& got) {
      return oracle::compare(conformance::shard_of(whole, s.batch, s.queries, heads, dim, at), conformance::values(got))
          .error;
    };
    const std::array<double, 4> here{
        error(a.out, s.query_heads, s.value_dim, mine.out), error(a.grad_q, s.query_heads, s.key_dim, mine.grad_q),
        error(a.grad_k, s.key_heads, s.key_dim, mine.grad_k), error(a.grad_v, s.key_heads, s.value_dim, mine.grad_v)};
    const std::lock_guard lock{mutex};
    for (std::size_t i = 0; i < 4; ++i) worst[i] = (std::max)(worst[i], here[i]);
  });
  return worst;
}

template <class Topology, class T>
void compare_with_one_rank(int world) {
  const auto one = errors<orrery::ring, orrery::reference<T>>(1);
  const auto many = errors<Topology, flash<T>>(world);
  for (std::size_t i = 0; i < 4; ++i) {
    INFO("tensor ", i, " of out, grad_q, grad_k, grad_v");
    CHECK(one[i] > 0);
    CHECK(many[i] <= 2 * one[i]);
  }
}

}  // namespace

TEST_CASE("bfloat16 and float16 through the operator") {
  check<orrery::ring, flash<bfloat16>>(5, shape, orrery::causal{}, orrery::zigzag{});
  check<orrery::ring, flash<float16>>(3, shape, orrery::full{}, orrery::contiguous{});
  check<orrery::ulysses, flash<float16>>(4, shape, orrery::causal{-9}, orrery::striped<3>{});
}

TEST_CASE("many ranks round no more than one: partials travel in float") {
  compare_with_one_rank<orrery::ring, bfloat16>(8);
  compare_with_one_rank<orrery::ulysses, float16>(4);
}

TEST_CASE("the names say the element type") {
  CHECK(flash<bfloat16>::name() == "flash<bfloat16>");
  CHECK(flash<float16>::name() == "flash<float16>");
  CHECK(orrery::reference<bfloat16>::name() == "reference<bfloat16>");
}

}  // namespace conformance_float16_test
