// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <system_error>

#include "orrery/detail/initializer_text.hpp"

namespace orrery::detail {

/// What a number of a machine measures.
enum class dimension : std::uint8_t { time, size, bandwidth, computing, share };

/// A unit, and how many base units it is.
struct unit {
  const char* name;
  dimension of;
  double factor;
};

/// All units. Of each dimension, ascending.
inline constexpr unit every_unit[] = {
    {"ns", dimension::time, 1e-9},
    {"us", dimension::time, 1e-6},
    {"ms", dimension::time, 1e-3},
    {"s", dimension::time, 1},
    {"B", dimension::size, 1},
    {"KB", dimension::size, 1e3},
    {"KiB", dimension::size, 1024.0},
    {"MB", dimension::size, 1e6},
    {"MiB", dimension::size, 1048576.0},
    {"GB", dimension::size, 1e9},
    {"GiB", dimension::size, 1073741824.0},
    {"TB", dimension::size, 1e12},
    {"TiB", dimension::size, 1099511627776.0},
    {"bit/s", dimension::bandwidth, 0.125},
    {"B/s", dimension::bandwidth, 1},
    {"kbit/s", dimension::bandwidth, 125},
    {"KB/s", dimension::bandwidth, 1e3},
    {"Mbit/s", dimension::bandwidth, 125e3},
    {"MB/s", dimension::bandwidth, 1e6},
    {"MiB/s", dimension::bandwidth, 1048576.0},
    {"Gbit/s", dimension::bandwidth, 125e6},
    {"GB/s", dimension::bandwidth, 1e9},
    {"GiB/s", dimension::bandwidth, 1073741824.0},
    {"Tbit/s", dimension::bandwidth, 125e9},
    {"TB/s", dimension::bandwidth, 1e12},
    {"FLOP/s", dimension::computing, 1},
    {"MFLOP/s", dimension::computing, 1e6},
    {"GF", dimension::computing, 1e9},
    {"GFLOP/s", dimension::computing, 1e9},
    {"TF", dimension::computing, 1e12},
    {"TFLOP/s", dimension::computing, 1e12},
    {"PFLOP/s", dimension::computing, 1e15},
    {"%", dimension::share, 0.01},
};

/// Null if there is no such unit.
[[nodiscard]] inline const unit* unit_named(std::string_view name) noexcept {
  for (const unit& one : every_unit) {
    if (name == one.name) return &one;
  }
  return nullptr;
}

/// The names of a dimension's units, for messages: "ns, us, ms, s".
[[nodiscard]] inline std::string unit_names(dimension of) {
  std::string all;
  for (const unit& one : every_unit) {
    if (one.of == of) all += (all.empty() ? "" : ", ") + std::string{one.name};
  }
  return all;
}

/// Reads the number at the beginning of a text. Returns how many characters it has; 0 if there is none.
[[nodiscard]] inline std::size_t read_number(std::string_view text, double& number) noexcept {
  const std::size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  if (text.size() == sign || !((text[sign] >= '0' && text[sign] <= '9') || text[sign] == '.')) return 0;
  const char* const first = text.data() + (text[0] == '+' ? 1 : 0);
  const auto [end, error] = std::from_chars(first, text.data() + text.size(), number);
  if (error == std::errc::result_out_of_range) number = text[0] == '-' ? -HUGE_VAL : HUGE_VAL;
  if (error != std::errc{} && error != std::errc::result_out_of_range) return 0;
  return static_cast<std::size_t>(end - text.data());
}

/// Writes a number in a unit with as few digits as are read as the same number; empty if there are none.
[[nodiscard]] inline std::string exact_text(double value, const unit& in) {
  char digits[40];
  for (int count = 6; count <= 17; ++count) {
    std::snprintf(digits, sizeof digits, "%.*g", count, value / in.factor);
    if (std::strtod(digits, nullptr) * in.factor == value) return std::string{digits} + " " + in.name;
  }
  return "";
}

/// Writes a number so that it is read as the same number, in the largest unit of its dimension in which it is at least
/// 1. Units of powers of ten are preferred, and bytes to bits.
[[nodiscard]] inline std::string quantity_text(double value, dimension of) {
  std::string best;
  for (const unit& one : every_unit) {
    const std::string_view name = one.name;
    if (one.of != of || name.find("bit") != name.npos || name.find('i') != name.npos || name == "GF" || name == "TF")
      continue;
    if (!best.empty() && value < one.factor) continue;
    const std::string text = exact_text(value, one);
    if (!text.empty()) best = text;
  }
  if (!best.empty()) return best;
  for (const unit& one : every_unit) {
    if (one.of == of && one.factor == 1) return initializer_text::code_of(value) + " " + one.name;
  }
  return initializer_text::code_of(value / 0.01) + " %";
}

}  // namespace orrery::detail
