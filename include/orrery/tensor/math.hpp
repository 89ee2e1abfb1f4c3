// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

/// The mathematical library's functions that headers need, by the compilers' own names: <cmath> would cost every file
/// that includes this library a tenth of a second.
namespace orrery::detail::math {

[[nodiscard]] inline float exp(float x) noexcept { return __builtin_expf(x); }
[[nodiscard]] inline double exp(double x) noexcept { return __builtin_exp(x); }
[[nodiscard]] inline float log(float x) noexcept { return __builtin_logf(x); }
[[nodiscard]] inline double log(double x) noexcept { return __builtin_log(x); }
[[nodiscard]] inline float log1p(float x) noexcept { return __builtin_log1pf(x); }
[[nodiscard]] inline double log1p(double x) noexcept { return __builtin_log1p(x); }
[[nodiscard]] inline double sqrt(double x) noexcept { return __builtin_sqrt(x); }

/// Returns x, but hides from the compiler that it does: costs no instruction where x is in a register.
///
/// A compiler that is told `-fassociative-math` (a part of `-ffast-math` and `-Ofast`) takes (x + y) - x for y, and an
/// error term of a compensated sum for 0. It does not look through `opaque`: wrap each result that must be rounded as
/// written before the next operation uses it, and each difference of such results.
///
///     const T total = opaque(sum + term);
///     const T error = opaque(term - opaque(total - sum));  // what the addition lost, where |sum| >= |term|
///
/// For float and double; the vector code has its own (flash_vector.inc). Works for any processor, and in constant
/// expressions, where a compiler computes exactly what is written. In device code, which is never reassociated, returns
/// x.
template <class T>
[[nodiscard]] constexpr T opaque(T x) noexcept {
#if !defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) {
#if defined(__x86_64__)
    __asm__("" : "+x"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#else
    __asm__("" : "+m"(x));
#endif
  }
#endif
  return x;
}

/// The bits of a number. A compiler that is told `-ffinite-math-only` does not learn that they are those of a float, of
/// which it may assume anything; the others may still make vectors of loops over them.
[[nodiscard]] constexpr std::uint32_t bits_of(float x) noexcept {
  auto bits = __builtin_bit_cast(std::uint32_t, x);
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ && !defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) __asm__("" : "+r"(bits));
#endif
  return bits;
}
[[nodiscard]] constexpr std::uint64_t bits_of(double x) noexcept {
  auto bits = __builtin_bit_cast(std::uint64_t, x);
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ && !defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) __asm__("" : "+r"(bits));
#endif
  return bits;
}

/// Tests on the bits of a number. Comparisons would not do: a NaN fails all of them, and a compiler that is told
/// `-ffinite-math-only` (a part of `-ffast-math`) may take `x == infinity` for false and `x - x == 0` for true.
[[nodiscard]] constexpr bool is_minus_infinity(float x) noexcept { return bits_of(x) == 0xff800000U; }
[[nodiscard]] constexpr bool is_minus_infinity(double x) noexcept { return bits_of(x) == 0xfff0000000000000U; }
[[nodiscard]] constexpr bool is_nan(float x) noexcept { return (bits_of(x) & 0x7fffffffU) > 0x7f800000U; }
[[nodiscard]] constexpr bool is_nan(double x) noexcept {
  return (bits_of(x) & 0x7fffffffffffffffU) > 0x7ff0000000000000U;
}
/// Neither infinite nor a NaN.
[[nodiscard]] constexpr bool is_finite(float x) noexcept { return (bits_of(x) & 0x7f800000U) != 0x7f800000U; }
[[nodiscard]] constexpr bool is_finite(double x) noexcept {
  return (bits_of(x) & 0x7ff0000000000000U) != 0x7ff0000000000000U;
}

/// -infinity and NaN as constants: a compiler that is told `-ffinite-math-only` does not learn which number it is. (It
/// takes `c ? x : -infinity` for x, and warns.)
///
///     static constexpr math::minus_infinity<float> nothing{};
///     const float lse = seen ? largest : nothing;
template <class T>
struct minus_infinity {
  // NOLINTNEXTLINE(google-explicit-constructor): it is a number
  [[nodiscard]] constexpr operator T() const noexcept {
    if constexpr (sizeof(T) == sizeof(float)) {
      return opaque(__builtin_bit_cast(float, 0xff800000U));
    } else {
      return opaque(__builtin_bit_cast(double, 0xfff0000000000000U));
    }
  }
};
template <class T>
struct quiet_nan {
  // NOLINTNEXTLINE(google-explicit-constructor): it is a number
  [[nodiscard]] constexpr operator T() const noexcept {
    if constexpr (sizeof(T) == sizeof(float)) {
      return opaque(__builtin_bit_cast(float, 0x7fc00000U));
    } else {
      return opaque(__builtin_bit_cast(double, 0x7ff8000000000000U));
    }
  }
};

}  // namespace orrery::detail::math
