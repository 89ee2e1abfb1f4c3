// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

namespace orrery::detail {

/// Where a function was called, as a default argument: what std::source_location is for, which Clang has from version
/// 16 on.
///
///     void check(int code, const source_place& place = source_place::current());
struct source_place {
  const char* file;
  int line;

  [[nodiscard]] static constexpr source_place current(const char* file = __builtin_FILE(),
                                                      int line = __builtin_LINE()) noexcept {
    return {file, line};
  }
};

}  // namespace orrery::detail
