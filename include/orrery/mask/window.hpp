// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

#include "orrery/mask/intersection.hpp"  // IWYU pragma: export
#include "orrery/mask/mask.hpp"

namespace orrery {

/// A query at position i sees the keys at positions i - left, ..., i + right: sliding-window attention, with the
/// meaning of FlashAttention's `window_size=(left, right)`.
///
///     orrery::window{.left = 4095, .right = 0}              // itself and the 4095 tokens before it
///     orrery::causal{} & orrery::window{.left = 4095}       // the same
///     orrery::window{.left = 256, .right = 256}             // both ways
///
/// A side that is left out is unbounded: alone, `window{.left = 4095}` sees all later tokens. -1 is unbounded, too, as
/// in FlashAttention; smaller numbers are refused when an operator is made.
struct window {
  static constexpr std::int64_t unbounded = -1;

  std::int64_t left = unbounded;
  std::int64_t right = unbounded;

  static constexpr bool rows_are_intervals = true;
  static constexpr bool counts_in_documents = true;

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const noexcept {
    return first_visible(query) <= key && key <= last_visible(query);
  }
  [[nodiscard]] constexpr visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                              std::int64_t key_last) const noexcept {
    if (key_first > last_visible(query_last) || key_last < first_visible(query_first)) return visibility::none;
    if (key_last <= last_visible(query_first) && key_first >= first_visible(query_last)) return visibility::all;
    return visibility::some;
  }
  [[nodiscard]] constexpr position_interval keys_of(std::int64_t query_first, std::int64_t query_last) const noexcept {
    const std::int64_t first = first_visible(query_first);
    return {first > 0 ? first : 0, last_visible(query_last)};
  }
  [[nodiscard]] std::string name() const {
    return "window<" + std::to_string(left) + "," + std::to_string(right) + ">";
  }
  [[nodiscard]] std::string wrong_lengths(std::int64_t, std::int64_t) const {
    for (const std::int64_t side : {left, right}) {
      if (side >= unbounded) continue;
      return std::string{"window::"} + (left < unbounded ? "left" : "right") + " is " + std::to_string(side) +
             ", expected at least 0 tokens, or -1 (window::unbounded) for all; an offset is causal's";
    }
    return "";
  }

  constexpr bool operator==(const window&) const = default;

 private:
  [[nodiscard]] constexpr std::int64_t first_visible(std::int64_t query) const noexcept {
    return left < 0 ? INT64_MIN : detail::saturating_sum(query, -left);
  }
  [[nodiscard]] constexpr std::int64_t last_visible(std::int64_t query) const noexcept {
    return right < 0 ? INT64_MAX : detail::saturating_sum(query, right);
  }
};

}  // namespace orrery
