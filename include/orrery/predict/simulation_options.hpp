// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <functional>

#include "orrery/predict/tile_work.hpp"
#include "orrery/schedule/block.hpp"

namespace orrery {

/// What else `simulate` is told.
struct simulation_options {
  schedule::pass pass = schedule::pass::forward;
  std::int64_t storage_bytes = 2;  ///< of an element of Q, K, V and O: 2 for bfloat16 and float16
  std::int64_t sum_bytes = 4;      ///< of an element of a partial: 4 for float
  /// Simulates the schedule that the topology writes, for every pair, and not what an operator makes of it for the mask
  /// and the layout. As most systems do: they move what the mask hides, and skip computing it.
  bool as_written = false;
  bool with_timeline = false;  ///< fills `prediction::timeline`
  /// Seconds of a tile on a rank of speed 1; if empty, `tile_seconds(work, machine's rates)`. For a table of measured
  /// times, or another model of a kernel.
  std::function<double(const tile_work&)> tile_seconds{};
};

}  // namespace orrery
