// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdio>
#include <string>

namespace orrery::detail {

/// Writes seconds for people, with three digits and a unit: "12.3 ms".
[[nodiscard]] inline std::string seconds_text(double seconds) {
  const char* const names[] = {"s", "ms", "us", "ns"};
  int unit = 0;
  double value = seconds;
  while (unit < 3 && value < 1 && value > 0) {
    value *= 1000;
    ++unit;
  }
  char text[48];
  std::snprintf(text, sizeof text,
                value < 9.995   ? "%.2f %s"
                : value < 99.95 ? "%.1f %s"
                                : "%.0f %s",
                value, names[unit]);
  return text;
}

/// Writes bytes for people: "1.50 GB".
[[nodiscard]] inline std::string bytes_text(double bytes) {
  const char* const names[] = {"B", "KB", "MB", "GB", "TB", "PB"};
  int unit = 0;
  while (unit < 5 && bytes >= 999.5) {
    bytes /= 1000;
    ++unit;
  }
  char text[48];
  std::snprintf(text, sizeof text,
                unit == 0       ? "%.0f %s"
                : bytes < 9.995 ? "%.2f %s"
                : bytes < 99.95 ? "%.1f %s"
                                : "%.0f %s",
                bytes, names[unit]);
  return text;
}

}  // namespace orrery::detail
