// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The flash kernel where a call has few queries, as when a model generates token by token.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/host/thread_team.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/window.hpp"

#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace few_rows_test {
namespace {

using kernel_test::contiguous;
using kernel_test::order;
using kernel_test::plan;
using orrery::instruction_set;

/// Keys at positions that leave a rest of 1 or 2 are seen: no interval, and blocks of which `classify` knows nothing.
struct two_of_five {
  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const {
    return (query + key) % 5 == 1 || (query + key) % 5 == 2;
  }
  [[nodiscard]] orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) const {
    return orrery::visibility::some;
  }
  [[nodiscard]] std::string name() const { return "two_of_five"; }
};

/// The forward alone, which is what few queries change: the oracle's answers for it.
template <class Kernel, class Mask>
void check_forward(const oracle::shape& shape, const Mask& mask, const plan& how, std::uint64_t seed = 1) {
  using S = typename Kernel::storage;
  using A = typename Kernel::accumulator;
  const auto p = oracle::random_problem<S>(shape, seed);
  const oracle::answer expected = oracle::solve(p, mask);
  const kernel_test::result<A> got = kernel_test::run<Kernel>(p, mask, how);
  INFO(Kernel::name(), " with ", std::string{mask.name()}, ", queries ", shape.queries, ", keys ", shape.keys,
       ", heads ", shape.query_heads, "/", shape.key_heads, ", dims ", shape.key_dim, "/", shape.value_dim);
  CHECK(oracle::compare(expected.out, got.out).error <= oracle::tolerance<A>);
  CHECK(oracle::compare(expected.lse, got.lse).error <= oracle::tolerance<A>);
  CHECK(got.stayed_inside);
}

plan whole(const oracle::shape& shape, order layout = order::batch_sequence_head) {
  plan how;
  how.queries = contiguous(shape.queries, 1);
  how.keys = contiguous(shape.keys, 1);
  how.layout = layout;
  return how;
}

oracle::shape shape_of(std::int64_t queries, std::int64_t keys, std::int64_t query_heads, std::int64_t key_heads,
                       std::int64_t key_dim, std::int64_t value_dim, std::int64_t batch = 1) {
  return {batch,     queries, keys,      query_heads,
          key_heads, key_dim, value_dim, 1 / std::sqrt(static_cast<double>(key_dim))};
}

}  // namespace

#define FEW_ROWS_KERNELS                                                                                        \
  orrery::flash<float>, orrery::flash<double>, orrery::flash<orrery::bfloat16>, orrery::flash<orrery::float16>, \
      orrery::flash<float, instruction_set::avx2>, orrery::flash<double, instruction_set::avx2>,                \
      orrery::flash<float, instruction_set::baseline>, orrery::flash<double, instruction_set::baseline>

TEST_CASE_TEMPLATE("few queries: their number, groups of heads, and head dimensions", Kernel, FEW_ROWS_KERNELS) {
  std::uint64_t seed = 0;
  for (const std::int64_t queries : {1, 2, 3, 5, 8, 9}) {
    for (const std::int64_t group : {1, 3, 8}) {
      const auto shape = shape_of(queries, 83, 2 * group, 2, 32, 16, 2);
      check_forward<Kernel>(shape, orrery::causal{70}, whole(shape), ++seed);
    }
  }
  for (const std::int64_t dim : {1, 16, 40, 67, 80, 96, 192, 256}) {
    const auto shape = shape_of(1, 70, 3, 3, dim, dim == 192 ? 128 : dim);
    check_forward<Kernel>(shape, orrery::full{}, whole(shape), ++seed);
    check_forward<Kernel>(shape, orrery::full{}, whole(shape, order::batch_head_sequence), ++seed);
  }
}

TEST_CASE_TEMPLATE("one query of many heads that share one key head, as absorbed latent attention has", Kernel,
                   FEW_ROWS_KERNELS) {
  for (const std::int64_t heads : {16, 17, 100}) {
    const auto shape = shape_of(1, 70, heads, 1, heads == 100 ? 576 : 24, heads == 100 ? 512 : 40, 2);
    check_forward<Kernel>(shape, orrery::full{}, whole(shape));
    check_forward<Kernel>(shape, orrery::causal{50}, whole(shape, order::sequence_batch_head));
    check_forward<Kernel>(shape_of(1, 100, heads, 1, 8, 24), two_of_five{}, whole(shape_of(1, 100, heads, 1, 8, 24)));
  }
  const auto two = shape_of(1, 90, 80, 2, 24, 8);
  check_forward<Kernel>(two, orrery::full{}, whole(two));
}

TEST_CASE_TEMPLATE("few queries under masks, in pieces that are summed up", Kernel, FEW_ROWS_KERNELS) {
  const auto shape = shape_of(4, 2600, 4, 2, 16, 16);
  plan how = whole(shape);
  check_forward<Kernel>(shape, orrery::full{}, how);  // more keys than are summed up before they are carried
  check_forward<Kernel>(shape, orrery::causal{2500} & orrery::window{.left = 99}, how);
  check_forward<Kernel>(shape, orrery::causal{1}, how);
  check_forward<Kernel>(shape, orrery::causal{-2}, how);  // the first two queries see nothing
  check_forward<Kernel>(shape, two_of_five{}, how);
  how.queries = kernel_test::zigzag(shape.queries, 2);
  how.keys = kernel_test::striped(shape.keys, 3, 7);
  check_forward<Kernel>(shape, orrery::causal{1200}, how);
  check_forward<Kernel>(shape, two_of_five{}, how);
  how.one_call = true;
  check_forward<Kernel>(shape, orrery::causal{1200}, how);
  how.queries = contiguous(shape.queries, 4);
  check_forward<Kernel>(shape, orrery::causal{1200}, how);
}

