// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

/// The programs with their completions ordered and slots assigned.
[[nodiscard]] constexpr orrery::schedule::list<orrery::schedule::program> finished(
    orrery::schedule::list<orrery::schedule::program> programs) {
  for (orrery::schedule::program& one : programs) orrery::schedule::finish(one);
  return programs;
}
