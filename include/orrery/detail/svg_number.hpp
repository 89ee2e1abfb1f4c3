// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdio>
#include <string>

namespace orrery::detail {

/// A coordinate as SVG files write it: two digits after the point at most.
[[nodiscard]] inline std::string svg_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", value);
  std::string all = text;
  while (all.back() == '0') all.pop_back();
  if (all.back() == '.') all.pop_back();
  return all == "-0" ? "0" : all;
}

}  // namespace orrery::detail
