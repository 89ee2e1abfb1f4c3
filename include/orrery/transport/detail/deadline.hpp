// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <condition_variable>  // IWYU pragma: keep: brings the clocks too, at a quarter of the compile time of <chrono>
#include <string>

#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// Returns the time `seconds` from now; at most 30 years, since a clock overflows after 292.
[[nodiscard]] inline std::chrono::steady_clock::time_point deadline_in(double seconds) {
  const std::chrono::duration<double> bounded{seconds < 1e9 ? seconds : 1e9};
  return std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(bounded);
}

/// Checks the options that every host transport has. Returns an error message, or an empty string.
[[nodiscard]] inline std::string options_error(double deadline, int threads_per_rank) {
  if (!(deadline > 0) || !math::is_finite(deadline)) {
    return "deadline is " + std::to_string(deadline) + ", expected a positive number of seconds";
  }
  if (threads_per_rank < 1) {
    return "threads_per_rank is " + std::to_string(threads_per_rank) + ", expected at least 1";
  }
  return "";
}

}  // namespace orrery::detail
