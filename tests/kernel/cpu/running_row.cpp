// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// A row's result so far, as the forward goes on from it: keys of one score.
#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "orrery/kernel/cpu/flash_forward_workspace.hpp"

namespace {

template <class T>
using running_row = orrery::detail::flash_running_row<T>;

}  // namespace

TEST_CASE_TEMPLATE("weight and score make the log-sum-exp, whatever it is", T, float, double) {
  for (const T lse : {T{-1000}, T{-1}, T{0}, T{0.5}, T{1}, T{7}, T{100}, T{1 << 20}}) {
    CAPTURE(lse);
    const running_row<T> row = running_row<T>::of(lse);
    CHECK(row.weight >= 1);
    CHECK(row.weight <= T{1 << 24});
    CHECK(std::log2(row.weight) == std::floor(std::log2(row.weight)));
    const double sum = std::log(2.0) * static_cast<double>(row.largest) + std::log(static_cast<double>(row.weight));
    CHECK(sum == doctest::Approx(static_cast<double>(lse)).epsilon(1e-6));
  }
}

TEST_CASE_TEMPLATE("a row that has seen nothing has no weight, and the largest log-sum-exp a finite score", T, float,
                   double) {
  constexpr T most = (std::numeric_limits<T>::max)();
  const running_row<T> nothing = running_row<T>::of(-std::numeric_limits<T>::infinity());
  CHECK(nothing.weight == 0);
  CHECK(nothing.largest == -std::numeric_limits<T>::infinity());
  CHECK(running_row<T>::of(most).largest == most);
  CHECK(running_row<T>::of(-most).largest == -most);
}
