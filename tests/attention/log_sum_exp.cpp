// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// One log-sum-exp for all kernels of an element type: a trainer that exchanges its kernel keeps its buffers.
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/threads.hpp"

#include "support/conformance.hpp"
#include "support/oracle.hpp"

namespace {

template <class Kernel>
using log_sum_exp = typename orrery::attention<orrery::ring, Kernel>::log_sum_exp;

static_assert(std::is_same_v<log_sum_exp<orrery::flash<float>>, float>);
static_assert(std::is_same_v<log_sum_exp<orrery::reference<float>>, float>);
static_assert(std::is_same_v<log_sum_exp<orrery::flash<orrery::bfloat16>>, float>);
static_assert(std::is_same_v<log_sum_exp<orrery::reference<orrery::bfloat16>>, float>);
static_assert(std::is_same_v<log_sum_exp<orrery::flash<orrery::float16>>, float>);
static_assert(std::is_same_v<log_sum_exp<orrery::reference<orrery::float16>>, float>);
static_assert(std::is_same_v<log_sum_exp<orrery::flash<double>>, double>);
static_assert(std::is_same_v<log_sum_exp<orrery::reference<double>>, double>);

/// A trainer's buffers, which do not know a kernel.
template <class T>
using buffers = conformance::rank_tensors<orrery::flash<T>>;

/// A trainer: the same statements, whatever the kernels of its forward and its backward.
template <class Topology, class Forward, class Backward>
void train(orrery::threads::world& world, const orrery::attention_shape& shape, const oracle::problem& p,
           const oracle::answer& expected) {
  orrery::attention<Topology, Forward> forward{world, shape, orrery::causal{}, orrery::zigzag{}};
  orrery::attention<Topology, Backward> backward{world, shape, orrery::causal{}, orrery::zigzag{}};
  const auto& positions = forward.query_positions();
  buffers<typename Forward::storage> memory{p, positions, forward.key_positions(),
                                            conformance::trainer_memory::of(static_cast<std::uint64_t>(world.rank()))};
  memory.forward(forward);
  memory.backward(backward);
  const std::string wrong = memory.mismatch(p, expected, positions, forward.key_positions());
  if (!wrong.empty()) throw std::logic_error{Forward::name() + ", " + Backward::name() + wrong};

  memory.poison();
  memory.forward_by_tensor(forward);
  const std::string wrong_by_tensor =
      oracle::compare(conformance::rows_of(expected.lse, shape.batch, shape.query_heads, shape.length, positions),
                      memory.lse.values())
                  .error > oracle::tolerance<typename Forward::storage>
          ? "lse, by tensor"
          : "";
  if (!wrong_by_tensor.empty()) throw std::logic_error{Forward::name() + wrong_by_tensor};
}

template <class Topology, class T>
void check_every_exchange() {
  for (const int world : {1, 3, 4}) {
    for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      const orrery::attention_shape shape{.batch = 2,
                                          .length = 21,
                                          .query_heads = 8,
                                          .key_heads = 4,
                                          .head_dim = 5,
                                          .value_dim = 3,
                                          .circulate = circulate};
      const auto p = oracle::random_problem<T>(conformance::oracle_shape(shape), 3);
      const oracle::answer expected = oracle::solve(p, orrery::causal{});
      INFO(orrery::name_of(Topology{}), " over ", world);
      CHECK_NOTHROW(orrery::threads::run(world, [&](orrery::threads::world& on) {
        using flash = orrery::flash<T>;
        using reference = orrery::reference<T>;
        train<Topology, flash, flash>(on, shape, p, expected);
        train<Topology, reference, reference>(on, shape, p, expected);
        train<Topology, flash, reference>(on, shape, p, expected);
        train<Topology, reference, flash>(on, shape, p, expected);
      }));
    }
  }
}

/// The log-sum-exp and the gradient of a single query whose only score is q * k.
template <class Kernel>
std::vector<double> of_one_pair(double q, double k) {
  using T = typename Kernel::storage;
  std::vector<double> results;
  orrery::threads::run(1, [&](orrery::threads::world& world) {
    orrery::attention<orrery::ring, Kernel> attend{world, {.length = 1, .head_dim = 1, .scale = 1.0}};
    T of[7] = {static_cast<T>(q), static_cast<T>(k), T{1}, T{1}, T{0}, T{0}, T{0}};  // q, k, v, grad_out; gradients
    T out{0};
    log_sum_exp<Kernel> sum{0};
    const auto tensor = [](T& of_one) { return orrery::batch_sequence_head_dim(&of_one, 1, 1, 1, 1); };
    const auto lse = orrery::batch_head_sequence(&sum, 1, 1, 1);
    attend.forward(tensor(of[0]), tensor(of[1]), tensor(of[2]), tensor(out), lse);
    attend.backward({.q = tensor(of[0]),
                     .k = tensor(of[1]),
                     .v = tensor(of[2]),
                     .out = tensor(out),
                     .lse = lse,
                     .grad_out = tensor(of[3]),
                     .grad_q = tensor(of[4]),
                     .grad_k = tensor(of[5]),
                     .grad_v = tensor(of[6])});
    results = {static_cast<double>(out), static_cast<double>(sum), static_cast<double>(of[6])};
  });
  return results;
}

}  // namespace

TEST_CASE_TEMPLATE("a kernel takes the other's place, for the whole step or for a pass", T, float, double,
                   orrery::bfloat16, orrery::float16) {
  check_every_exchange<orrery::ring, T>();
  check_every_exchange<orrery::ulysses, T>();
}

TEST_CASE_TEMPLATE("a score that the log-sum-exp cannot hold is infinite, although the sums could hold it", Kernel,
                   orrery::reference<float>, orrery::flash<float>) {
  const double large = 1e30;
  for (const double result : of_one_pair<Kernel>(large, large)) CHECK(std::isnan(result));
  const std::vector<double> hidden = of_one_pair<Kernel>(large, -large);
  CHECK(hidden[0] == 0);
  CHECK(hidden[1] == -std::numeric_limits<double>::infinity());
  CHECK(hidden[2] == 0);
  const std::vector<double> seen = of_one_pair<Kernel>(large, 1e8);
  CHECK(seen[0] == 1);
  CHECK(std::isfinite(seen[1]));
  // flash computes its scores anew, to another rounding than its log-sum-exp has, which is 1e31 here.
  if constexpr (std::is_same_v<Kernel, orrery::reference<float>>) CHECK(seen[2] == 1);
}

TEST_CASE("scores as large as those of double keep their bits in a log-sum-exp of double") {
  const std::vector<double> seen = of_one_pair<orrery::reference<double>>(1e30, 1e30);
  CHECK(seen[0] == 1);
  CHECK(seen[1] == 1e30 * 1e30);
  CHECK(seen[2] == 1);
}
