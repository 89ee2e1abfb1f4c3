// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <limits>

namespace orrery::detail {

/// The vector kernels' power of two: 2^y for y <= `ceiling`, and *exactly zero* for y < `floor` and for -infinity.
///
/// y is split into its nearest integer n and f in [-1/2, 1/2]; 2^f = 1 + f * (c0 + f * (c1 + ...)), where the
/// coefficients interpolate (2^f - 1) / f at Chebyshev nodes, so that 2^0 is exactly 1; n is added to its exponent.
/// Softmax terms below 2^floor cannot change a sum that holds a 1, but multiplied into outputs they would become
/// denormal numbers, which many processors handle a hundred times more slowly.
///
/// Error against the true power: at most 1.25 units in the last place (the polynomial's own is 5.1e-9 in float and
/// 8.5e-18 in double; the rest is rounding). `tests/kernel/exponential.cpp` measures it.
template <class T>
struct exponential;

template <>
struct exponential<float> {
  static constexpr float floor = -100.0f;
  static constexpr float ceiling = 127.0f;
  static constexpr int mantissa = 23;
  static constexpr std::int32_t bits_of_minus_infinity = -0x00800000;
  static constexpr float round = 12582912.0f;  ///< 1.5 * 2^23: adding it rounds to an integer n, in the lowest bits
  static constexpr float coefficients[] = {0.693147188f,   0.240226508f,   0.0555035711f,
                                           0.00961808256f, 0.00133908634f, 0.000154531629f};
};

template <>
struct exponential<double> {
  static constexpr double floor = -1000.0;
  static constexpr double ceiling = 1023.0;
  static constexpr int mantissa = 52;
  static constexpr std::int64_t bits_of_minus_infinity = -0x0010000000000000;
  static constexpr double round = 6755399441055744.0;
  static constexpr double coefficients[] = {0.69314718055994529,    0.24022650695910097,    0.055504108664821597,
                                            0.0096181291076068882,  0.0013333558146416936,  0.0001540353044173605,
                                            1.5252733829836119e-05, 1.3215442587921689e-06, 1.0178062445845774e-07,
                                            7.0725859692692234e-09, 4.4549605981865186e-10};
};

template <class T>
inline constexpr T log2_e = static_cast<T>(1.44269504088896340735992468100189214L);
template <class T>
inline constexpr T ln_2 = static_cast<T>(0.693147180559945309417232121458176568L);

/// A finite natural logarithm as a logarithm to base 2, which stays finite. NaN stays NaN.
template <class T>
[[nodiscard]] constexpr T log2_of_log(T log) noexcept {
  constexpr auto most = static_cast<double>((std::numeric_limits<T>::max)());
  const double y = static_cast<double>(log) * log2_e<double>;
  return static_cast<T>(y > most ? most : y < -most ? -most : y);
}

}  // namespace orrery::detail
