// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/detail/counted.hpp"

namespace orrery::detail {

/// The topology inside another one that refuses its part of the world: the innermost. Empty if it is the whole one.
struct refusing_part {
  std::string (*name)() = nullptr;
  int world = 0;

  /// Comes before the reason in a message.
  [[nodiscard]] std::string text() const {
    return name == nullptr ? "" : "runs " + name() + " over " + counted_ranks(world) + ", which ";
  }
};

}  // namespace orrery::detail
