// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

namespace orrery::detail {

/// Parses a text from another rank and accepts nothing but the expected format. A parser is a chain of calls; the first
/// call that does not find its part makes all later ones fail. Never reads past the end, and never loops.
///
///     std::uint64_t query = 0;
///     int first = 0;
///     if (!peer_text{text}.number(query).skip(" ").number(first, 0, size - 1).ended()) reject();
class peer_text {
 public:
  explicit peer_text(std::string_view text) noexcept : rest_{text} {}

  /// Reads a decimal integer in [least, most], written as by std::to_string. On failure `into` is unchanged.
  template <class T>
  peer_text& number(T& into, T least = (std::numeric_limits<T>::min)(),
                    T most = (std::numeric_limits<T>::max)()) noexcept {
    static_assert(std::is_integral_v<T>);
    if (!good_) return *this;
    const bool negative = std::is_signed_v<T> && !rest_.empty() && rest_[0] == '-';
    std::size_t at = negative ? 1 : 0;
    const std::size_t first = at;
    std::uint64_t value = 0;
    for (; at < rest_.size() && rest_[at] >= '0' && rest_[at] <= '9'; ++at) {
      const auto digit = static_cast<std::uint64_t>(rest_[at] - '0');
      if (value > ((std::numeric_limits<std::uint64_t>::max)() - digit) / 10) return fail();
      value = 10 * value + digit;
    }
    if (at == first || (rest_[first] == '0' && (at > first + 1 || negative))) return fail();
    constexpr auto largest = static_cast<std::uint64_t>((std::numeric_limits<T>::max)());
    if (value > largest + (negative ? 1 : 0)) return fail();
    const T read = negative ? static_cast<T>(-static_cast<T>(value - 1) - 1) : static_cast<T>(value);
    if (read < least || read > most) return fail();
    into = read;
    rest_.remove_prefix(at);
    return *this;
  }

  /// Skips exactly these characters.
  peer_text& skip(std::string_view expected) noexcept {
    if (!good_ || rest_.substr(0, expected.size()) != expected) return fail();
    rest_.remove_prefix(expected.size());
    return *this;
  }

  /// Reads everything up to `end`, which must follow, and skips `end` itself.
  peer_text& until(char end, std::string_view& into) noexcept {
    const std::size_t at = good_ ? rest_.find(end) : std::string_view::npos;
    if (at == std::string_view::npos) return fail();
    into = rest_.substr(0, at);
    rest_.remove_prefix(at + 1);
    return *this;
  }

  /// True if this is the next character.
  [[nodiscard]] bool at(char next) const noexcept { return good_ && !rest_.empty() && rest_[0] == next; }
  /// True if everything has matched so far.
  [[nodiscard]] bool good() const noexcept { return good_; }
  /// True if everything has matched, up to the end of the text.
  [[nodiscard]] bool ended() const noexcept { return good_ && rest_.empty(); }

 private:
  peer_text& fail() noexcept {
    good_ = false;
    return *this;
  }

  std::string_view rest_;
  bool good_ = true;
};

}  // namespace orrery::detail
