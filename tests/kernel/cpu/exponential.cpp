// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/kernel/cpu/exponential.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/cpu/microkernels.hpp"

namespace {

using orrery::instruction_set;

/// The power of two as each instruction set that this machine has computes it.
template <class T, class Check>
void for_each_set(const std::vector<T>& values, Check&& check) {
  for (const auto set : {instruction_set::baseline, instruction_set::avx2, instruction_set::avx512}) {
    if (set > orrery::widest_instruction_set()) continue;
    CAPTURE(static_cast<int>(set));
    std::vector<T> powers = values;
    powers.resize((values.size() + 63) / 64 * 64);
    orrery::detail::flash_steps_for<T>(set).powers(powers.data(), static_cast<std::int64_t>(powers.size()));
    powers.resize(values.size());
    check(powers);
  }
}

/// A NaN with every bit set.
template <class T>
T all_bits() {
  T value;
  std::memset(&value, 0xff, sizeof value);
  return value;
}

}  // namespace

TEST_CASE_TEMPLATE("powers of two are within 1.25 units in the last place of std::exp2", T, float, double) {
  using E = orrery::detail::exponential<T>;
  std::vector<T> values;
  constexpr int steps = 400'000;
  for (int i = 0; i <= steps; ++i) {
    const double at = static_cast<double>(i) / steps;
    values.push_back(static_cast<T>(static_cast<double>(E::floor) * (1 - at) + static_cast<double>(E::ceiling) * at));
    values.push_back(static_cast<T>(-1.0 + 2.0 * at));
    values.push_back(static_cast<T>(-at * at * at * 1e-3));
  }
  for_each_set<T>(values, [&](const std::vector<T>& powers) {
    long double worst = 0;
    T where = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const long double truth = std::exp2(static_cast<long double>(values[i]));
      const auto below = static_cast<T>(truth);
      const long double unit = static_cast<long double>(std::nextafter(below, std::numeric_limits<T>::infinity())) -
                               static_cast<long double>(below);
      long double error = std::abs(static_cast<long double>(powers[i]) - truth) / unit;
      if (std::isnan(error)) error = std::numeric_limits<long double>::infinity();
      if (error > worst) {
        worst = error;
        where = values[i];
      }
    }
    INFO("worst at ", where);
    CHECK(worst <= 1.25L);
    CHECK(worst > 0.1L);  // it measured something
  });
}

TEST_CASE_TEMPLATE("powers of two are exact where they must be", T, float, double) {
  using E = orrery::detail::exponential<T>;
  const T infinity = std::numeric_limits<T>::infinity();
  const std::vector<T> zeros{-infinity,       std::numeric_limits<T>::lowest(),
                             E::floor * 2,    std::nextafter(E::floor, -infinity),
                             -E::ceiling - 1, -E::ceiling};
  for_each_set<T>(zeros, [](const std::vector<T>& powers) {
    for (const T power : powers) CHECK((power == 0 && !std::signbit(power)));
  });
  for_each_set<T>({std::numeric_limits<T>::quiet_NaN(), all_bits<T>()}, [](const std::vector<T>& powers) {
    for (const T power : powers) CHECK(std::isnan(power));
  });
  std::vector<T> whole;
  for (T n = E::floor; n <= E::ceiling; n += 1) whole.push_back(n);
  for_each_set<T>(whole, [&](const std::vector<T>& powers) {
    for (std::size_t i = 0; i < whole.size(); ++i) CHECK(powers[i] == std::exp2(whole[i]));
  });
}
