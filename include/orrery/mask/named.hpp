// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <charconv>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>

#include "orrery/mask/mask.hpp"
#include "orrery/schedule/detail/names.hpp"

namespace orrery {

/// One of the masks of this library, chosen at run time. It answers as the mask that it was made from, at the cost of
/// `causal`: all of them are diagonals.
class any_mask {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor): a mask is a mask
  constexpr any_mask(const full&) noexcept : diagonal_{(std::numeric_limits<std::int64_t>::max)()}, full_{true} {}
  // NOLINTNEXTLINE(google-explicit-constructor): a mask is a mask
  constexpr any_mask(const causal& mask) noexcept : diagonal_{mask} {}

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const noexcept {
    return diagonal_.visible(query, key);
  }
  [[nodiscard]] constexpr visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                              std::int64_t key_last) const noexcept {
    return diagonal_.classify(query_first, query_last, key_first, key_last);
  }
  [[nodiscard]] constexpr std::int64_t diagonal() const noexcept { return diagonal_.diagonal(); }
  [[nodiscard]] std::string name() const { return full_ ? full::name() : diagonal_.name(); }

 private:
  causal diagonal_;
  bool full_ = false;
};

/// The mask of this name, as `name()` writes it: for a trainer's flag. There are `full`, `causal` and `causal with
/// offset N`, where N may be negative.
///
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{world, shape, orrery::mask_named("causal")};
///
/// Throws `std::invalid_argument` for another name, with the nearest one and all that there are.
[[nodiscard]] inline any_mask mask_named(std::string_view name) {
  static constexpr const char* known[] = {"full", "causal", "causal with offset N"};
  static constexpr detail::nameable masks{"mask_named", "mask", known};
  constexpr std::string_view with_offset = "causal with offset ";
  if (name.substr(0, with_offset.size()) == with_offset) {
    const std::string_view digits = name.substr(with_offset.size());
    std::int64_t offset = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), offset);
    if (error == std::errc{} && end == digits.data() + digits.size()) return causal{offset};
  }
  const detail::parsed_name parsed{name, masks};
  if (parsed.is("full")) return full{};
  if (parsed.is("causal")) return causal{};
  parsed.refuse_unknown();
}

}  // namespace orrery
