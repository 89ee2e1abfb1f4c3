// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/attention/merge.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/cpu/backend.hpp"

namespace {

template <class A>
constexpr A nothing = -std::numeric_limits<A>::infinity();

/// The same in long double, by the plain formula, with every exponent made harmless.
template <class A>
void check_against_long_double(A a, A b) {
  CAPTURE(a);
  CAPTURE(b);
  const auto w = orrery::detail::merge_weights(a, b);
  const auto largest = static_cast<long double>(a > b ? a : b);
  const long double ea = std::exp(static_cast<long double>(a) - largest);
  const long double eb = std::exp(static_cast<long double>(b) - largest);
  constexpr auto epsilon = static_cast<long double>(std::numeric_limits<A>::epsilon());
  CHECK(std::abs(static_cast<long double>(w.into) - ea / (ea + eb)) <= 3 * epsilon);
  CHECK(std::abs(static_cast<long double>(w.from) - eb / (ea + eb)) <= 3 * epsilon);
  const long double lse = largest + std::log(ea + eb);
  CHECK(std::abs(static_cast<long double>(w.lse) - lse) <= epsilon * (1 + std::abs(lse)));
}

}  // namespace

TEST_CASE_TEMPLATE("merge weights agree with the plain formula", A, float, double) {
  for (const double gap : {0.0, 1e-6, 0.5, 1.0, 10.0, 88.0, 89.0, 100.0, 710.0, 1e4, 1e30}) {
    for (const double base : {0.0, -3.0, 7.5, 1000.0, -1000.0}) {
      check_against_long_double<A>(static_cast<A>(base), static_cast<A>(base + gap));
      check_against_long_double<A>(static_cast<A>(base + gap), static_cast<A>(base));
    }
  }
}

TEST_CASE_TEMPLATE("a side that has seen no key has no weight", A, float, double) {
  const A x = A{2.5};
  const auto both = orrery::detail::merge_weights(nothing<A>, nothing<A>);
  CHECK(both.into == 1);
  CHECK(both.from == 0);
  CHECK(both.lse == nothing<A>);
  const auto left = orrery::detail::merge_weights(x, nothing<A>);
  CHECK(left.into == 1);
  CHECK(left.from == 0);
  CHECK(left.lse == x);
  const auto right = orrery::detail::merge_weights(nothing<A>, x);
  CHECK(right.into == 0);
  CHECK(right.from == 1);
  CHECK(right.lse == x);
}

TEST_CASE_TEMPLATE("gaps too large for exp leave the larger side exactly alone", A, float, double) {
  for (const A gap : {static_cast<A>(1e4), static_cast<A>(1e30)}) {
    const auto into = orrery::detail::merge_weights(gap, A{0});
    CHECK(into.into == 1);
    CHECK(into.from == 0);
    CHECK(into.lse == gap);
    const auto from = orrery::detail::merge_weights(-gap, A{0});
    CHECK(from.into == 0);
    CHECK(from.from == 1);
    CHECK(from.lse == 0);
  }
}

TEST_CASE_TEMPLATE("merging is symmetric to the last bit", A, float, double) {
  for (const A gap : {A{0}, A{0.25}, A{3}, A{40}}) {
    const auto one = orrery::detail::merge_weights(A{1} + gap, A{1});
    const auto other = orrery::detail::merge_weights(A{1}, A{1} + gap);
    CHECK(one.into == other.from);
    CHECK(one.from == other.into);
    CHECK(one.lse == other.lse);
  }
}

TEST_CASE_TEMPLATE("a row that has seen no key is not read", A, float, double) {
  const A nan = std::numeric_limits<A>::quiet_NaN();
  std::vector<A> good{1, 2, 3};
  std::vector<A> bad{nan, nan, nan};
  A lse = 1;
  orrery::detail::merge_row(good.data(), lse, bad.data(), nothing<A>, 3);
  CHECK(good == std::vector<A>{1, 2, 3});
  CHECK(lse == 1);
  lse = nothing<A>;
  orrery::detail::merge_row(bad.data(), lse, good.data(), A{1}, 3);
  CHECK(bad == std::vector<A>{1, 2, 3});
  CHECK(lse == 1);
}

TEST_CASE_TEMPLATE("a row whose log-sum-exp is NaN makes every row NaN that it meets, but for empty ones", A, float,
                   double) {
  const A nan = std::numeric_limits<A>::quiet_NaN();
  // Each pair of sides: NaN, empty, finite (small and large), +infinity, which counts as NaN.
  const A sides[] = {nan, nothing<A>, A{-5}, static_cast<A>(1e30), -nothing<A>};
  for (const A into : sides) {
    for (const A from : sides) {
      CAPTURE(into);
      CAPTURE(from);
      std::vector<A> out_into(3, std::isfinite(into) ? A{1} : nan);
      const std::vector<A> out_from(3, std::isfinite(from) ? A{2} : nan);
      A lse = into;
      orrery::detail::merge_row(out_into.data(), lse, out_from.data(), from, 3);
      const auto is_poison = [](A side) { return std::isnan(side) || side == -nothing<A>; };
      const bool poisoned = is_poison(into) || is_poison(from);
      if (poisoned) {
        for (const A value : out_into) CHECK(std::isnan(value));
        CHECK(!std::isfinite(lse));
        CHECK(lse != nothing<A>);
      } else if (into != nothing<A> || from != nothing<A>) {
        for (const A value : out_into) CHECK(std::isfinite(value));
        CHECK(std::isfinite(lse));
      } else {
        CHECK(lse == nothing<A>);
      }
    }
  }
}

TEST_CASE_TEMPLATE("a weight too small for the type does not hide NaN", A, float, double) {
  const A nan = std::numeric_limits<A>::quiet_NaN();
  std::vector<A> into{nan, 1};
  const std::vector<A> from{2, nan};
  A lse = 0;
  orrery::detail::merge_row(into.data(), lse, from.data(), static_cast<A>(-1e4), 2);
  CHECK(std::isnan(into[0]));
  CHECK(std::isnan(into[1]));
  CHECK(lse == 0);
}

TEST_CASE("merging views reaches every row and nothing else") {
  using orrery::detail::host_backend;
  const orrery::host_context context{};
  constexpr std::int64_t batch = 2, tokens = 3, heads = 2, dim = 5;
  std::vector<double> into(static_cast<std::size_t>(batch * tokens * heads * (dim + 1)), 1.0);
  std::vector<double> from(static_cast<std::size_t>(batch * tokens * heads * dim), 3.0);
  std::vector<double> lse_into(static_cast<std::size_t>(batch * heads * tokens), 0.0);
  std::vector<double> lse_from(lse_into.size(), 0.0);
  auto view = orrery::sequence_batch_head_dim(into.data(), tokens, batch, heads, dim + 1);
  view.dim = dim;  // the last element of each row is not the view's
  host_backend::merge(context, view, orrery::batch_head_sequence(lse_into.data(), batch, heads, tokens),
                      orrery::batch_head_sequence_dim(from.data(), batch, heads, tokens, dim),
                      orrery::batch_head_sequence(lse_from.data(), batch, heads, tokens));
  for (std::size_t i = 0; i < into.size(); ++i) CHECK(into[i] == (i % (dim + 1) == dim ? 1.0 : 2.0));
  for (const double lse : lse_into) CHECK(lse == doctest::Approx(std::log(2.0)));
}
