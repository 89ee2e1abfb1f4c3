// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

namespace orrery {

/// How a schedule is drawn: see `traffic_svg`, `coverage_svg` and `schedule_html`.
struct picture_options {
  std::string title{};     ///< above the picture: the topology's name, say
  int ranks_per_node = 1;  ///< consecutive ranks with a border around them; 1: none
  int slice = 0;           ///< the slice of the heads of which `coverage_svg` draws the pairs
};

}  // namespace orrery
