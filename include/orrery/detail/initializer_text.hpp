// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

namespace orrery::detail {

/// Writes an aggregate as the designated initialiser that makes it: "{.length = 65536, .query_heads = 32}". What a
/// program prints can so be pasted into a program.
class initializer_text {
 public:
  /// What stands for a value in code, such as an enumerator.
  struct code {
    std::string text;
    bool operator==(const code&) const = default;
  };

  /// Writes a member.
  template <class T>
  initializer_text& member(const char* name, const T& value) {
    text_ += (text_.empty() ? "." : ", .") + std::string{name} + " = " + code_of(value);
    return *this;
  }
  /// Writes a member, unless it has its default.
  template <class T>
  initializer_text& member(const char* name, const T& value, const std::type_identity_t<T>& by_default) {
    return value == by_default ? *this : member(name, value);
  }
  /// Writes an optional member, if it has a value.
  template <class T>
  initializer_text& member(const char* name, const std::optional<T>& value) {
    return value ? member(name, *value) : *this;
  }

  [[nodiscard]] std::string text() const { return "{" + text_ + "}"; }

  [[nodiscard]] static std::string code_of(const code& value) { return value.text; }
  [[nodiscard]] static std::string code_of(bool value) { return value ? "true" : "false"; }
  template <std::integral T>
  [[nodiscard]] static std::string code_of(T value) {
    return std::to_string(value);
  }
  /// A short text that is read as the same number.
  [[nodiscard]] static std::string code_of(double value) {
    char text[40];
    for (int digits = 6; digits <= 17; ++digits) {  // without zeros at the end
      std::snprintf(text, sizeof text, "%.*g", digits, value);
      if (std::strtod(text, nullptr) == value) break;
    }
    return text;
  }
  [[nodiscard]] static std::string code_of(std::string_view value) {
    std::string text = "\"";
    for (const char c : value) text += (c == '"' || c == '\\' ? "\\" : "") + std::string{c};
    return text + "\"";
  }
  template <class List>
    requires(!std::convertible_to<const List&, std::string_view> && requires(const List& list) { list.begin(); })
  [[nodiscard]] static std::string code_of(const List& values) {
    std::string text;
    for (const auto& value : values) text += (text.empty() ? "" : ", ") + code_of(value);
    return "{" + text + "}";
  }

 private:
  std::string text_;
};

}  // namespace orrery::detail
