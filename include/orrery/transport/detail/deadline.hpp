// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <condition_variable>  // for timed waits, and so brings the clocks: at a quarter of the cost of <chrono>
#include <string>

#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// The moment `seconds` from now; at most 30 years, since a clock ends after 292.
[[nodiscard]] inline std::chrono::steady_clock::time_point deadline_in(double seconds) {
  const std::chrono::duration<double> patience{seconds < 1e9 ? seconds : 1e9};
  return std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(patience);
}

/// Empty, or what is wrong with the options that every transport of the host has.
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
