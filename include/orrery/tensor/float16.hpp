// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <bit>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// A double as a float that rounds on as the double would: inexact results get an odd last bit, so that rounding them
/// to a shorter type cannot meet a tie that is none. (Boldo and Melquiond, "When double rounding is odd", 2005.)
[[nodiscard]] constexpr float round_to_odd(double value) noexcept {
  const float nearest = math::opaque(static_cast<float>(value));
  if (!math::is_finite(nearest)) return nearest;
  const auto back = static_cast<double>(nearest);
  if (back == value) return nearest;
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  const bool away = value < 0 ? back < value : back > value;
  if (away) --bits;  // towards zero
  return std::bit_cast<float>(bits | 1u);
}

}  // namespace orrery::detail

namespace orrery {

/// 16-bit storage with the exponent of a float: 8 significant bits. The bits of `__nv_bfloat16`, `at::BFloat16` and
/// `std::bfloat16_t`, so that a trainer's address may be cast to this type's.
///
/// For storage only: it converts to float without loss, arithmetic happens there, and back by rounding to the nearest,
/// ties to even. Values beyond the largest become infinite; NaN stays NaN, quiet.
struct bfloat16 {
  std::uint16_t bits;

  bfloat16() = default;
  template <class T>
    requires std::is_arithmetic_v<T>
  explicit constexpr bfloat16(T value) noexcept
      : bits{from(std::is_same_v<T, float> ? static_cast<float>(value)
                                           : detail::round_to_odd(static_cast<double>(value)))} {}

  // NOLINTNEXTLINE(google-explicit-constructor): loses nothing
  constexpr operator float() const noexcept { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

  [[nodiscard]] static constexpr bfloat16 of_bits(std::uint16_t bits) noexcept {
    bfloat16 made{};
    made.bits = bits;
    return made;
  }

 private:
  // Without branches, so that loops over it become vectors.
  static constexpr std::uint16_t from(float value) noexcept {
    const auto exact = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = exact + 0x7fffu + ((exact >> 16) & 1u);
    const bool is_nan = static_cast<std::int32_t>(exact & 0x7fffffffu) > 0x7f800000;
    return static_cast<std::uint16_t>((is_nan ? exact | 0x400000u : rounded) >> 16);
  }
};

/// 16-bit storage of IEEE 754, binary16: 11 significant bits, up to 65504. The bits of `__half`, `at::Half` and
/// `_Float16`; otherwise as `bfloat16`.
struct float16 {
  std::uint16_t bits;

  float16() = default;
  template <class T>
    requires std::is_arithmetic_v<T>
  explicit constexpr float16(T value) noexcept
      : bits{from(std::is_same_v<T, float> ? static_cast<float>(value)
                                           : detail::round_to_odd(static_cast<double>(value)))} {}

  // NOLINTNEXTLINE(google-explicit-constructor): loses nothing
  constexpr operator float() const noexcept {
    const std::uint32_t sign = (bits & 0x8000u) << 16;
    const std::uint32_t rest = bits & 0x7fffu;
    // 2^-24 per unit below the smallest normal number; otherwise the bits, with the exponents' other bias.
    const auto tiny = std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(rest)) * 0x1p-24f);
    const std::uint32_t usual = (rest << 13) + (112u << 23);
    const std::uint32_t special = (rest << 13) | 0x7f800000u;
    const std::uint32_t magnitude = rest < 0x400u ? tiny : rest < 0x7c00u ? usual : special;
    return std::bit_cast<float>(sign | magnitude);
  }

  [[nodiscard]] static constexpr float16 of_bits(std::uint16_t bits) noexcept {
    float16 made{};
    made.bits = bits;
    return made;
  }