TEST_CASE("few queries: threads and how heads are shared change no bit") {
  using kernel = orrery::flash<float>;
  const auto shape = shape_of(1, 300, 40, 40, 64, 64, 3);
  const auto p = oracle::random_problem<float>(shape, 5);
  plan how = whole(shape);
  const auto one = kernel_test::run<kernel>(p, orrery::full{}, how);
  for (const int threads : {2, 5}) {
    orrery::thread_team team{threads};
    how.team = &team;
    const auto other = kernel_test::run<kernel>(p, orrery::full{}, how);
    CHECK(one.out == other.out);
    CHECK(one.lse == other.lse);
  }
  how.team = nullptr;
  // Heads apart are taken one by one.
  how.layout = order::batch_head_sequence;
  const auto apart = kernel_test::run<kernel>(p, orrery::full{}, how);
  CHECK(one.out == apart.out);
}

TEST_CASE("few queries: a slice of the heads may begin within a group") {
  // Query heads 6 to 8 of 12, which share key heads in fours: 1 and 2. And 5 to 6, of key head 1 alone.
  const auto p = oracle::random_problem<float>(shape_of(2, 50, 12, 3, 32, 32), 3);
  const oracle::answer expected = oracle::solve(p, orrery::full{});
  std::vector<float> q{p.q.begin(), p.q.end()}, k{p.k.begin(), p.k.end()}, v{p.v.begin(), p.v.end()};
  for (const auto& heads : {std::pair{6, 3}, std::pair{5, 2}, std::pair{4, 8}, std::pair{2, 8}, std::pair{3, 1}}) {
    const int first = heads.first, count = heads.second;
    for (const bool all_keys : {false, true}) {
      INFO(count, " heads from ", first);
      std::vector<float> out(static_cast<std::size_t>(2 * count * 32), 7.0f), lse(static_cast<std::size_t>(2 * count));
      const auto queries = orrery::batch_sequence_head_dim(q.data(), 1, 2, 12, 32).slice_heads(first, count);
      const int first_key = all_keys ? 0 : first / 4, last_key = all_keys ? 2 : (first + count - 1) / 4;
      const auto of_keys = [&](std::vector<float>& data) {
        return orrery::batch_sequence_head_dim(data.data(), 1, 50, 3, 32)
            .slice_heads(first_key, last_key + 1 - first_key);
      };
      const orrery::forward_queries<float, float> fq{
          queries, orrery::batch_sequence_head_dim(out.data(), 1, 2, count, 32),
          orrery::batch_head_sequence(lse.data(), 1, count, 2), kernel_test::piece(0, 2)};
      const orrery::forward_keys<float> fk{of_keys(k), of_keys(v), kernel_test::piece(0, 50)};
      orrery::flash<float>::forward(orrery::host_context{}, std::span(&fq, 1), std::span(&fk, 1),
                                    orrery::head_map{first, first_key, 4}, static_cast<float>(p.shape.scale),
                                    orrery::full{});
      double worst = 0;
      for (std::int64_t t = 0; t < 2; ++t) {
        for (std::int64_t h = 0; h < count; ++h) {
          for (std::int64_t c = 0; c < 32; ++c) {
            const auto want = expected.out[static_cast<std::size_t>((t * 12 + first + h) * 32 + c)];
            const auto got = static_cast<double>(out[static_cast<std::size_t>((t * count + h) * 32 + c)]);
            worst = std::fmax(worst, std::fabs(want - got));
          }
        }
      }
      CHECK(worst <= oracle::tolerance<float>);
    }
  }
}

TEST_CASE("few queries: what one of them does not see does not reach it") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr std::int64_t keys = 130, dim = 16;
  std::vector<float> q(2 * dim, 0.5f), k(keys * dim, 0.25f), v(keys * dim, 1.0f), out(2 * dim, 7.0f), lse(2);
  // The window of the first query ends before the block of keys in which these are.
  for (std::int64_t i = 0; i < dim; ++i) v[static_cast<std::size_t>(100 * dim + i)] = infinity;
  k[100 * dim] = std::numeric_limits<float>::quiet_NaN();
  // Nobody sees this one, which is in a block that is seen.
  for (std::int64_t i = 0; i < dim; ++i) v[static_cast<std::size_t>(60 * dim + i)] = -infinity;
  const auto view = [](std::vector<float>& data, std::int64_t tokens) {
    return orrery::batch_sequence_head_dim(data.data(), 1, tokens, 1, dim);
  };
  orrery::segments positions;
  positions.add({59, 2, 1, 60});  // 59 and 119
  const orrery::forward_queries<float, float> fq{view(q, 2), view(out, 2),
                                                 orrery::batch_head_sequence(lse.data(), 1, 1, 2), positions};
  const orrery::forward_keys<float> fk{view(k, keys), view(v, keys), kernel_test::piece(0, keys)};
  const auto mask = orrery::causal{} & orrery::window{.left = 30};
  orrery::flash<float>::forward(orrery::host_context{}, std::span(&fq, 1), std::span(&fk, 1), {}, 1.0f, mask);
  for (std::int64_t i = 0; i < dim; ++i) CHECK(out[static_cast<std::size_t>(i)] == doctest::Approx(1.0));
  for (std::int64_t i = 0; i < dim; ++i) CHECK(std::isnan(out[static_cast<std::size_t>(dim + i)]));
}

}  // namespace few_rows_test
