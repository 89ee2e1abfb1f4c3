// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/schedule/detail/names.hpp"

namespace orrery {

/// One of the masks of this library whose parameters are a few numbers, chosen at run time. It answers as the mask that
/// it was made from, at about the cost of `causal`. Trivially copyable, so that device kernels take it.
class any_mask {
 public:
  static constexpr bool rows_are_intervals = true;
  static constexpr bool counts_in_documents = true;

  // NOLINTBEGIN(google-explicit-constructor): a mask is a mask
  constexpr any_mask(const full&) noexcept {}
  constexpr any_mask(const causal& mask) noexcept : causal_{mask}, parts_{part::causal, part::none} {}
  constexpr any_mask(const window& mask) noexcept : window_{mask}, parts_{part::window, part::none} {}
  constexpr any_mask(const prefix& mask) noexcept : causal_{0}, prefix_{mask}, parts_{part::prefix, part::none} {}
  constexpr any_mask(const intersection<causal, window>& mask) noexcept
      : causal_{mask.first}, window_{mask.second}, parts_{part::causal, part::window} {}
  constexpr any_mask(const intersection<window, causal>& mask) noexcept
      : causal_{mask.second}, window_{mask.first}, parts_{part::window, part::causal} {}
  // NOLINTEND(google-explicit-constructor)

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const noexcept {
    return (causal_.visible(query, key) || key < prefix_.length) && window_.visible(query, key);
  }
  [[nodiscard]] constexpr visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                              std::int64_t key_last) const noexcept {
    if (parts_[0] == part::prefix) return prefix_.classify(query_first, query_last, key_first, key_last);
    return intersection{causal_, window_}.classify(query_first, query_last, key_first, key_last);
  }
  [[nodiscard]] constexpr position_interval keys_of(std::int64_t query_first, std::int64_t query_last) const noexcept {
    if (parts_[0] == part::prefix) return prefix_.keys_of(query_first, query_last);
    return intersection{causal_, window_}.keys_of(query_first, query_last);
  }
  /// True if it is `full` or causal, so that `diagonal()` is all of it.
  [[nodiscard]] constexpr bool is_diagonal() const noexcept {
    return parts_[0] <= part::causal && parts_[1] == part::none;
  }
  [[nodiscard]] constexpr std::int64_t diagonal() const noexcept { return causal_.diagonal(); }
  [[nodiscard]] std::string name() const {
    const std::string second = name_of(parts_[1]);
    return name_of(parts_[0]) + (second.empty() ? "" : " & " + second);
  }
  [[nodiscard]] std::string wrong_lengths(std::int64_t query_length, std::int64_t key_length) const {
    const std::string wrong = window_.wrong_lengths(query_length, key_length);
    return wrong.empty() ? prefix_.wrong_lengths(query_length, key_length) : wrong;
  }

  constexpr bool operator==(const any_mask&) const = default;

 private:
  enum class part : std::uint8_t { full, causal, window, prefix, none };

  [[nodiscard]] std::string name_of(part one) const {
    switch (one) {
      case part::full:
        return full::name();
      case part::causal:
        return causal_.name();
      case part::window:
        return window_.name();
      case part::prefix:
        return prefix_.name();
      case part::none:
        return "";
    }
    return "";
  }

  // The pairs are those of (causal or prefix) and window.
  causal causal_{(std::numeric_limits<std::int64_t>::max)()};
  window window_{};
  prefix prefix_{};
  std::array<part, 2> parts_{part::full, part::none};
};

/// The mask of this name, as `name()` writes it: for a trainer's flag. There are `full`, `causal`, `causal with offset
/// N`, where N may be negative, `window<Left,Right>`, where -1 is unbounded, `prefix<Length>`, and `causal &
/// window<...>` in either order.
///
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{world, shape, orrery::mask_named("causal")};
///
/// Throws `std::invalid_argument` for another name, with the nearest one and all that there are.
[[nodiscard]] inline any_mask mask_named(std::string_view name) {
  static constexpr const char* known[] = {"full", "causal", "causal with offset N", "window<Left,Right>",
                                          "prefix<Length>"};
  static constexpr detail::nameable masks{"mask_named", "mask", known};
  constexpr std::int64_t most = (std::numeric_limits<std::int64_t>::max)();
  const auto causal_named = [](std::string_view text, causal& found) {
    constexpr std::string_view with_offset = "causal with offset ";
    if (text == "causal") return true;
    if (text.substr(0, with_offset.size()) != with_offset) return false;
    const std::string_view digits = text.substr(with_offset.size());
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), found.offset);
    return error == std::errc{} && end == digits.data() + digits.size();
  };
  const auto window_of = [&](const detail::parsed_name& parsed) {
    return window{parsed.number(0, most, window::unbounded), parsed.number(1, most, window::unbounded)};
  };

  constexpr std::string_view with = " & ";
  if (const auto at = name.find(with); at != std::string_view::npos) {
    const std::string_view both[] = {name.substr(0, at), name.substr(at + with.size())};
    for (const int i : {0, 1}) {
      causal diagonal;
      if (!causal_named(both[i], diagonal)) continue;
      const detail::parsed_name other{both[1 - i], masks};
      if (!other.is("window", 2, 2)) continue;
      if (i == 0) return diagonal & window_of(other);
      return window_of(other) & diagonal;
    }
    const detail::parsed_name parsed{name, masks};
    parsed.refuse("is no mask; of two names, one is causal and one is window<Left,Right>");
  }
  causal diagonal;
  if (causal_named(name, diagonal)) return diagonal;
  const detail::parsed_name parsed{name, masks};
  if (parsed.is("full")) return full{};
  if (parsed.is("window", 2, 2)) return window_of(parsed);
  if (parsed.is("prefix", 1, 1)) return prefix{parsed.number(0, most, 0)};
  parsed.refuse_unknown();
}

}  // namespace orrery