 private:
  static constexpr std::uint16_t from(float value) noexcept {
    const auto exact = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = exact >> 16 & 0x8000u;
    const std::uint32_t rest = exact & 0x7fffffffu;
    // Below 2^-14 results have a fixed last place of 2^-24, at which adding 1/2 rounds a float.
    const float padded = std::bit_cast<float>(rest < 0x38800000u ? rest : 0u) + 0.5f;
    const std::uint32_t tiny = std::bit_cast<std::uint32_t>(padded) - 0x3f000000u;
    const std::uint32_t usual = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13;
    const std::uint32_t special = rest > 0x7f800000u ? 0x7e00u | (rest >> 13 & 0x3ffu) : 0x7c00u;
    const std::uint32_t magnitude = rest < 0x38800000u ? tiny : rest < 0x477ff000u ? usual : special;
    return static_cast<std::uint16_t>(sign | magnitude);
  }
};

static_assert(sizeof(bfloat16) == 2 && std::is_trivially_copyable_v<bfloat16>);
static_assert(sizeof(float16) == 2 && std::is_trivially_copyable_v<float16>);

}  // namespace orrery

namespace orrery::detail {

/// The name of an element type, for messages and for ranks to compare.
template <class T>
[[nodiscard]] inline std::string element_name() {
  if constexpr (std::is_same_v<T, float>) return "float";
  if constexpr (std::is_same_v<T, double>) return "double";
  if constexpr (std::is_same_v<T, bfloat16>) return "bfloat16";
  if constexpr (std::is_same_v<T, float16>) return "float16";
  return std::to_string(8 * sizeof(T)) + "-bit elements";
}

}  // namespace orrery::detail

/// What holds of every number of these types, and their special values.
template <>
struct std::numeric_limits<orrery::bfloat16> {
  static constexpr bool is_specialized = true, is_signed = true, is_integer = false, is_exact = false, is_iec559 = true;
  static constexpr bool has_infinity = true, has_quiet_NaN = true, has_signaling_NaN = true, is_bounded = true;
  static constexpr int digits = 8, radix = 2, max_exponent = 128, min_exponent = -125;
  static constexpr orrery::bfloat16 epsilon() noexcept { return orrery::bfloat16::of_bits(0x3c00); }
  static constexpr orrery::bfloat16(min)() noexcept { return orrery::bfloat16::of_bits(0x0080); }
  static constexpr orrery::bfloat16(max)() noexcept { return orrery::bfloat16::of_bits(0x7f7f); }
  static constexpr orrery::bfloat16 lowest() noexcept { return orrery::bfloat16::of_bits(0xff7f); }
  static constexpr orrery::bfloat16 denorm_min() noexcept { return orrery::bfloat16::of_bits(0x0001); }
  static constexpr orrery::bfloat16 infinity() noexcept { return orrery::bfloat16::of_bits(0x7f80); }
  static constexpr orrery::bfloat16 quiet_NaN() noexcept { return orrery::bfloat16::of_bits(0x7fc0); }
};
template <>
struct std::numeric_limits<orrery::float16> {
  static constexpr bool is_specialized = true, is_signed = true, is_integer = false, is_exact = false, is_iec559 = true;
  static constexpr bool has_infinity = true, has_quiet_NaN = true, has_signaling_NaN = true, is_bounded = true;
  static constexpr int digits = 11, radix = 2, max_exponent = 16, min_exponent = -13;
  static constexpr orrery::float16 epsilon() noexcept { return orrery::float16::of_bits(0x1400); }
  static constexpr orrery::float16(min)() noexcept { return orrery::float16::of_bits(0x0400); }
  static constexpr orrery::float16(max)() noexcept { return orrery::float16::of_bits(0x7bff); }
  static constexpr orrery::float16 lowest() noexcept { return orrery::float16::of_bits(0xfbff); }
  static constexpr orrery::float16 denorm_min() noexcept { return orrery::float16::of_bits(0x0001); }
  static constexpr orrery::float16 infinity() noexcept { return orrery::float16::of_bits(0x7c00); }
  static constexpr orrery::float16 quiet_NaN() noexcept { return orrery::float16::of_bits(0x7e00); }
};
