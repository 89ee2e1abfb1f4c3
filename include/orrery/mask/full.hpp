// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

#include "orrery/mask/mask.hpp"

namespace orrery {

/// Every query sees every key.
struct full {
  static constexpr bool rows_are_intervals = true;
  static constexpr bool counts_in_documents = true;

  [[nodiscard]] static constexpr bool visible(std::int64_t, std::int64_t) noexcept { return true; }
  [[nodiscard]] static constexpr visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) noexcept {
    return visibility::all;
  }
  [[nodiscard]] static constexpr position_interval keys_of(std::int64_t, std::int64_t) noexcept {
    return {0, INT64_MAX};
  }
  [[nodiscard]] static std::string name() { return "full"; }

  constexpr bool operator==(const full&) const = default;
};

}  // namespace orrery
