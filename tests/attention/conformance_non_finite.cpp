// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Inputs that are not finite, and scores that overflow, through the operator.
#include "orrery/kernel/reference.hpp"

#include "attention/matrix.hpp"
#include "support/any.hpp"

using orrery::flash;
using orrery::reference;

namespace {

/// What infinities, NaN and numbers that overflow do to a random problem of one batch and one key head whose head
/// dimensions are 2 and 1 and whose second elements of q and k are 0. `large` times 8 overflows.
struct non_finite_case {
  std::string name;
  void (*change)(oracle::problem& p, std::size_t token, bool as_the_oracle_sees_it, double large);
};

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

void make_queries(oracle::problem& p, double (*of)(double)) {
  for (std::size_t i = 0; i < p.q.size(); i += 2) p.q[i] = of(p.q[i]);
}
/// The first head of a query.
std::size_t first_of(const oracle::problem& p, std::size_t token) {
  return token * static_cast<std::size_t>(p.shape.query_heads);
}
double positive(double x) { return std::abs(x) + 0.25; }

/// Scores of one key overflow, to both sides; the oracle sees a key that is infinite.
void overflow(oracle::problem& p, std::size_t token, bool as_the_oracle_sees_it, double large, bool of_both_signs) {
  for (std::size_t i = 1; i < p.q.size(); i += 2) p.q[i] = of_both_signs && i % 4 == 1 ? -8 : 8;
  p.k[2 * token + 1] = as_the_oracle_sees_it ? -inf : -large;
}

const non_finite_case non_finite_cases[] = {
    {"a key is NaN", [](oracle::problem& p, std::size_t t, bool, double) { p.k[2 * t] = nan; }},
    {"a key is +infinity: its scores are +infinity and -infinity",
     [](oracle::problem& p, std::size_t t, bool, double) { p.k[2 * t] = inf; }},
    {"a key is +infinity: all its scores are",
     [](oracle::problem& p, std::size_t t, bool, double) {
       make_queries(p, positive);
       p.k[2 * t] = inf;
     }},
    {"a key is -infinity: all its scores are",
     [](oracle::problem& p, std::size_t t, bool, double) {
       make_queries(p, positive);
       p.k[2 * t] = -inf;
     }},
    {"all keys but one are -infinity",
     [](oracle::problem& p, std::size_t t, bool, double) {
       make_queries(p, positive);
       for (std::size_t j = 0; j < p.k.size(); j += 2) p.k[j] = j == 2 * t ? 0.5 : -inf;
     }},
    {"all keys are -infinity",
     [](oracle::problem& p, std::size_t, bool, double) {
       make_queries(p, positive);
       for (std::size_t j = 0; j < p.k.size(); j += 2) p.k[j] = -inf;
     }},
    {"a query is NaN", [](oracle::problem& p, std::size_t t, bool, double) { p.q[first_of(p, t) * 2] = nan; }},
    {"a query is -infinity: its scores are +infinity and -infinity",
     [](oracle::problem& p, std::size_t t, bool, double) { p.q[first_of(p, t) * 2] = -inf; }},
    {"a query is -infinity: all its scores are",
     [](oracle::problem& p, std::size_t t, bool, double) {
       for (std::size_t j = 0; j < p.k.size(); j += 2) p.k[j] = positive(p.k[j]);
       p.q[first_of(p, t) * 2] = -inf;
       p.grad_out[first_of(p, t)] = nan;  // of a row that is empty
     }},
    {"scores of finite inputs overflow to -infinity",
     [](oracle::problem& p, std::size_t t, bool oracle, double large) { overflow(p, t, oracle, large, false); }},
    {"scores of finite inputs overflow to both sides",
     [](oracle::problem& p, std::size_t t, bool oracle, double large) { overflow(p, t, oracle, large, true); }},
    {"a value is NaN", [](oracle::problem& p, std::size_t t, bool, double) { p.v[t] = nan; }},
    {"a value is infinite", [](oracle::problem& p, std::size_t t, bool, double) { p.v[t] = -inf; }},
    {"a gradient is NaN", [](oracle::problem& p, std::size_t t, bool, double) { p.grad_out[first_of(p, t)] = nan; }},
    {"a gradient is infinite",
     [](oracle::problem& p, std::size_t t, bool, double) { p.grad_out[first_of(p, t)] = inf; }},
};

}  // namespace

TEST_CASE_TEMPLATE("infinities, NaN and overflow: the same as on one rank, over every topology", Kernel,
                   reference<double>, flash<float>, flash<double>) {
  const double large = 0.9 * static_cast<double>((std::numeric_limits<typename Kernel::accumulator>::max)());
  std::uint64_t seed = 0;
  for (const orrery::any_topology& topology : any::topologies()) {
    for (const int world : {1, 2, 4, 8}) {
      if (orrery::unsupported_reason(topology, world) != nullptr) continue;
      for (const non_finite_case& one : non_finite_cases) {
        INFO(one.name);
        const std::int64_t length = world == 1 ? 230 : 26;  // several blocks of a kernel, or several ranks
        const orrery::attention_shape shape{.length = length,
                                            .query_heads = orrery::slices_of(topology, world),
                                            .key_heads = 1,
                                            .head_dim = 2,
                                            .value_dim = 1,
                                            .scale = 1.0};
        attention_test::check_policies<Kernel>(topology, world, shape, orrery::causal{1000}, orrery::contiguous{}, seed,
                                               [&](oracle::problem& p, bool as_the_oracle_sees_it) {
                                                 for (std::size_t i = 1; i < p.q.size(); i += 2) p.q[i] = 0;
                                                 for (std::size_t i = 1; i < p.k.size(); i += 2) p.k[i] = 0;
                                                 one.change(p, seed % static_cast<std::uint64_t>(length),
                                                            as_the_oracle_sees_it, large);
                                               });
      }
    }
  }
}
