// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

#include "orrery/mask/intersection.hpp"  // IWYU pragma: export
#include "orrery/mask/mask.hpp"

namespace orrery {

/// The first `length` keys are visible to all queries, the others causally: prefix language models (as in T5,
/// arXiv 1910.10683, section 3.2.1), or an image before its text.
///
///     orrery::prefix{256}
///
/// `documents{...} & prefix{256}` means the first 256 keys of each document. For prefixes that differ from document to
/// document see `intervals`.
struct prefix {
  std::int64_t length = 0;

  static constexpr bool rows_are_intervals = true;
  static constexpr bool counts_in_documents = true;

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const noexcept {
    return key < length || key <= query;
  }
  [[nodiscard]] constexpr visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                              std::int64_t key_last) const noexcept {
    if (visible(query_first, key_last)) return visibility::all;
    if (!visible(query_last, key_first)) return visibility::none;
    return visibility::some;
  }
  [[nodiscard]] constexpr position_interval keys_of(std::int64_t, std::int64_t query_last) const noexcept {
    return {0, query_last < length ? length - 1 : query_last};
  }
  [[nodiscard]] std::string name() const { return "prefix<" + std::to_string(length) + ">"; }
  [[nodiscard]] std::string wrong_lengths(std::int64_t, std::int64_t) const {
    return length >= 0 ? "" : "prefix::length is " + std::to_string(length) + ", expected at least 0 keys";
  }

  constexpr bool operator==(const prefix&) const = default;
};

}  // namespace orrery
