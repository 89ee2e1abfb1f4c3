// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace orrery::detail {

/// What can be named: the function that was called with a name, what it names, and all that there is, as
/// "wallfacer<C>".
struct nameable {
  const char* call;
  const char* what;
  std::span<const char* const> known;
};

/// How many characters must be put in, taken out or changed to make one text of the other.
[[nodiscard]] inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0]++;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i] == b[j] ? 0U : 1U);
      diagonal = row[j + 1];
      row[j + 1] = (std::min)({changed, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

/// A name taken apart: "concentric<2,2>" is `base` concentric with two arguments. Spaces around the parts are left out.
class parsed_name {
 public:
  /// Throws `std::invalid_argument` if brackets do not match.
  parsed_name(std::string_view text, const nameable& all) : text_{trimmed(text)}, all_{&all} {
    const std::size_t open = text_.find('<');
    base_ = trimmed(text_.substr(0, open));
    if (open == std::string_view::npos) return;
    std::size_t begin = open + 1;
    int depth = 0;
    for (std::size_t i = open; i < text_.size(); ++i) {
      if (text_[i] == '<') ++depth;
      if (text_[i] == '>') --depth;
      const bool last = depth == 0;
      if (last || (depth == 1 && text_[i] == ',')) {
        arguments_.push_back(trimmed(text_.substr(begin, i - begin)));
        begin = i + 1;
      }
      if (last && i + 1 != text_.size()) refuse("has something behind its last >");
      if (last) return;
    }
    refuse("lacks a >");
  }

  [[nodiscard]] const std::string_view& base() const noexcept { return base_; }
  [[nodiscard]] std::size_t arguments() const noexcept { return arguments_.size(); }
  [[nodiscard]] std::string_view argument(std::size_t i) const { return arguments_[i]; }

  /// True if this is `base` with a number of arguments from `least` to `most`. Throws `std::invalid_argument` if it has
  /// another number of them.
  [[nodiscard]] bool is(std::string_view base, std::size_t least = 0, std::size_t most = 0) const {
    if (base_ != base) return false;
    if (arguments_.size() < least || arguments_.size() > most) {
      refuse("has " + std::to_string(arguments_.size()) + (arguments_.size() == 1 ? " argument" : " arguments") +
             ", expected " + std::string{spelled(base)});
    }
    return true;
  }

  /// Argument `i`, which must be a number in [least, most]. Throws `std::invalid_argument` if it is none.
  [[nodiscard]] std::int64_t number(std::size_t i, std::int64_t most, std::int64_t least = 1) const {
    const std::string_view digits = arguments_[i];
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error == std::errc{} && end == digits.data() + digits.size() && value >= least && value <= most) return value;
    refuse("has argument " + (digits.empty() ? "nothing" : std::string{digits}) + ", expected a number from " +
           std::to_string(least) + " to " + std::to_string(most) + " in " + std::string{spelled(base_)});
  }

  [[noreturn]] void refuse(const std::string& why) const {
    throw std::invalid_argument{std::string{"orrery: "} + all_->call + ": \"" + std::string{text_} + "\" " + why};
  }

  /// There is no such name: throws `std::invalid_argument` with the nearest one and all others.
  [[noreturn]] void refuse_unknown() const {
    std::string known;
    std::string_view nearest;
    std::size_t least = 0;
    for (const char* const one : all_->known) {
      known += (known.empty() ? "" : ", ") + std::string{one};
      const std::size_t distance = edit_distance(base_, base_of(one));
      if (!nearest.empty() && distance >= least) continue;
      nearest = one;
      least = distance;
    }
    // Half of the name and more: what was meant is unknown.
    const bool close = 2 * least <= base_.size();
    refuse(std::string{"is no "} + all_->what + "; " +
           (close ? "did you mean " + std::string{nearest} + "? There are " : std::string{"there are "}) + known);
  }

 private:
  [[nodiscard]] static std::string_view trimmed(std::string_view text) noexcept {
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
    return text;
  }
  [[nodiscard]] static std::string_view base_of(std::string_view known) noexcept {
    return known.substr(0, known.find_first_of("< "));
  }
  /// How this name is written, as it stands in the list.
  [[nodiscard]] std::string_view spelled(std::string_view base) const {
    for (const char* const one : all_->known) {
      if (base_of(one) == base) return one;
    }
    return base;
  }

  std::string_view text_;
  std::string_view base_;
  std::vector<std::string_view> arguments_;
  const nameable* all_;
};

}  // namespace orrery::detail
