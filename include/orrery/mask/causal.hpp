// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

#include "orrery/mask/intersection.hpp"  // IWYU pragma: export
#include "orrery/mask/mask.hpp"

namespace orrery {

/// A query at position i sees the keys at positions <= i + offset.
///
/// With the default offset the first query meets the first key (top-left alignment), as in PyTorch's `is_causal`. Where
/// queries are the last part of a longer key sequence, the last query meets the last key (bottom-right alignment), as
/// in FlashAttention from 2.1 on:
///
///     orrery::causal::bottom_right(query_length, key_length)
///
/// Every offset is valid: with the largest a query sees every key, with the smallest none. Within packed documents the
/// alignment is each document's own: see `documents`.
struct causal {
  std::int64_t offset = 0;

  static constexpr bool rows_are_intervals = true;
  static constexpr bool counts_in_documents = true;

  /// The last query sees all keys, the one before it all but one, and so on; with more queries than keys the first ones
  /// see none. The lengths are those of the whole sequences, over all ranks: at least 0.
  [[nodiscard]] static constexpr causal bottom_right(std::int64_t query_length, std::int64_t key_length) noexcept {
    return {key_length - query_length};
  }

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const noexcept {
    return key <= last_visible(query);
  }
  [[nodiscard]] constexpr visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                              std::int64_t key_last) const noexcept {
    if (key_last <= last_visible(query_first)) return visibility::all;
    if (key_first > last_visible(query_last)) return visibility::none;
    return visibility::some;
  }
  [[nodiscard]] constexpr position_interval keys_of(std::int64_t, std::int64_t query_last) const noexcept {
    return {0, last_visible(query_last)};
  }
  [[nodiscard]] constexpr std::int64_t diagonal() const noexcept { return offset; }
  [[nodiscard]] std::string name() const {
    return offset == 0 ? "causal" : "causal with offset " + std::to_string(offset);
  }

  constexpr bool operator==(const causal&) const = default;

 private:
  /// The last key that a query sees; not key - query <= offset, which would take a subtraction for each pair.
  [[nodiscard]] constexpr std::int64_t last_visible(std::int64_t query) const noexcept {
    return detail::saturating_sum(offset, query);
  }
};

}  // namespace orrery
