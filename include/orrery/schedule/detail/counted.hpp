// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

namespace orrery::detail {

/// "1 rank", "8 ranks".
[[nodiscard]] inline std::string counted_ranks(int ranks) {
  return std::to_string(ranks) + (ranks == 1 ? " rank" : " ranks");
}

}  // namespace orrery::detail
