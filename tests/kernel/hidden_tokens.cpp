// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Tokens that a mask hides may hold anything; those that it does not hide are not passed over.
#include "kernel/hidden_tokens.hpp"

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/tensor/float16.hpp"

#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace {

using kernel_test::hiding_mask;
using orrery::instruction_set;

template <class Kernel>
inline constexpr std::int64_t tile_of = 0;
template <class T, instruction_set set>
inline constexpr std::int64_t tile_of<orrery::flash<T, set>> = 256;  // its largest block of keys

}  // namespace

#define KERNELS                                                                                           \
  orrery::reference<float>, orrery::flash<float>, orrery::flash<double>, orrery::flash<orrery::bfloat16>, \
      orrery::flash<float, instruction_set::avx2>, orrery::flash<double, instruction_set::baseline>

TEST_CASE_TEMPLATE("what tokens hold that a mask hides from everybody changes nothing", Kernel, KERNELS) {
  for (const hiding_mask& mask : kernel_test::hiding_masks) {
    kernel_test::check_hidden_tokens<Kernel>({1, 150, 190, 2, 1, 24, 40, 0.25}, mask);
  }
  // Fewer rows than a block has, and head dimensions that are whole vectors.
  kernel_test::check_hidden_tokens<Kernel>({2, 6, 30, 2, 2, 64, 32, 0.25}, {hiding_mask::kind::causal, 3, true});
}

TEST_CASE_TEMPLATE("masks that kernels ask for rows: hidden tokens, and NaN in others", Kernel, orrery::flash<float>,
                   orrery::flash<double, instruction_set::baseline>, orrery::flash<orrery::bfloat16>) {
  // Padding at the end; and the first queries and last keys of each document are hidden.
  const auto mask = orrery::documents{std::array{37, 1, 60, 20}} & orrery::causal{-2} & orrery::window{.left = 30};
  kernel_test::check_hidden_tokens<Kernel>({1, 150, 190, 2, 1, 24, 40, 0.25}, mask);
  kernel_test::check_visible_nan<Kernel>({1, 150, 150, 2, 1, 24, 40, 0.25}, mask, tile_of<Kernel>);
  kernel_test::check_hidden_tokens<Kernel>({1, 150, 190, 2, 1, 24, 40, 0.25}, orrery::causal{20});
  kernel_test::check_hidden_tokens<Kernel>({1, 150, 190, 2, 1, 24, 40, 0.25}, orrery::causal{-30});
}

TEST_CASE_TEMPLATE("NaN in a token that is seen reaches all that see it", Kernel, KERNELS) {
  for (const hiding_mask& mask : kernel_test::hiding_masks) {
    kernel_test::check_visible_nan<Kernel>({1, 150, 150, 2, 1, 24, 40, 0.25}, mask, tile_of<Kernel>);
  }
}

TEST_CASE("NaN in a token that is seen reaches no token that is far from those that see it") {
  for (const hiding_mask& mask : {hiding_mask{hiding_mask::kind::band, 20}, {hiding_mask::kind::blocks, 100}}) {
    kernel_test::check_visible_nan<orrery::flash<float>>({1, 900, 900, 1, 1, 8, 8, 0.25}, mask,
                                                         tile_of<orrery::flash<float>>);
  }
}

TEST_CASE_TEMPLATE("backward: a query that sees no key of a call, but others elsewhere, may hold NaN", Kernel,
                   KERNELS) {
  using S = typename Kernel::storage;
  using A = typename Kernel::accumulator;
  constexpr std::int64_t n = 100, dim = 8;
  const hiding_mask mask{hiding_mask::kind::full, 0, true};
  const auto gradients = [&](S of_hidden) {
    std::vector<S> ones(n * dim, S{1}), q = ones;
    for (std::int64_t i = 0; i < n * dim; ++i) {
      if (mask.is_padding(i / dim)) q[static_cast<std::size_t>(i)] = of_hidden;
    }
    std::vector<A> lse(n, A{10}), delta(n, A{1}), grad_q(n * dim), grad_k(n * dim), grad_v(n * dim);
    const auto view = [&](auto& data) { return orrery::batch_sequence_head_dim(data.data(), 1, n, 1, dim); };
    const auto rows = [&](auto& data) { return orrery::batch_head_sequence(data.data(), 1, 1, n); };
    const orrery::segments positions = kernel_test::piece(0, n);
    const orrery::backward_queries<S, A> queries{view(q),      view(q),   rows(lse), rows(delta),
                                                 view(grad_q), positions, true};
    const orrery::backward_keys<S, A> keys{view(ones), view(ones), view(grad_k), view(grad_v), positions, true};
    Kernel::backward(orrery::host_context{}, std::span(&queries, 1), std::span(&keys, 1), orrery::head_map{}, A{1},
                     mask);
    CHECK(grad_v[0] > 0);
    return std::array{grad_q, grad_k, grad_v};
  };
  CHECK(gradients(S{0}) == gradients(std::numeric_limits<S>::quiet_NaN()));
}
