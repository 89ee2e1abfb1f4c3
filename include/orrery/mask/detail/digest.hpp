// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

namespace orrery::detail {

/// 16 digits by which names tell tables of numbers apart (FNV-1a).
[[nodiscard]] inline std::string digest_of(const std::int64_t* table, int size) {
  std::uint64_t digest = 0xcbf29ce484222325U;
  for (int i = 0; i < size; ++i) {
    for (int shift = 0; shift < 64; shift += 8) {
      digest = (digest ^ (static_cast<std::uint64_t>(table[i]) >> shift & 0xffU)) * 0x100000001b3U;
    }
  }
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[digest >> shift & 0xfU];
  return text;
}

}  // namespace orrery::detail
