// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

namespace orrery::detail {

/// A hash of 64 bits by which names and ranks tell lists of numbers apart (FNV-1a); the same on every machine.
class number_digest {
 public:
  constexpr number_digest() = default;
  /// Continues from another digest's value.
  constexpr explicit number_digest(std::uint64_t begun) noexcept : value_{begun} {}

  constexpr void add(std::int64_t number) noexcept {
    for (int shift = 0; shift < 64; shift += 8) {
      value_ = (value_ ^ (static_cast<std::uint64_t>(number) >> shift & 0xffU)) * 0x100000001b3U;
    }
  }
  [[nodiscard]] constexpr std::uint64_t value() const noexcept { return value_; }
  /// Sixteen hexadecimal digits.
  [[nodiscard]] std::string text() const {
    std::string digits;
    for (int shift = 60; shift >= 0; shift -= 4) digits += "0123456789abcdef"[value_ >> shift & 0xfU];
    return digits;
  }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325U;
};

/// The digits of the numbers' digest.
template <class Numbers>
[[nodiscard]] std::string digest_text(const Numbers& numbers) {
  number_digest digest;
  for (const std::int64_t number : numbers) digest.add(number);
  return digest.text();
}

}  // namespace orrery::detail
