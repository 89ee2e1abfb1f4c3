// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// 16-bit element types: every value there and back, and every rounding between two of them.
#include "orrery/tensor/float16.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/cpu/microkernels.hpp"

namespace {

using orrery::bfloat16;
using orrery::float16;

/// The value of the bits by their definition. Exact, in double.
template <class T>
double by_definition(std::uint32_t bits) {
  constexpr int fraction_bits = std::numeric_limits<T>::digits - 1;
  constexpr int exponent_bits = 15 - fraction_bits;
  constexpr int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits & 0x8000u) != 0 ? -1 : 1;
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = static_cast<int>(bits) & ((1 << fraction_bits) - 1);
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// Are all of them what they should be? One assertion for thousands of values.
struct mistakes {
  int count = 0;
  double first = 0;
  void expect(bool right, double value) {
    if (!right && count++ == 0) first = value;
  }
};

}  // namespace

TEST_CASE_TEMPLATE("every value is what its bits mean, and comes back", T, bfloat16, float16) {
  mistakes found;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T value = T::of_bits(static_cast<std::uint16_t>(bits));
    const double expected = by_definition<T>(bits);
    const float wide = value;
    if (std::isnan(expected)) {
      found.expect(std::isnan(wide) && std::isnan(static_cast<float>(T{wide})), bits);
      found.expect(((T{wide}.bits ^ bits) & 0x8000u) == 0, bits);
    } else {
      found.expect(static_cast<double>(wide) == expected && std::signbit(wide) == std::signbit(expected), bits);
      found.expect(T{wide}.bits == bits, bits);
      found.expect(T{expected}.bits == bits, bits);
    }
  }
  CHECK(found.count == 0);
  CHECK(found.first == 0);
}

TEST_CASE_TEMPLATE("rounding is to the nearest, ties to even", T, bfloat16, float16) {
  mistakes found;
  const std::uint32_t infinity = std::numeric_limits<T>::infinity().bits;
  for (std::uint32_t bits = 0; bits < infinity; ++bits) {
    // The tie between a value and the next; after the largest comes, for rounding, the power of two that is no more.
    const double low = by_definition<T>(bits);
    const double high = bits + 1 < infinity ? by_definition<T>(bits + 1) : low + (low - by_definition<T>(bits - 1));
    const double tie = (low + high) / 2;
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    for (const double sign : {1.0, -1.0}) {
      const std::uint32_t minus = sign < 0 ? 0x8000u : 0;
      found.expect(T{sign * tie}.bits == (even | minus), tie);
      found.expect(T{sign * std::nextafter(tie, 0.0)}.bits == (bits | minus), tie);
      found.expect(T{sign * std::nextafter(tie, 2 * high)}.bits == ((bits + 1) | minus), tie);
      const auto single = static_cast<float>(tie);  // exact: but for the smallest bfloat16, whose half is a float, too
      found.expect(static_cast<double>(single) == tie, tie);
      found.expect(T{static_cast<float>(sign) * single}.bits == (even | minus), tie);
      found.expect(T{static_cast<float>(sign) * std::nextafterf(single, 0.0f)}.bits == (bits | minus), tie);
      const float above = std::nextafterf(single, std::numeric_limits<float>::infinity());
      found.expect(T{static_cast<float>(sign) * above}.bits == ((bits + 1) | minus), tie);
    }
  }
  CHECK(found.count == 0);
  CHECK(found.first == 0);
}

TEST_CASE_TEMPLATE("special values", T, bfloat16, float16) {
  using limits = std::numeric_limits<T>;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(static_cast<float>(limits::infinity()) == infinity);
  CHECK(T{infinity}.bits == limits::infinity().bits);
  CHECK(T{-infinity}.bits == (limits::infinity().bits | 0x8000u));
  CHECK(T{(std::numeric_limits<double>::max)()}.bits == limits::infinity().bits);
  CHECK(std::isnan(static_cast<float>(T{std::numeric_limits<double>::quiet_NaN()})));
  CHECK(static_cast<float>((limits::max)()) < infinity);
  CHECK(static_cast<float>(limits::lowest()) == -static_cast<float>((limits::max)()));
  CHECK(static_cast<float>(limits::epsilon()) == std::ldexp(1.0f, 1 - limits::digits));
  CHECK(static_cast<float>((limits::min)()) == std::ldexp(1.0f, limits::min_exponent - 1));
  CHECK(static_cast<float>(limits::denorm_min()) == std::ldexp(1.0f, limits::min_exponent - limits::digits));
  CHECK(static_cast<float>(T{12}) == 12.0f);
  static_assert(static_cast<float>(T{-0.375}) == -0.375f);
}

TEST_CASE("every instruction set widens all values alike, in blocks of any length") {
  for (const auto set :
       {orrery::instruction_set::baseline, orrery::instruction_set::avx2, orrery::instruction_set::avx512}) {
    if (set > orrery::widest_instruction_set()) continue;
    const auto steps = orrery::detail::flash_steps_for<float>(set);
    const auto check = [](auto widen, auto like) {
      std::vector<decltype(like)> narrow;
      for (std::uint32_t bits = 0; bits < 0x10000; ++bits)
        narrow.push_back(like.of_bits(static_cast<std::uint16_t>(bits)));
      mistakes found;
      std::vector<float> wide(narrow.size() + 1, 5.0f);
      for (std::size_t at = 0, length = 1; at < narrow.size(); at += length, length = length % 77 + 1) {
        if (length > narrow.size() - at) length = narrow.size() - at;
        widen(narrow.data() + at, wide.data() + at, static_cast<std::int64_t>(length));
        found.expect(wide[at + length] == 5.0f, static_cast<double>(at));
      }
      for (std::size_t i = 0; i < narrow.size(); ++i) {
        const float expected = narrow[i];
        found.expect(bits_of(wide[i]) == bits_of(expected), static_cast<double>(i));
      }
      CHECK(found.count == 0);
      CHECK(found.first == 0);
    };
    check(steps.widen_bfloat16, bfloat16{});
    check(steps.widen_float16, float16{});
  }
}
