// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Every kernel and element type through the operator, and that the suite itself can fail.
#include "orrery/kernel/reference.hpp"

#include "attention/matrix.hpp"

using attention_test::check;
using orrery::flash;
using orrery::reference;

// reference<float> accumulates in another type than it stores: results then live in the plan until they are complete.
TEST_CASE_TEMPLATE("kernels", Kernel, flash<float>, reference<double>, reference<float>) {
  const orrery::attention_shape shape{
      .batch = 2, .length = 61, .query_heads = 6, .key_heads = 3, .head_dim = 7, .value_dim = 5};
  check<orrery::ring, Kernel>(5, shape, orrery::causal{}, orrery::zigzag{});
  check<orrery::wallfacer<2>, Kernel>(8, shape, orrery::causal{40}, orrery::contiguous{});
  check<orrery::concentric<2, 2>, Kernel>(8, shape, orrery::causal{-9}, orrery::striped<3>{});
  check<orrery::usp<4>, Kernel>(8, shape, orrery::causal{}, orrery::zigzag{});
  check<orrery::ulysses, Kernel>(4, shape, orrery::causal{}, orrery::zigzag{});
  check<my_ring, Kernel>(3, shape, orrery::causal{}, orrery::striped<1>{});
  check<orrery::ulysses, Kernel>(6, {.length = 3, .query_heads = 7, .key_heads = 1, .head_dim = 2}, orrery::causal{},
                                 orrery::contiguous{});
  check<orrery::ulysses, Kernel>(4, shape, orrery::causal{-61}, orrery::zigzag{});
  check<orrery::ring, Kernel>(3, shape, orrery::causal{INT64_MAX}, orrery::zigzag{});
  check<orrery::ring, Kernel>(3, shape, orrery::causal{INT64_MIN}, orrery::contiguous{});
}

TEST_CASE("usual head dimensions in single precision") {
  const orrery::attention_shape shape{.length = 300, .query_heads = 2, .key_heads = 1, .head_dim = 64};
  check<orrery::ring, flash<float>>(5, shape, orrery::causal{}, orrery::zigzag{});
}

namespace {

/// Forgets the backward's delta.
struct forgetful : reference<double> {
  template <class... Arguments>
  static void row_dot(const Arguments&...) {}
};

template <class Kernel>
std::string failures() {
  return conformance::failures<orrery::ring, Kernel, orrery::threads::world>(
      attention_test::on_threads, 2, {.length = 16, .query_heads = 1, .head_dim = 4}, orrery::full{},
      orrery::contiguous{});
}

}  // namespace

TEST_CASE("the suite can fail, and says on which ranks and in which tensors") {
  CHECK(failures<reference<double>>() == "");
  const std::string forgotten = failures<forgetful>();
  CHECK(forgotten.find("rank 0; grad_q: largest error") == 0);
  CHECK(forgotten.find("\nrank 1; grad_q: largest error") != std::string::npos);
  CHECK(forgotten.find("; grad_k: largest error") != std::string::npos);
  CHECK(forgotten.find("; out: ") == std::string::npos);
}
