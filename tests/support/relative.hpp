// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

/// A number to compare with, to a relative tolerance: `CHECK(seconds == relative(2.5e-6))`. doctest::Approx alone
/// accepts any difference below 1.2e-5, too, which hides times of microseconds.
[[nodiscard]] inline doctest::Approx relative(double expected, double tolerance = 1e-9) {
  return doctest::Approx(expected).epsilon(tolerance).scale(1e-200);  // 0 is equal to 0
}
